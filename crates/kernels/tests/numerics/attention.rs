//! Attention against the definition: all scores, a softmax, a sum.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::attention::{
    Attention, AttentionBackward, AttentionDropout, AttentionGradients, Bias, Prefix,
};
use epiphyte_kernels::dropout::Dropout;
use proptest::prelude::*;

use crate::support::*;

/// An attention and its operands.
#[derive(Clone, Debug)]
struct Case {
    lengths: Vec<usize>,
    /// Lengths of the keys where they differ.
    key_lengths: Option<Vec<usize>>,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    causal: bool,
    window: Option<usize>,
    prefix_len: usize,
    bias: bool,
    dropout: f32,
    seed: u64,
}

impl Case {
    fn plain(lengths: &[usize], kv_heads: usize, group: usize, head_dim: usize) -> Self {
        Self {
            lengths: lengths.to_vec(),
            key_lengths: None,
            kv_heads,
            group,
            head_dim,
            causal: false,
            window: None,
            prefix_len: 0,
            bias: false,
            dropout: 0.0,
            seed: 1,
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn key_lengths(&self) -> &[usize] {
        self.key_lengths.as_ref().unwrap_or(&self.lengths)
    }
}

fn boundaries(lengths: &[usize]) -> Vec<usize> {
    let mut end = 0;
    std::iter::once(0).chain(lengths.iter().map(|length| { end += length; end })).collect()
}

/// The numbers of a case.
struct Numbers {
    boundaries: Vec<usize>,
    key_boundaries: Option<Vec<usize>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
    prefix_keys: Vec<f32>,
    prefix_values: Vec<f32>,
    bias: Vec<f32>,
    max_queries: usize,
    max_keys: usize,
    keys: Vec<u64>,
}

impl Numbers {
    fn of(case: &Case) -> Self {
        let (tokens, key_tokens) = (case.lengths.iter().sum::<usize>(), case.key_lengths().iter().sum::<usize>());
        let (width, kv_width) = (case.heads() * case.head_dim, case.kv_heads * case.head_dim);
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let (max_queries, max_keys) = (longest(&case.lengths) + 1, longest(case.key_lengths()) + 2);
        let mut bias = normals(case.heads() * max_queries * (case.prefix_len + max_keys), case.seed + 7);
        // Some keys hidden by the bias.
        bias.iter_mut().filter(|bias| **bias > 1.5).for_each(|bias| *bias = f32::NEG_INFINITY);
        Self {
            boundaries: boundaries(&case.lengths),
            key_boundaries: case.key_lengths.as_deref().map(boundaries),
            q: normals(tokens * width, case.seed),
            k: normals(key_tokens * kv_width, case.seed + 1),
            v: normals(key_tokens * kv_width, case.seed + 2),
            d_out: normals(tokens * width, case.seed + 3),
            prefix_keys: normals(case.prefix_len * kv_width, case.seed + 4),
            prefix_values: normals(case.prefix_len * kv_width, case.seed + 5),
            bias,
            max_queries,
            max_keys,
            keys: (0..case.lengths.len() as u64).map(|sequence| case.seed * 1000 + sequence).collect(),
        }
    }

    fn attention(&self, case: &Case) -> Attention<'_> {
        Attention {
            key_boundaries: self.key_boundaries.as_deref(),
            kv_heads: case.kv_heads,
            causal: case.causal,
            window: case.window,
            prefix: (case.prefix_len > 0)
                .then_some(Prefix { keys: &self.prefix_keys, values: &self.prefix_values }),
            bias: case.bias.then_some(Bias {
                values: &self.bias,
                max_queries: self.max_queries,
                max_keys: self.max_keys,
            }),
            dropout: (case.dropout > 0.0)
                .then_some(AttentionDropout { probability: case.dropout, keys: &self.keys }),
            ..Attention::new(&self.boundaries, case.heads(), case.head_dim)
        }
    }

    /// Everything the kernels compute: out, lse, dq, dk, dv, d_prefix_keys, d_prefix_values.
    fn kernels(&self, case: &Case) -> Vec<Vec<f32>> {
        let attention = self.attention(case);
        let mut out = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.q.len() / case.head_dim];
        attention.forward(&self.q, &self.k, &self.v, &mut out, &mut lse).unwrap();
        let [mut dq, mut dk, mut dv, mut dpk, mut dpv] =
            [&self.q, &self.k, &self.v, &self.prefix_keys, &self.prefix_values].map(|x| vec![f32::NAN; x.len()]);
        let gradients = AttentionGradients {
            dq: Some(&mut dq),
            dk: Some(&mut dk),
            dv: Some(&mut dv),
            d_prefix_keys: Some(&mut dpk),
            d_prefix_values: Some(&mut dpv),
        };
        attention.backward(self.saved(&out, &lse), gradients).unwrap();
        vec![out, lse, dq, dk, dv, dpk, dpv]
    }

    fn saved<'a>(&'a self, out: &'a [f32], lse: &'a [f32]) -> AttentionBackward<'a> {
        AttentionBackward { q: &self.q, k: &self.k, v: &self.v, out, lse, d_out: &self.d_out }
    }

    /// The operands of the reference: q, k, v, prefix keys, prefix values.
    fn operands(&self) -> [Vec<f64>; 5] {
        [&self.q, &self.k, &self.v, &self.prefix_keys, &self.prefix_values].map(|x| f64s(x))
    }

    /// Every (query token, head, keys), where a key is (column, index into the operands (0 own, 1 prefix), row, bias, dropout factor).
    fn visits(&self, case: &Case, mut visit: impl FnMut(usize, usize, &[Key])) {
        let key_boundaries = self.key_boundaries.as_ref().unwrap_or(&self.boundaries);
        for sequence in 0..case.lengths.len() {
            let (queries, keys) = (case.lengths[sequence], case.key_lengths()[sequence]);
            for query in 0..queries {
                for head in 0..case.heads() {
                    let columns = case.prefix_len + keys;
                    let mut factors = vec![1.0; columns];
                    if case.dropout > 0.0 {
                        let dropout = Dropout::new(case.dropout, self.keys[sequence]).unwrap();
                        dropout.apply(&mut factors, columns.max(1), (query * case.heads() + head) as u64).unwrap();
                    }
                    let position = (query + keys) as i64 - queries as i64;
                    let mut visible = Vec::new();
                    for (column, &factor) in factors.iter().enumerate() {
                        let own = column as i64 - case.prefix_len as i64;
                        let seen = own < 0
                            || ((!case.causal || own <= position)
                                && case.window.is_none_or(|window| (own - position).unsigned_abs() < window as u64));
                        let bias = (head * self.max_queries + query) * (case.prefix_len + self.max_keys) + column;
                        if seen {
                            visible.push(Key {
                                prefix: own < 0,
                                row: if own < 0 { column } else { key_boundaries[sequence] + own as usize },
                                bias: if case.bias { f64::from(self.bias[bias]) } else { 0.0 },
                                factor: f64::from(factor),
                            });
                        }
                    }
                    visit(self.boundaries[sequence] + query, head, &visible);
                }
            }
        }
    }

    fn reference_forward(&self, case: &Case, operands: &[Vec<f64>; 5]) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v, prefix_keys, prefix_values] = operands;
        let (heads, dim) = (case.heads(), case.head_dim);
        let tokens = q.len() / (heads * dim);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; tokens * heads]);
        self.visits(case, |token, head, keys| {
            let kv_row = |row: usize| (row * case.kv_heads + head / case.group) * dim;
            let q = &q[(token * heads + head) * dim..][..dim];
            let scores: Vec<f64> = keys
                .iter()
                .map(|key| {
                    let matrix = if key.prefix { prefix_keys } else { k };
                    dot(q, &matrix[kv_row(key.row)..][..dim]) / (dim as f64).sqrt() + key.bias
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| if largest.is_finite() { (s - largest).exp() } else { 0.0 }).sum();
            lse[head * tokens + token] = if total > 0.0 { largest + total.ln() } else { f64::NEG_INFINITY };
            for (key, score) in keys.iter().zip(&scores) {
                if total > 0.0 {
                    let probability = (score - largest).exp() / total * key.factor;
                    let matrix = if key.prefix { prefix_values } else { v };
                    for d in 0..dim {
                        out[(token * heads + head) * dim + d] += probability * matrix[kv_row(key.row) + d];
                    }
                }
            }
        });
        (out, lse)
    }

    fn reference_backward(&self, case: &Case, operands: &[Vec<f64>; 5]) -> [Vec<f64>; 5] {
        let (out, lse) = self.reference_forward(case, operands);
        let [q, k, v, prefix_keys, prefix_values] = operands;
        let d_out = f64s(&self.d_out);
        let (heads, dim) = (case.heads(), case.head_dim);
        let tokens = q.len() / (heads * dim);
        let scale = 1.0 / (dim as f64).sqrt();
        let mut gradients = operands.each_ref().map(|x| vec![0.0; x.len()]);
        let [dq, dk, dv, dpk, dpv] = &mut gradients;
        self.visits(case, |token, head, keys| {
            let kv_row = |row: usize| (row * case.kv_heads + head / case.group) * dim;
            let at = (token * heads + head) * dim;
            let lse = lse[head * tokens + token];
            if lse == f64::NEG_INFINITY {
                return;
            }
            let delta = dot(&out[at..][..dim], &d_out[at..][..dim]);
            for key in keys {
                let (k, v, dk, dv) = match key.prefix {
                    true => (prefix_keys, prefix_values, &mut *dpk, &mut *dpv),
                    false => (k, v, &mut *dk, &mut *dv),
                };
                let row = kv_row(key.row);
                let p = (dot(&q[at..][..dim], &k[row..][..dim]) * scale + key.bias - lse).exp();
                let ds = p * (key.factor * dot(&d_out[at..][..dim], &v[row..][..dim]) - delta) * scale;
                for d in 0..dim {
                    dq[at + d] += ds * k[row + d];
                    dk[row + d] += ds * q[at + d];
                    dv[row + d] += p * key.factor * d_out[at + d];
                }
            }
        });
        gradients
    }
}

struct Key {
    prefix: bool,
    row: usize,
    bias: f64,
    factor: f64,
}

const NAMES: [&str; 7] = ["out", "lse", "dq", "dk", "dv", "d_prefix_keys", "d_prefix_values"];

fn check(case: &Case) {
    let numbers = Numbers::of(case);
    let operands = numbers.operands();
    let (out, lse) = numbers.reference_forward(case, &operands);
    let expected: Vec<Vec<f64>> =
        [out, lse].into_iter().chain(numbers.reference_backward(case, &operands)).collect();
    for (isa, results) in on_every_path(1e-5, || numbers.kernels(case)) {
        for ((name, got), expected) in NAMES.iter().zip(&results).zip(&expected) {
            assert_close(&format!("{isa:?}, {name}"), got, expected, 5e-6);
        }
    }
}

fn cases(length: std::ops::Range<usize>, sequences: usize) -> impl Strategy<Value = Case> {
    let shape = (
        prop::collection::vec((length.clone(), length), 0..=sequences),
        1..3usize,
        1..4usize,
        1..40usize,
    );
    let options = (
        any::<bool>(),
        prop::option::of(0..40usize),
        prop::sample::select(vec![0, 0, 1, 5, 130]),
        any::<bool>(),
        prop::sample::select(vec![0.0f32, 0.3]),
        any::<bool>(),
        0..1000u64,
    );
    (shape, options).prop_map(
        |((lengths, kv_heads, group, head_dim), (causal, window, prefix_len, bias, dropout, crossed, seed))| {
            let (lengths, key_lengths): (Vec<_>, Vec<_>) = lengths.into_iter().unzip();
            let key_lengths = crossed.then_some(key_lengths);
            Case { lengths, key_lengths, kv_heads, group, head_dim, causal, window, prefix_len, bias, dropout, seed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn short_sequences(case in cases(0..12, 5)) {
        check(&case);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn sequences_of_several_blocks(case in cases(0..300, 2)) {
        check(&case);
    }
}

#[test]
fn shapes_of_real_models() {
    check(&Case::plain(&[128], 2, 1, 64));
    check(&Case { causal: true, dropout: 0.1, ..Case::plain(&[257, 40], 1, 7, 64) });
    check(&Case { causal: true, window: Some(100), ..Case::plain(&[400], 1, 2, 128) });
    check(&Case { prefix_len: 20, ..Case::plain(&[130, 3], 1, 1, 80) });
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    for case in [
        Case { causal: true, prefix_len: 2, bias: true, dropout: 0.3, ..Case::plain(&[3, 0, 4], 2, 2, 3) },
        Case { window: Some(2), key_lengths: Some(vec![4, 2]), ..Case::plain(&[3, 3], 1, 2, 2) },
    ] {
        let numbers = Numbers::of(&case);
        let operands = numbers.operands();
        let d_out = f64s(&numbers.d_out);
        let gradients = numbers.reference_backward(&case, &operands);
        for (index, gradient) in gradients.iter().enumerate() {
            let loss = |x: &[f64]| {
                let mut operands = operands.clone();
                operands[index] = x.to_vec();
                dot(&numbers.reference_forward(&case, &operands).0, &d_out)
            };
            let differences = central_differences(loss, &operands[index]);
            assert_same_gradient(NAMES[index + 2], gradient, &differences);
        }
    }
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let together = Case { causal: true, dropout: 0.2, ..Case::plain(&[50, 140, 7], 2, 2, 24) };
    let numbers = Numbers::of(&together);
    let results = numbers.kernels(&together);
    let (width, kv_width) = (together.heads() * 24, together.kv_heads * 24);
    let tokens = 50 + 140 + 7;
    for (sequence, range) in [(0, 0..50), (1, 50..190), (2, 190..197)] {
        let case = Case { lengths: vec![range.len()], ..together.clone() };
        let cut = |x: &[f32], width: usize| x[range.start * width..range.end * width].to_vec();
        let alone = Numbers {
            boundaries: vec![0, range.len()],
            q: cut(&numbers.q, width),
            k: cut(&numbers.k, kv_width),
            v: cut(&numbers.v, kv_width),
            d_out: cut(&numbers.d_out, width),
            keys: vec![numbers.keys[sequence]],
            ..Numbers::of(&case)
        };
        let lse = |x: &[f32], tokens: usize, range: std::ops::Range<usize>| -> Vec<f32> {
            x.chunks(tokens).flat_map(|head| head[range.clone()].to_vec()).collect()
        };
        let expected = vec![
            cut(&results[0], width),
            lse(&results[1], tokens, range.clone()),
            cut(&results[2], width),
            cut(&results[3], kv_width),
            cut(&results[4], kv_width),
        ];
        assert_eq!(bits(&alone.kernels(&case)[..5]), bits(&expected), "sequence {sequence}");
    }
}

#[test]
fn queries_that_see_nothing_are_zero() {
    let case = Case { window: Some(0), ..Case::plain(&[5], 1, 1, 4) };
    let results = Numbers::of(&case).kernels(&case);
    assert!(results[1].iter().all(|&lse| lse == f32::NEG_INFINITY));
    for (name, result) in NAMES.iter().zip(&results).filter(|(name, _)| **name != "lse") {
        assert!(result.iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let case = Case { causal: true, ..Case::plain(&[140], 1, 1, 8) };
    let mut numbers = Numbers::of(&case);
    numbers.q.iter_mut().for_each(|q| *q *= 1e4);
    let results = numbers.kernels(&case);
    let (out, _) = numbers.reference_forward(&case, &numbers.operands());
    assert!(results.iter().flatten().all(|x| x.is_finite()));
    // Scores near 1e4 carry errors near 1e-3, and so do the probabilities.
    assert_close("out", &results[0], &out, 1e-2);
}

#[test]
fn each_gradient_alone_is_the_same() {
    let case = Case { prefix_len: 3, causal: true, ..Case::plain(&[130, 5], 2, 2, 16) };
    let numbers = Numbers::of(&case);
    let all = numbers.kernels(&case);
    let attention = numbers.attention(&case);
    for wanted in 0..5 {
        let mut gradient = vec![f32::NAN; all[wanted + 2].len()];
        let mut slots = [None, None, None, None, None];
        slots[wanted] = Some(gradient.as_mut_slice());
        let [dq, dk, dv, d_prefix_keys, d_prefix_values] = slots;
        let gradients = AttentionGradients { dq, dk, dv, d_prefix_keys, d_prefix_values };
        attention.backward(numbers.saved(&all[0], &all[1]), gradients).unwrap();
        assert_eq!(bits(&[gradient]), bits(&all[wanted + 2..wanted + 3]), "{}", NAMES[wanted + 2]);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, mut out, mut lse) = ([0.0; 12], [0.0; 12], [0.0; 6]);
    let good = Attention::new(&[0, 3], 2, 2);
    good.forward(&x, &x, &x, &mut out, &mut lse).unwrap();
    let mut refused = |attention: Attention<'_>| attention.forward(&x, &x, &x, &mut out, &mut lse).unwrap_err();
    for boundaries in [&[][..], &[0], &[0, 2], &[1, 3], &[0, 2, 1, 3]] {
        let error = refused(Attention { boundaries, ..good });
        assert!(matches!(error, KernelError::Boundaries { .. }), "{boundaries:?}: {error}");
    }
    let error = refused(Attention { kv_heads: 0, ..good });
    assert!(matches!(error, KernelError::Parameter { parameter: "kv_heads", .. }));
    let error = refused(Attention { head_dim: 0, ..good });
    assert!(matches!(error, KernelError::Parameter { parameter: "head_dim", .. }));
    let error = refused(Attention { kv_heads: 1, ..good });
    assert!(matches!(error, KernelError::Boundaries { operand: "key_boundaries", .. }));
    let error = refused(Attention { prefix: Some(Prefix { keys: &x, values: &x[..4] }), ..good });
    assert!(matches!(error, KernelError::Length { operand: "prefix.values", .. }));
    let error = refused(Attention { bias: Some(Bias { values: &x, max_queries: 1, max_keys: 6 }), ..good });
    assert!(matches!(error, KernelError::Length { operand: "bias.values", .. }));
    let error = refused(Attention { dropout: Some(AttentionDropout { probability: 0.1, keys: &[] }), ..good });
    assert!(matches!(error, KernelError::Length { operand: "dropout.keys", .. }));
    let error = refused(Attention { dropout: Some(AttentionDropout { probability: 1.0, keys: &[1] }), ..good });
    assert!(matches!(error, KernelError::Parameter { parameter: "probability", .. }));
    let error = good.forward(&x, &x, &x, &mut out, &mut []).unwrap_err();
    assert!(matches!(error, KernelError::Length { operand: "lse", .. }));
    let mut short = [0.0; 11];
    let saved = AttentionBackward { q: &x, k: &x, v: &x, out: &x, lse: &lse, d_out: &x };
    let gradients = AttentionGradients { dk: Some(&mut short), ..AttentionGradients::default() };
    assert!(matches!(good.backward(saved, gradients), Err(KernelError::Length { operand: "dk", .. })));
}
