//! Rotary embedding against the formula of `transformers`: `x cos + rotate_half(x) sin`.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::rope::Rope;
use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn all_shapes(
        tokens in 0..150usize, heads in 1..5usize, half in 1..20usize, passing in 0..5usize, interleaved: bool,
        seed in 0..1000u64,
    ) {
        let (rotary_dim, head_dim, count) = (2 * half, 2 * half + passing, 50);
        let angles: Vec<f32> = normals(count * half, seed).iter().map(|x| x * 3.0).collect();
        let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
        let positions: Vec<u32> = (0..tokens)
            .map(|token| ((token * 7 + seed as usize) % count) as u32)
            .collect();
        let x = normals(tokens * heads * head_dim, seed + 1);
        let rope = Rope { cos: &cos, sin: &sin, rotary_dim, head_dim, interleaved };

        let mut expected = f64s(&x);
        for (index, head) in expected.chunks_mut(head_dim).enumerate() {
            let before = head.to_vec();
            for d in 0..rotary_dim {
                let (is_first, first, second) = match interleaved {
                    false => (d < half, d % half, d % half + half),
                    true => (d % 2 == 0, d - d % 2, d - d % 2 + 1),
                };
                let rotated = if is_first { -before[second] } else { before[first] };
                let pair = if interleaved { d / 2 } else { d % half };
                let angle = positions[index / heads] as usize * half + pair;
                head[d] = before[d] * f64::from(cos[angle]) + rotated * f64::from(sin[angle]);
            }
        }
        for (isa, results) in on_every_path(1e-6, || {
            let mut y = x.clone();
            rope.forward(&mut y, &positions).unwrap();
            let mut back = y.clone();
            rope.backward(&mut back, &positions).unwrap();
            vec![y, back]
        }) {
            assert_close(&format!("{isa:?}, y"), &results[0], &expected, 1e-6);
            // A rotation's transpose is its inverse.
            assert_close(&format!("{isa:?}, back"), &results[1], &f64s(&x), 1e-6);
        }
    }
}

/// The backward pass is the transpose: `⟨rope(x), g⟩ = ⟨x, back(g)⟩`, whatever the tables hold.
#[test]
fn backward_is_the_transpose() {
    let (cos, sin) = (normals(12, 1), normals(12, 2));
    let rope = Rope {
        cos: &cos,
        sin: &sin,
        rotary_dim: 6,
        head_dim: 7,
        interleaved: false,
    };
    let positions = [3, 0, 2];
    let (x, g) = (normals(3 * 14, 3), normals(3 * 14, 4));
    let (mut y, mut back) = (x.clone(), g.clone());
    rope.forward(&mut y, &positions).unwrap();
    rope.backward(&mut back, &positions).unwrap();
    assert!((dot(&f64s(&y), &f64s(&g)) - dot(&f64s(&x), &f64s(&back))).abs() < 1e-5);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let rope = Rope {
        cos: &[1.0; 4],
        sin: &[0.0; 4],
        rotary_dim: 4,
        head_dim: 4,
        interleaved: false,
    };
    let mut x = [0.0; 8];
    rope.forward(&mut x, &[0, 1]).unwrap();
    rope.forward(&mut [], &[]).unwrap();
    assert!(matches!(
        rope.forward(&mut x, &[0, 2]),
        Err(KernelError::Index {
            position: 1,
            index: 2,
            limit: 2,
            ..
        })
    ));
    assert!(matches!(
        rope.forward(&mut x, &[0, 0, 0]),
        Err(KernelError::Rows { operand: "x", .. })
    ));
    assert!(matches!(
        rope.forward(&mut x, &[]),
        Err(KernelError::Rows { operand: "x", .. })
    ));
    for rotary_dim in [0, 3, 6] {
        let rope = Rope { rotary_dim, ..rope };
        assert!(matches!(
            rope.forward(&mut x, &[0, 1]),
            Err(KernelError::Parameter { .. })
        ));
    }
    let rope = Rope {
        sin: &[0.0; 2],
        ..rope
    };
    assert!(matches!(
        rope.forward(&mut x, &[0, 1]),
        Err(KernelError::Length { operand: "sin", .. })
    ));
}
