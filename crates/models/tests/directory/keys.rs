//! Prefixes, old spellings, tied heads, and what is left over.

use epiphyte_models::ModelError;
use epiphyte_models::checkpoint::Checkpoint;
use epiphyte_models::keys::{KeyRules, TensorReader};

use crate::checkpoint::{f32s, single, tensor_problems};

const BERT: KeyRules = KeyRules {
    base_prefix: "bert.",
    ignorable: &["embeddings.position_ids", "cls.predictions."],
};

const LLAMA: KeyRules = KeyRules {
    base_prefix: "model.",
    ignorable: &["rotary_emb.inv_freq"],
};

#[test]
fn tensors_are_found_with_and_without_prefix_and_under_old_spellings() {
    let wanted = "bert.embeddings.LayerNorm.weight";
    for stored in [
        wanted,
        "embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.gamma",
        "embeddings.LayerNorm.gamma",
    ] {
        let dir = single(&[f32s(stored, &[2], 1.0)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut reader = TensorReader::new(&checkpoint, BERT);
        assert_eq!(reader.stored_name(wanted).as_deref(), Some(stored));
        assert_eq!(reader.to_f32(wanted, &[2]).unwrap(), [1.0, 2.0]);
        assert!(!reader.contains("bert.embeddings.LayerNorm.bias"));
        reader.finish(None).unwrap();
    }
}

#[test]
fn a_head_has_no_prefix_to_lose() {
    let dir = single(&[f32s("bert.classifier.weight", &[2], 1.0)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!TensorReader::new(&checkpoint, BERT).contains("classifier.weight"));
}

#[test]
fn everything_that_does_not_fit_is_reported_together() {
    let dir = single(&[
        f32s("encoder.a.weight", &[2, 2], 0.0),
        f32s("encoder.b.weight", &[2], 0.0),
    ]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut reader = TensorReader::new(&checkpoint, BERT);
    let wanted = ["a", "b", "c", "d"].map(|it| format!("bert.encoder.{it}.weight"));
    let failures: Vec<_> = wanted
        .iter()
        .filter_map(|name| reader.to_f32(name, &[2]).err())
        .collect();
    let error = ModelError::incomplete(1, 4, failures);
    let text = error.to_string();
    assert!(
        text.ends_with(
            "loaded 1 of 4 tensors; missing: `bert.encoder.c.weight`, `bert.encoder.d.weight`; \
             wrong shape: `encoder.a.weight` (expected [2], found [2, 2])"
        ),
        "{text}"
    );
    let problems = tensor_problems(error);
    assert_eq!(problems.path, dir.path());
    assert_eq!((problems.missing.len(), problems.wrong_shape.len()), (2, 1));
}

#[test]
fn a_failure_that_is_not_about_tensors_comes_first() {
    let tensor = || {
        ModelError::Tensors(Box::new(epiphyte_models::error::TensorProblems {
            missing: vec!["w".into()],
            ..Default::default()
        }))
    };
    let too_long = ModelError::SequenceTooLong {
        length: 2,
        limit: 1,
    };
    let error = ModelError::incomplete(0, 2, vec![tensor(), too_long, tensor()]);
    assert!(
        matches!(error, ModelError::SequenceTooLong { .. }),
        "{error:?}"
    );
}

#[test]
fn long_lists_are_shortened_in_the_message_only() {
    let failures = (0..20)
        .map(|i| {
            let missing = vec![format!("t{i}")];
            ModelError::Tensors(Box::new(epiphyte_models::error::TensorProblems {
                missing,
                ..Default::default()
            }))
        })
        .collect();
    let error = ModelError::incomplete(0, 20, failures);
    assert!(error.to_string().ends_with("`t7` and 12 more"), "{error}");
    assert_eq!(tensor_problems(error).missing.len(), 20);
}

#[test]
fn leftovers_are_reported_unless_the_family_knows_them() {
    let dir = single(&[
        f32s("bert.embeddings.position_ids", &[1], 0.0),
        f32s("cls.predictions.bias", &[1], 0.0),
        f32s("bert.encoder.layer.12.output.dense.bias", &[1], 0.0),
        f32s("not_embeddings.position_ids", &[1], 0.0),
    ]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut reader = TensorReader::new(&checkpoint, BERT);
    let left: Vec<_> = reader.extra().collect();
    assert_eq!(
        left,
        [
            "bert.encoder.layer.12.output.dense.bias",
            "not_embeddings.position_ids"
        ]
    );
    let problems = tensor_problems(reader.clone().finish(None).unwrap_err());
    assert_eq!(problems.extra, ["bert.encoder.layer.12.output.dense.bias"]);
    // A module that the base does not have is another task's head.
    reader.skip("bert.encoder.layer.12.output.dense.bias");
    let left_out = reader.clone().finish(None).unwrap();
    assert_eq!(left_out, ["not_embeddings.position_ids"]);
    // One that it has is not, unless it is below the head.
    reader.skip("bert.not_embeddings.weight");
    reader.clone().finish(None).unwrap_err();
    reader.finish(Some("not_embeddings")).unwrap();
}

#[test]
fn a_head_is_tied_when_absent_or_equal() {
    let (embeddings, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let tied = |tensors: &[_]| {
        let dir = single(tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut reader = TensorReader::new(&checkpoint, LLAMA);
        reader.to_f32(embeddings, &[2, 3]).unwrap();
        let tied = reader.is_tied(head, embeddings);
        assert_eq!(reader.extra().count(), usize::from(!tied));
        tied
    };
    assert!(tied(&[f32s(embeddings, &[2, 3], 0.0)]));
    assert!(tied(&[
        f32s("embed_tokens.weight", &[2, 3], 0.0),
        f32s(head, &[2, 3], 0.0)
    ]));
    assert!(!tied(&[
        f32s(embeddings, &[2, 3], 0.0),
        f32s(head, &[2, 3], 1.0)
    ]));
    assert!(!tied(&[
        f32s(embeddings, &[2, 3], 0.0),
        f32s(head, &[3, 2], 0.0)
    ]));
}
