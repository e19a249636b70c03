//! Gather and scatter-add against loops.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::embedding::{gather, scatter_add};
use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn all_shapes(
        rows in 1..100usize, width in 1..70usize, tokens in 0..400usize, seed in 0..1000u64,
    ) {
        let (table, dy) = (normals(rows * width, seed), normals(tokens * width, seed + 1));
        let indices: Vec<i64> = (0..tokens)
            .map(|token| ((token * token + seed as usize) % rows) as i64)
            .collect();
        let mut y = Vec::new();
        let mut d_table = table.clone();
        for (&index, dy) in indices.iter().zip(dy.chunks(width)) {
            let row = index as usize * width..(index as usize + 1) * width;
            y.extend_from_slice(&table[row.clone()]);
            d_table[row].iter_mut().zip(dy).for_each(|(d, dy)| *d += dy);
        }
        let expected = bits(&[y, d_table]);
        for (isa, results) in on_every_path(0.0, || {
            let (mut y, mut d_table) = (vec![f32::NAN; tokens * width], table.clone());
            gather(&table, width, &indices, &mut y).unwrap();
            scatter_add(&dy, width, &indices, &mut d_table).unwrap();
            vec![y, d_table]
        }) {
            // Copies, and sums in the order of the tokens: the same bytes.
            prop_assert_eq!(bits(&results), expected.clone(), "{:?}", isa);
        }
    }
}

#[test]
fn rows_that_do_not_exist_are_refused() {
    let mut y = [0.0; 4];
    for index in [2, -1, i64::MAX, i64::MIN] {
        let error = gather(&[0.0; 4], 2, &[0, index], &mut y).unwrap_err();
        assert_eq!(
            error,
            KernelError::Index {
                operand: "indices",
                position: 1,
                index,
                limit: 2
            }
        );
        scatter_add(&[0.0; 4], 2, &[0, index], &mut [0.0; 4]).unwrap_err();
    }
    assert!(matches!(
        gather(&[0.0; 5], 2, &[0], &mut y),
        Err(KernelError::Rows { .. })
    ));
    assert!(matches!(
        gather(&[0.0; 4], 2, &[0], &mut y),
        Err(KernelError::Length { operand: "y", .. })
    ));
    gather(&[], 2, &[], &mut []).unwrap();
}
