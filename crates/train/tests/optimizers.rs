//! Optimizers, compared with those that others wrote (`make_golden_optimizers.py`).

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_methods::framework::parameters::Init;
use epiphyte_methods::{Param, ParameterSet};

use epiphyte_train::training::optimizer::{
    Adafactor, AdamW, AdamW8Bit, Galore, GaloreSettings, Optimizer, OptimizerKind, OptimizerState,
};

/// Those with a state of their own.
const KINDS: [OptimizerKind; 4] = [
    OptimizerKind::AdamW,
    OptimizerKind::AdamW8Bit,
    OptimizerKind::Adafactor,
    OptimizerKind::Galore,
];
const STEPS: usize = 4;
/// Every how many values the golden file has one.
const EVERY: usize = 53;
const RATE: f64 = 0.01;

/// The formula of `tests/make_golden_optimizers.py`.
fn values(count: usize, step: usize) -> Vec<f32> {
    let value = |at: usize| {
        let wave = (0.37 * at as f64 + 1.3 * step as f64).cos();
        (wave * 10.0_f64.powi((at % 5) as i32 - 3)) as f32
    };
    (0..count).map(value).collect()
}

fn param(shape: &[usize]) -> Param {
    let mut parameters = ParameterSet::new(&Device::flex(), 0);
    let param = parameters.declare("w", shape, Init::Zeros);
    param.set_values(values(param.count(), 100));
    param
}

fn step(optimizer: &mut dyn Optimizer, param: &Param, number: usize) {
    let gradient = TensorData::new(values(param.count(), number), [param.count()]);
    optimizer.step(param, Tensor::from_data(gradient, &Device::flex()), RATE);
}

fn adamw() -> AdamW {
    AdamW::new(epiphyte_ops::AdamW {
        weight_decay: 0.05,
        ..epiphyte_ops::AdamW::default()
    })
}

fn galore(param: &Param, update_proj_gap: u64) -> Galore {
    let settings = GaloreSettings {
        rank: 3,
        update_proj_gap,
        scale: 0.25,
    };
    Galore::new(adamw(), settings, BTreeSet::from([param.id()]))
}

#[test]
fn steps_are_those_of_the_programs_that_others_wrote() {
    let golden = include_str!("golden_optimizers.json");
    let golden: BTreeMap<String, Vec<f32>> = serde_json::from_str(golden).unwrap();
    let build = |case: &str, param: &Param| -> Box<dyn Optimizer> {
        match case {
            "adamw-8bit" => Box::new(AdamW8Bit::new(adamw())),
            // transformers decays vectors too, if it is given them with a decay.
            "adafactor matrix" => Box::new(Adafactor::new(0.05)),
            "adafactor vector" => Box::new(Adafactor::new(0.0)),
            "galore" => Box::new(galore(param, 200)),
            other => panic!("no such case: {other}"),
        }
    };
    assert_eq!(golden.len(), 4);
    for (case, expected) in golden {
        let shape: &[usize] = match case.as_str() {
            "adamw-8bit" => &[64, 70],
            "adafactor vector" => &[300],
            "galore" => &[40, 24],
            _ => &[24, 40],
        };
        let param = param(shape);
        let before = param.to_vec();
        let mut optimizer = build(&case, &param);
        (0..STEPS).for_each(|number| step(&mut *optimizer, &param, number));
        let after = param.to_vec();
        let found = after.iter().step_by(EVERY);
        assert_eq!(found.len(), expected.len(), "{case}");
        for (number, (found, expected)) in found.zip(&expected).enumerate() {
            let moved = (found - before[number * EVERY]).abs();
            let tolerance = 1e-6 + 2e-4 * moved;
            assert!(
                (found - expected).abs() < tolerance,
                "{case} {number}: {found}, {expected}"
            );
        }
    }
}

/// Stopped after any step and restored, an optimizer makes the same next step to the bit, on
/// both sides of the size from which it quantizes, and of a projection.
#[test]
fn a_restored_optimizer_goes_on_to_the_bit() {
    for shape in [&[64, 70][..], &[24, 40], &[30]] {
        for stop in 1..STEPS {
            for kind in KINDS {
                let build = |param: &Param| -> Box<dyn Optimizer> {
                    match kind {
                        OptimizerKind::AdamW8Bit => Box::new(AdamW8Bit::new(adamw())),
                        OptimizerKind::Adafactor => Box::new(Adafactor::new(0.05)),
                        OptimizerKind::Galore if shape.len() == 2 => Box::new(galore(param, 2)),
                        _ => Box::new(adamw()),
                    }
                };
                let (whole, parts) = (param(shape), param(shape));
                let mut optimizer = build(&whole);
                (0..STEPS).for_each(|number| step(&mut *optimizer, &whole, number));
                let mut first = build(&parts);
                (0..stop).for_each(|number| step(&mut *first, &parts, number));
                let state: OptimizerState = first.state(&[&parts]);
                assert!(state.bytes() > 0);
                let mut second = build(&parts);
                second.restore(&[&parts], state);
                (stop..STEPS).for_each(|number| step(&mut *second, &parts, number));
                assert_eq!(whole.to_vec(), parts.to_vec(), "{second:?}");
            }
        }
    }
}

#[test]
fn state_takes_the_memory_that_it_promises() {
    let param = param(&[64, 70]);
    let bytes = |optimizer: &mut dyn Optimizer| {
        step(optimizer, &param, 0);
        optimizer.state(&[&param]).bytes() as usize
    };
    assert_eq!(bytes(&mut adamw()), 2 * 4 * 64 * 70);
    // A code for each value, a scale for each block of 256.
    let blocks = (64 * 70usize).div_ceil(256);
    assert_eq!(
        bytes(&mut AdamW8Bit::new(adamw())),
        2 * (64 * 70 + 4 * blocks)
    );
    assert_eq!(bytes(&mut Adafactor::new(0.0)), 4 * (64 + 70));
    // Moments of 3 x 70, and the projection of 64 x 3.
    assert_eq!(bytes(&mut galore(&param, 2)), 4 * (2 * 3 * 70 + 64 * 3));
}

#[test]
fn names_are_read_and_written() {
    let names = KINDS.map(|kind| kind.to_string());
    assert_eq!(names, ["adamw", "adamw-8bit", "adafactor", "galore"]);
    for (name, kind) in names.iter().zip(KINDS) {
        assert_eq!(name.parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), name.as_str());
    }
    let error = "sgd".parse::<OptimizerKind>().unwrap_err();
    assert!(error.contains("adafactor"), "{error}");
}
