//! Weights in 4 and 8 bits: against bitsandbytes and gguf bit for bit, and their products against
//! those of the decoded weight, on every instruction set that this processor has.

use std::ops::Range;
use std::sync::Arc;

use epiphyte_kernels::gemm::{Epilogue, PackedWeight, Precision};
use epiphyte_kernels::quantized::{Format, QuantizedWeight, Scales};
use epiphyte_kernels::{Isa, KernelError};

const FORMATS: [(&str, Format); 4] = [
    ("nf4", Format::Nf4),
    ("fp4", Format::Fp4),
    ("int8", Format::Int8),
    ("int4", Format::Int4),
];

/// Pseudo-random values by a multiplicative hash, in [-1, 1).
fn values(length: usize, seed: u32) -> Vec<f32> {
    (0..length as u32)
        .map(|i| {
            let mut z = (i ^ seed.rotate_left(16)).wrapping_mul(0x9e37_79b9);
            z = (z ^ z >> 15).wrapping_mul(0x85eb_ca6b);
            ((z ^ z >> 13) >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Blocks of 64: zeros, one outlier, subnormals, equal values, huge and tiny ones, bounds.
fn adversarial(length: usize) -> Vec<f32> {
    let mut x = values(length, 77);
    for (block, piece) in x.chunks_mut(64).enumerate() {
        match block % 8 {
            0 => piece.fill(0.0),
            1 => piece[5.min(piece.len() - 1)] = 1e6,
            2 => piece.iter_mut().for_each(|x| *x *= 1e-40),
            3 => piece.fill(0.3),
            4 => piece.iter_mut().for_each(|x| *x *= 3e4),
            5 => piece.fill(-0.0),
            6 => piece
                .iter_mut()
                .for_each(|x| *x = (*x * 8.0).round_ties_even() / 8.0),
            _ => piece.iter_mut().for_each(|x| *x *= 1e-38),
        }
    }
    x
}

fn quantize(weight: &[f32], [out, input]: [usize; 2], format: Format) -> QuantizedWeight {
    let rows = |rows: Range<usize>| &weight[rows.start * input..rows.end * input];
    QuantizedWeight::quantize(rows, [out, input], format)
}

fn decoded(weight: &QuantizedWeight) -> Vec<f32> {
    let [out, input] = weight.shape();
    let mut values = vec![f32::NAN; out * input];
    weight.decode(0, &mut values);
    values
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// What the reference says of an array: its bytes, or their 64-bit FNV-1a hash.
fn given(bytes: &[u8]) -> String {
    if bytes.len() <= 640 {
        return bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("fnv:{hash:016x}")
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn codes_scales_and_values_are_those_of_bitsandbytes_and_gguf() {
    let reference = include_str!("quantized_reference.txt");
    let mut compared = 0;
    for line in reference.lines() {
        let (case, arrays) = line.split_once(": ").unwrap();
        let [name, out, input, kind] = case.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{case}");
        };
        let (_, format) = FORMATS.into_iter().find(|(it, _)| *it == name).unwrap();
        let shape: [usize; 2] = [out, input].map(|size| size.parse().unwrap());
        let length = shape[0] * shape[1];
        let mut weight = match kind {
            "adversarial" => adversarial(length),
            seed => values(length, seed.parse().unwrap()),
        };
        if matches!(format, Format::Int8 | Format::Int4) {
            // Whose scales are f16.
            weight.iter_mut().for_each(|x| *x = x.clamp(-6e4, 6e4));
        }
        for isa in Isa::available() {
            let quantized = isa.with(|| quantize(&weight, shape, format));
            for array in arrays.split(' ') {
                let (what, expected) = array.split_once('=').unwrap();
                let bytes = match (what, quantized.scales()) {
                    ("codes", _) => quantized.codes().to_vec(),
                    ("values", _) => {
                        let mut values = isa.with(|| decoded(&quantized));
                        // Without the sign of zeros.
                        values.iter_mut().for_each(|value| *value += 0.0);
                        floats(&values)
                    }
                    ("largest", Scales::Of127(largest)) => floats(largest),
                    ("scales", Scales::F16(scales)) => {
                        scales.iter().flat_map(|it| it.to_le_bytes()).collect()
                    }
                    ("nested_codes", Scales::Nested(nested)) => nested.codes.clone(),
                    ("nested_scales", Scales::Nested(nested)) => floats(&nested.scales),
                    ("map", Scales::Nested(nested)) => floats(&nested.map),
                    ("offset", Scales::Nested(nested)) => floats(&[nested.offset]),
                    _ => panic!("{case}: {what}"),
                };
                assert_eq!(given(&bytes), expected, "{case}: {what}, {isa:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn values_are_decoded_from_any_place() {
    for (name, format) in FORMATS {
        let weight = quantize(&values(9 * 37, 6), [9, 37], format);
        for isa in Isa::available() {
            isa.with(|| {
                let all = decoded(&weight);
                for (first, length) in [(0, 1), (1, 1), (1, 70), (30, 100), (63, 66), (132, 201)] {
                    let mut piece = vec![f32::NAN; length];
                    weight.decode(first, &mut piece);
                    let expected = &all[first..first + length];
                    assert_eq!(bits(&piece), bits(expected), "{name} {isa:?} {first}");
                }
            });
        }
    }
}

/// Both directions have the bytes of the products over the decoded weight, for few rows and many,
/// whole squares and edges, in either precision.
#[test]
fn products_are_those_of_the_decoded_weight() {
    for (name, format) in FORMATS {
        for [out, input] in [
            [64, 128],
            [33, 45],
            [7, 1100],
            [40, 1056],
            [1090, 5],
            [1, 1],
        ] {
            let quantized = quantize(&values(out * input, 11), [out, input], format);
            let dense = decoded(&quantized);
            for precision in [Precision::F32, Precision::Bf16] {
                for isa in Isa::available() {
                    isa.with(|| {
                        let packed = PackedWeight::pack(&dense, out, input, precision).unwrap();
                        let quantized = PackedWeight::quantized(&quantized, precision);
                        let what = format!("{name} [{out}, {input}] {precision:?} {isa:?}");
                        assert_eq!(bits(&quantized.unpack()), bits(&packed.unpack()), "{what}");
                        let mut rows = [vec![0.0; input], vec![0.0; input]];
                        quantized.row(out - 1, &mut rows[0]).unwrap();
                        packed.row(out - 1, &mut rows[1]).unwrap();
                        assert_eq!(bits(&rows[0]), bits(&rows[1]), "{what}: a row");
                        for tokens in [1, 2, 3, 5, 8, 9, 40] {
                            let x = values(tokens * input, 12);
                            let products = [&quantized, &packed].map(|weight| {
                                let mut y = vec![f32::NAN; tokens * out];
                                weight.forward(&x, Epilogue::default(), &mut y).unwrap();
                                bits(&y)
                            });
                            assert_eq!(products[0], products[1], "{what}: {tokens} rows");
                            let g = values(tokens * out, 13);
                            let gradients = [&quantized, &packed].map(|weight| {
                                let mut dx = vec![0.5; tokens * input];
                                weight.backward_input(&g, None, &mut dx, true).unwrap();
                                bits(&dx)
                            });
                            assert_eq!(gradients[0], gradients[1], "{what}: {tokens} gradients");
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn a_weight_takes_its_bits_and_its_scales() {
    let shape = [256, 1024];
    let weight = values(shape[0] * shape[1], 1);
    let bits_of = |format| {
        let packed = PackedWeight::quantized(&quantize(&weight, shape, format), Precision::Bf16);
        (packed.bytes() * 8) as f64 / weight.len() as f64
    };
    assert!(bits_of(Format::Nf4) < 4.17);
    assert!(bits_of(Format::Fp4) < 4.17);
    assert!(bits_of(Format::Int8) < 8.04);
    assert!((bits_of(Format::Int4) - 4.5).abs() < 1e-9);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let codes = |count: usize| Arc::new(vec![0_u8; count]);
    let new = |count, block, scales: usize| {
        let scales = Scales::F32(vec![1.0; scales]);
        QuantizedWeight::new(Format::Nf4, [3, 5], codes(count), block, scales)
    };
    assert!(new(8, 4, 4).is_ok());
    assert!(matches!(
        new(7, 4, 4),
        Err(KernelError::Length {
            operand: "codes",
            ..
        })
    ));
    assert!(matches!(
        new(8, 4, 5),
        Err(KernelError::Length {
            operand: "scales",
            ..
        })
    ));
    assert!(matches!(
        new(8, 0, 4),
        Err(KernelError::Parameter {
            parameter: "block",
            ..
        })
    ));
}

#[test]
fn a_weight_without_rows_or_columns_has_products() {
    for (_, format) in FORMATS {
        for [out, input] in [[0, 5], [5, 0], [0, 0]] {
            let weight =
                PackedWeight::quantized(&quantize(&[], [out, input], format), Precision::F32);
            let mut y = vec![f32::NAN; 2 * out];
            weight
                .forward(&vec![1.0; 2 * input], Epilogue::default(), &mut y)
                .unwrap();
            assert_eq!(y, vec![0.0; 2 * out]);
        }
    }
}
