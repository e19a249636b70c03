//! Gradients against differences of the loss.

use epiphyte_methods::{AdapterModule, Param};
use epiphyte_models::HeadKind;
use epiphyte_models::adapter::name_id;
use epiphyte_ops::random;

use crate::support::{TestModel, bert, cases_on, everywhere, llama, model, perturb, to_vec};

/// The slope of the loss along all gradients together, on every family.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    everywhere(|name, _, on, module| {
        perturb(&module);
        let gradients = gradients(on, &module);
        if !gradients.is_empty() {
            check(name, on, &module, &gradients);
        }
    });
}

/// The slope along each tensor's gradient, on an encoder, a decoder and an encoder-decoder.
#[test]
fn each_gradient_is_the_slope_of_its_tensor() {
    for on in [bert(), llama(), model("t5", HeadKind::LanguageModel)] {
        cases_on(&on, |name, _, on, module| {
            perturb(&module);
            for one in gradients(on, &module) {
                let key = one.0.key().to_owned();
                check(&format!("{name}, {key}"), on, &module, &[one]);
            }
        });
    }
}

/// The trained tensors that get a gradient, each with it.
fn gradients(on: &TestModel, module: &AdapterModule) -> Vec<(Param, Vec<f32>)> {
    let gradients = on.gradients(module);
    let found = module.trained().filter_map(|param| {
        let gradient = to_vec(gradients.get(param)?.clone());
        Some((param.clone(), gradient))
    });
    found.collect()
}

/// Tensors are moved along their gradients, where the slope of the loss is the sum of the
/// gradients' lengths, and along a random direction. Four points give the slope up to the fourth
/// power of the step.
fn check(name: &str, on: &TestModel, module: &AdapterModule, gradients: &[(Param, Vec<f32>)]) {
    let detached = module.parameters().detached_params();
    let detached: Vec<(&Param, Vec<f32>)> = detached.map(|it| (it, it.to_vec())).collect();
    let length: f64 = gradients.iter().map(|(_, g)| dot(g, g).sqrt()).sum();
    // Where the loss is steep it also bends; where it is flat a longer step rounds less.
    let step = match gradients.iter().all(|(param, _)| on.is_noise(param)) {
        true => 0.1,
        false => 0.01 / length.max(1.0) as f32,
    };
    let loss = || {
        module.parameters().derive(false);
        // To the gradient these are constants.
        for (param, values) in &detached {
            param.set_values(values.clone());
        }
        f64::from(to_vec(on.loss(module))[0])
    };
    let noise = |(param, _): &(Param, Vec<f32>)| {
        let noise = random::normal(name_id(param.key()), param.count(), 1.0);
        (param.clone(), noise)
    };
    let noise: Vec<(Param, Vec<f32>)> = gradients.iter().map(noise).collect();
    for directions in [gradients, &noise] {
        let unit: Vec<(&Param, Vec<f32>)> = directions
            .iter()
            .map(|(param, direction)| {
                let norm = dot(direction, direction).sqrt().max(f64::MIN_POSITIVE);
                let unit = direction.iter().map(|d| (f64::from(*d) / norm) as f32);
                (param, unit.collect())
            })
            .collect();
        let expected: f64 = gradients
            .iter()
            .zip(&unit)
            .map(|((_, gradient), (_, unit))| dot(gradient, unit))
            .sum();
        let is_near = |slope: f64| (slope - expected).abs() < 2e-3 * length + 2e-5;
        let found = slope(&unit, step, loss);
        // A step may cross the corner of a ReLU, which a shorter one does not reach; rounding may
        // spoil it, which spoils a longer one less.
        let near = is_near(found)
            || is_near(slope(&unit, step / 8.0, loss))
            || is_near(slope(&unit, step / 32.0, loss))
            || is_near(slope(&unit, step * 4.0, loss));
        assert!(
            near,
            "{name}: slope {found}, gradient {expected} of length {length}"
        );
    }
}

fn slope(unit: &[(&Param, Vec<f32>)], step: f32, loss: impl Fn() -> f64) -> f64 {
    let start: Vec<Vec<f32>> = unit.iter().map(|(param, _)| param.to_vec()).collect();
    let at = |steps: f32| {
        for ((param, unit), start) in unit.iter().zip(&start) {
            let moved = start.iter().zip(unit);
            let moved = moved.map(|(value, unit)| value + steps * step * unit);
            param.set_values(moved.collect());
        }
        loss()
    };
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(step));
    for ((param, _), start) in unit.iter().zip(start) {
        param.set_values(start);
    }
    slope
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}
