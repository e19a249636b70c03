//! Rotary tables against transformers: `golden/rope.json` is written by `make_rope_golden.py`.

use std::path::Path;

use epiphyte_models::ModelConfig;
use epiphyte_models::families::decoder::DecoderConfig;
use epiphyte_models::rope::RotaryEmbedding;
use serde_json::Value;

struct Case {
    name: String,
    rope: RotaryEmbedding,
    length: usize,
    attention_factor: f32,
    inv_freq: Vec<f32>,
    positions: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/rope.json")).unwrap();
    let floats = |value: &Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
    cases
        .iter()
        .map(|case| {
            let json = case["config"].to_string();
            let config = ModelConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap();
            let config = config.of_family::<DecoderConfig>().unwrap();
            Case {
                name: format!("{}, {} tokens", case["name"], case["length"]),
                rope: config.rope[0].clone(),
                length: serde_json::from_value(case["length"].clone()).unwrap(),
                attention_factor: floats(&Value::from(vec![case["attention_factor"].clone()]))[0],
                inv_freq: floats(&case["inv_freq"]),
                positions: serde_json::from_value(case["positions"].clone()).unwrap(),
                cos: floats(&case["cos"]),
                sin: floats(&case["sin"]),
            }
        })
        .collect()
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases = cases();
    assert!(cases.len() >= 20);
    for case in cases {
        let Case {
            name, rope, length, ..
        } = &case;
        assert_eq!(rope.attention_factor(), case.attention_factor, "{name}");
        let found = rope.inverse_frequencies(*length);
        assert_eq!(found.len(), case.inv_freq.len(), "{name}");
        for (i, (found, expected)) in found.iter().zip(&case.inv_freq).enumerate() {
            let error = (found - expected).abs() / expected;
            assert!(
                error <= 1e-6,
                "{name}: {i}: {found}, transformers has {expected}"
            );
        }
    }
}

/// An angle is position times frequency, so a frequency that differs in its last digit moves the
/// angle by as much as the position makes of it. That is what is allowed beyond 1e-6.
#[test]
fn tables_are_those_of_transformers() {
    for case in cases() {
        let Case {
            name,
            rope,
            positions,
            ..
        } = &case;
        let (cos, sin) = rope.tables(positions);
        let frequencies = rope.inverse_frequencies(case.length);
        let angles = positions.iter().flat_map(|&at| {
            let pairs = frequencies.iter().zip(&case.inv_freq);
            pairs.map(move |(found, expected)| (at, (at as f32 * (found - expected)).abs()))
        });
        assert_eq!(cos.len(), case.cos.len(), "{name}");
        for (i, (at, moved)) in angles.enumerate() {
            let allowed =
                1e-6 + moved + f32::EPSILON * at as f32 * frequencies[i % frequencies.len()];
            for (found, expected) in [(cos[i], case.cos[i]), (sin[i], case.sin[i])] {
                let error = (found - expected).abs();
                assert!(
                    error <= allowed,
                    "{name}, position {at}: {found}, transformers has {expected}"
                );
            }
        }
    }
}
