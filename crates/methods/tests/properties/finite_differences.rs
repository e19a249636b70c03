//! Gradients against differences of the loss.

use epiphyte_methods::Param;
use epiphyte_models::adapter::name_id;
use epiphyte_ops::random;

use crate::support::{everywhere, perturb, to_vec};

/// Each tensor is moved along its gradient, where the slope of the loss is the gradient's length,
/// and along a random direction. Four points give the slope up to the fourth power of the step.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    everywhere(|name, _, on, module| {
        perturb(&module);
        let gradients = on.gradients(&module);
        let detached = module.parameters().detached_params();
        let detached: Vec<(&Param, Vec<f32>)> =
            detached.map(|param| (param, param.to_vec())).collect();
        for param in module.trained() {
            let Some(gradient) = gradients.get(param).cloned().map(to_vec) else {
                continue;
            };
            let gradient = &gradient;
            let length = dot(gradient, gradient).sqrt();
            let noise = random::normal(name_id(param.key()), param.count(), 1.0);
            for direction in [gradient, &noise] {
                let norm = dot(direction, direction).sqrt();
                if norm == 0.0 {
                    continue;
                }
                let unit: Vec<f32> = direction
                    .iter()
                    .map(|d| (f64::from(*d) / norm) as f32)
                    .collect();
                // Where the loss is steep it also bends; where it is flat a longer step rounds
                // less.
                let step = match on.is_noise(param) {
                    true => 0.1,
                    false => 0.01 / length.max(1.0) as f32,
                };
                let loss = || {
                    module.parameters().derive(false);
                    // To the gradient these are constants.
                    for (param, values) in &detached {
                        param.set_values(values.clone());
                    }
                    f64::from(to_vec(on.loss(&module))[0])
                };
                let expected = dot(gradient, &unit);
                let is_near = |slope: f64| (slope - expected).abs() < 2e-3 * length + 2e-5;
                let found = slope(param, &unit, step, loss);
                // A step may cross the corner of a ReLU, which a shorter one does not reach;
                // rounding may spoil it, which spoils a longer one less.
                let near = is_near(found)
                    || is_near(slope(param, &unit, step / 8.0, loss))
                    || is_near(slope(param, &unit, step / 32.0, loss))
                    || is_near(slope(param, &unit, step * 4.0, loss));
                assert!(
                    near,
                    "{name}, {}: slope {found}, gradient {expected} of length {length}",
                    param.key()
                );
            }
        }
    });
}

fn slope(param: &Param, unit: &[f32], step: f32, loss: impl Fn() -> f64) -> f64 {
    let start = param.to_vec();
    let at = |steps: f32| {
        let moved = start.iter().zip(unit);
        param.set_values(
            moved
                .map(|(value, unit)| value + steps * step * unit)
                .collect(),
        );
        loss()
    };
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * f64::from(step));
    param.set_values(start);
    slope
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}
