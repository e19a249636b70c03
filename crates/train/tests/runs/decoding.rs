//! Generated tokens are those of transformers and PEFT, and do not depend on what is read together.

use std::ops::ControlFlow::{Break, Continue};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::AdapterModule;
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::{
    Adapter, Checkpoint, HeadKind, Identity, LoadOptions, Model, ModelConfig, load,
};
use epiphyte_train::{Generation, GenerationEnd, TrainError, generate, generate_batch};
use serde::Deserialize;

/// `decoding.json`.
#[derive(Deserialize)]
struct Golden {
    prompt: Vec<u32>,
    /// How many positions the models get for the texts of the cases.
    positions: usize,
    ends: Vec<u32>,
    repetition_penalty: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    base: String,
    adapter: Option<String>,
    greedy: Vec<u32>,
    beams: Vec<Beams>,
}

#[derive(Deserialize)]
struct Beams {
    num_beams: usize,
    length_penalty: f64,
    tokens: Vec<u32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden")
}

fn golden() -> Golden {
    let text = std::fs::read_to_string(folder().join("decoding.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(base: &str) -> Model {
    let options = LoadOptions::default();
    let dir = folder().join(base).join("base");
    let device = Device::default();
    let loaded = load(&dir, HeadKind::LanguageModel, &device, &options);
    loaded.unwrap().model
}

/// The same model with more positions: a table of learned ones repeats its rows.
fn longer(base: &str, positions: usize) -> Model {
    let dir = folder().join(base).join("base");
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys = ["max_position_embeddings", "n_positions"].into_iter();
    let mut more = 0;
    if let Some(key) = keys.into_iter().find(|key| config.get(key).is_some()) {
        more = positions - config[key].as_u64().unwrap() as usize;
        config[key] = positions.into();
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tensors = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).unwrap();
        let (mut shape, mut values) = (view.shape.to_vec(), view.to_f32().unwrap());
        if name.ends_with("embed_positions.weight") || name.ends_with("wpe.weight") {
            shape[0] += more;
            let rows = values.iter().copied().cycle();
            values = rows.take(shape.iter().product()).collect();
        }
        (name, shape, move || values.clone())
    });
    let longer = tempfile::tempdir().unwrap();
    std::fs::write(longer.path().join("config.json"), config.to_string()).unwrap();
    write_f32(&longer.path().join("model.safetensors"), tensors).unwrap();
    let (device, options) = (Device::default(), LoadOptions::default());
    let loaded = load(longer.path(), HeadKind::LanguageModel, &device, &options);
    loaded.unwrap().model
}

impl Case {
    fn module(&self, model: &Model) -> Option<AdapterModule> {
        let dir = folder().join(&self.base).join(self.adapter.as_ref()?);
        let file = AdapterFile::open(&dir).unwrap();
        Some(file.load(model.base(), &Device::default()).unwrap())
    }
}

impl Golden {
    fn how(&self, base: &str, stop: &[u32]) -> Generation {
        let dir = folder().join(base).join("base");
        let special = GenerationConfig::open(&dir, &ModelConfig::open(&dir).unwrap()).unwrap();
        let mut how = Generation {
            decoder_start_token_id: special.decoder_start_token_id,
            forced_bos_token_id: special.forced_bos_token_id,
            forced_eos_token_id: special.forced_eos_token_id,
            ..Generation::greedy(24, stop.to_vec(), usize::MAX)
        };
        how.sampling.repetition_penalty = self.repetition_penalty;
        how
    }
}

#[test]
fn tokens_are_those_of_transformers() {
    let golden = golden();
    assert!(golden.cases.len() > 30);
    for family in ["t5", "mt5", "t5_v1_1", "bart", "mbart"] {
        let cases = golden.cases.iter().filter(|case| case.base == family);
        assert!(cases.count() > 1, "{family} and an adapter of it");
    }
    for case in &golden.cases {
        let name = format!("{} {:?}", case.base, case.adapter);
        let model = longer(&case.base, golden.positions);
        let module = case.module(&model);
        let adapter = module.as_ref().map_or(&Identity as &dyn Adapter, |it| it);
        let run = |how: &Generation| {
            generate(&model, adapter, &golden.prompt, how, |_| Continue(()))
                .unwrap()
                .ids
        };
        let greedy = Generation {
            max_new_tokens: 64,
            ..golden.how(&case.base, &[])
        };
        assert_eq!(case.greedy.len(), 64, "{name}");
        assert_eq!(run(&greedy), case.greedy, "{name}");
        for beams in &case.beams {
            let how = Generation {
                num_beams: beams.num_beams,
                length_penalty: beams.length_penalty,
                ..golden.how(&case.base, &golden.ends)
            };
            assert_eq!(run(&how), beams.tokens, "{name} {}", beams.num_beams);
        }
    }
}

#[test]
fn prompts_that_are_continued_together_are_as_alone() {
    let golden = golden();
    let first = |base: Option<&str>| {
        let mut cases = golden.cases.iter().filter(|case| case.adapter.is_some());
        cases.find(|case| base.is_none_or(|base| case.base == base))
    };
    for case in [first(None), first(Some("t5")), first(Some("bart"))] {
        let case = case.unwrap();
        let model = open(&case.base);
        let module = case.module(&model).unwrap();
        let prompts = vec![golden.prompt.clone(), vec![3], vec![11, 30, 2]];
        let how = golden.how(&case.base, &golden.ends);
        let together = generate_batch(&model, &module, &prompts, &how).unwrap();
        for (prompt, new) in prompts.iter().zip(&together) {
            let alone = generate(&model, &module, prompt, &how, |_| Continue(())).unwrap();
            assert_eq!(*new, alone);
        }
        let lengths: Vec<usize> = together.iter().map(|new| new.ids.len()).collect();
        assert!(
            lengths.iter().any(|length| *length != lengths[0]),
            "{lengths:?}"
        );

        let mut sampled = how.clone();
        sampled.sampling.temperature = 1.5;
        let draw = || generate_batch(&model, &module, &prompts, &sampled).unwrap();
        assert_eq!(draw(), draw());
        assert_ne!(draw(), together);
    }
}

/// What an encoder-decoder reads and what it writes have a limit each.
#[test]
fn encoder_decoders_read_and_write_up_to_their_positions() {
    let golden = golden();
    let model = open("bart");
    let how = Generation {
        max_new_tokens: 100,
        ..golden.how("bart", &[])
    };
    let run = |prompt: &[u32], how: &Generation| {
        generate(&model, &Identity, prompt, how, |_| Continue(()))
    };
    let new = run(&[5; 40], &how).unwrap();
    let end = GenerationEnd::ContextLength {
        limit: 40,
        virtual_tokens: 0,
    };
    // The start token has one of the 40 positions.
    assert_eq!((new.ids.len(), new.end), (39, end));
    // A text that is cut ends with this token, which says nothing about the text.
    let forced = how.forced_eos_token_id.unwrap();
    assert_eq!(new.ids[38], forced);
    let stopped = Generation {
        stop: vec![forced],
        ..how.clone()
    };
    let new = run(&[5; 40], &stopped).unwrap();
    assert_eq!((new.ids.len(), new.end), (38, end));
    let begun = Generation {
        forced_bos_token_id: Some(9),
        ..how.clone()
    };
    assert_eq!(run(&[5], &begun).unwrap().ids[0], 9);

    let long = run(&[5; 41], &how).unwrap_err();
    assert!(
        matches!(
            long,
            TrainError::PromptTooLong {
                length: 41,
                limit: 40
            }
        ),
        "{long}"
    );
    assert!(matches!(run(&[], &how), Err(TrainError::EmptyPrompt)));
    let strange = Generation {
        forced_bos_token_id: Some(60),
        ..how
    };
    let strange = run(&[5], &strange).unwrap_err();
    assert!(
        matches!(strange, TrainError::Vocabulary { id: 60, .. }),
        "{strange}"
    );
}

#[test]
fn the_caller_may_break_off() {
    let golden = golden();
    let model = open("llama");
    let mut seen = 0;
    let how = golden.how("llama", &[]);
    let new = generate(&model, &Identity, &golden.prompt, &how, |_| {
        seen += 1;
        if seen == 3 { Break(()) } else { Continue(()) }
    });
    let new = new.unwrap();
    assert_eq!((new.ids.len(), new.end, seen), (3, GenerationEnd::Stop, 3));
}
