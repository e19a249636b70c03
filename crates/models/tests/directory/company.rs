//! A text's result does not depend on the other texts of its batch.

use burn::tensor::Device;
use epiphyte_models::{HeadKind, Identity, Model, ModelConfig, Tokens, random_model};
use epiphyte_ops::{Precision, Sequences};
use serde_json::{Value, json};

/// A decoder made for eight positions, whose frequencies depend on a text's length beyond that.
fn model(scaling: &Value) -> Model {
    let config = json!({
        "model_type": "llama", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 8,
        "initializer_range": 0.5, "rope_scaling": scaling,
    });
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
    let head = HeadKind::Classification { labels: 3 };
    random_model(
        &config.unwrap(),
        head,
        &Device::default(),
        Precision::F32,
        0,
    )
    .unwrap()
}

/// The logits of texts of these lengths, three for each.
fn logits(model: &Model, lengths: &[usize]) -> Vec<Vec<f32>> {
    let (mut ids, mut boundaries) = (Vec::new(), vec![0]);
    for &length in lengths {
        ids.extend((0..length as u32).map(|at| (at * 7 + length as u32) % 30));
        boundaries.push(ids.len());
    }
    let type_ids = vec![0; ids.len()];
    let tokens = Tokens::new(&ids, &type_ids, Sequences::new(boundaries));
    let logits = model.logits(&tokens, &Identity).try_into_vec_as::<f32>();
    logits.unwrap().chunks(3).map(<[f32]>::to_vec).collect()
}

#[test]
fn rotary_scaling_follows_each_text_alone() {
    let scalings = [
        json!({ "rope_type": "dynamic", "factor": 4.0 }),
        json!({
            "rope_type": "longrope", "short_factor": [1.0, 1.0, 1.5, 2.0],
            "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 8,
        }),
    ];
    for scaling in &scalings {
        let model = model(scaling);
        let lengths = [5, 20, 8, 12];
        let together = logits(&model, &lengths);
        for (length, together) in lengths.iter().zip(&together) {
            assert_eq!(
                &logits(&model, &[*length])[0],
                together,
                "{scaling}, {length} tokens"
            );
        }
    }
}
