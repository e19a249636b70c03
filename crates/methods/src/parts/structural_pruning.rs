//! Structural pruning: which rows and columns of each layer a smaller copy of it keeps.
//!
//! Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710, as Sung, Cho,
//! Bansal, "LST", NeurIPS 2022, arXiv 2206.06522, section 3.3, apply it to a transformer, by the
//! index path of their code: the embeddings keep the channels of largest importance; what a linear
//! layer reads is restricted to what the tensor before it kept, and its own rows of largest
//! importance are kept. The importance of a row is the sum of its values' importances.
//!
//! Where this differs from that code: rows of queries, keys and values are chosen within each head,
//! so that a kept row of a query still meets that of its key, query heads that share keys keep the
//! same rows, and with rotary positions both rows of a pair are kept. Both stacks of an
//! encoder-decoder begin with the channels of the embeddings, and keys and values of
//! cross-attention read what the encoder's last layer kept.

use std::collections::BTreeMap;

use epiphyte_models::blocks::{AttentionShape, LayerShape, NormPlacement, Projections};
use epiphyte_models::{Base, BaseTensor};

/// What is kept of each tensor of the layers, by the tensor's name.
#[derive(Clone, Debug)]
pub struct Pruning(BTreeMap<String, Kept>);

/// Numbers of the outputs that are kept, and of the inputs for a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    outputs: Vec<usize>,
    inputs: Option<Vec<usize>>,
}

impl Pruning {
    /// Chooses what layers of the shapes `small` keep of the base's layers, one shape for each, by
    /// the `importance` of each value of a tensor, in the order in which Hugging Face stores it.
    ///
    /// # Panics
    /// If there are not as many shapes as the base [names layers](Base::layer_names).
    pub fn new(
        base: &Base,
        small: &[LayerShape],
        importance: &dyn Fn(&str, &BaseTensor) -> Vec<f32>,
    ) -> Self {
        assert_eq!(base.layer_names().len(), small.len(), "a shape a layer");
        let mut path = IndexPath {
            base,
            importance,
            kept: BTreeMap::new(),
        };
        let words = path.scores(&base.word_embeddings);
        let size = small.first().map_or(0, |shape| shape.hidden_size);
        let embedded = largest(&words.sums_of_columns(), size);
        let encoder_layers = base.dimensions.encoder_layers;
        let (mut channels, mut encoded) = (embedded.clone(), Vec::new());
        for (index, small) in small.iter().enumerate() {
            if index > 0 && index == encoder_layers {
                encoded = std::mem::replace(&mut channels, embedded.clone());
            }
            channels = path.layer(index, small, channels, &encoded);
        }
        Self(path.kept)
    }

    /// What is kept of a tensor of the base, in the order in which Hugging Face stores it.
    ///
    /// # Panics
    /// If no layer has the tensor.
    pub fn values(&self, base: &Base, name: &str) -> Vec<f32> {
        let (kept, tensor) = (&self.0[name], &base.tensors()[name]);
        let values = tensor.to_vec();
        let Some(inputs) = &kept.inputs else {
            return kept.outputs.iter().map(|&at| values[at]).collect();
        };
        let matrix = Matrix::new(base, name, values);
        let at = |output: usize, input: usize| matrix.values[output * matrix.columns + input];
        let outputs = kept.outputs.iter();
        if is_transposed(base, name) {
            let inputs = inputs.iter();
            return inputs
                .flat_map(|&input| kept.outputs.iter().map(move |&output| at(output, input)))
                .collect();
        }
        outputs
            .flat_map(|&output| inputs.iter().map(move |&input| at(output, input)))
            .collect()
    }
}

/// The importance of a matrix's values: a linear layer's as `[out, in]`, a table's as `[rows,
/// hidden]`.
struct Matrix {
    values: Vec<f32>,
    columns: usize,
}

impl Matrix {
    fn new(base: &Base, name: &str, values: Vec<f32>) -> Self {
        let shape = base.tensors()[name].shape();
        let columns = shape.last().copied().unwrap_or(1);
        if !is_transposed(base, name) {
            return Self { values, columns };
        }
        let (inputs, outputs) = (shape[0], columns);
        let mut ordered = vec![0.0; values.len()];
        for (input, row) in values.chunks(outputs).enumerate() {
            for (output, &value) in row.iter().enumerate() {
                ordered[output * inputs + input] = value;
            }
        }
        Self {
            values: ordered,
            columns: inputs,
        }
    }

    fn sums_of_columns(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in self.values.chunks(self.columns.max(1)) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += f64::from(value);
            }
        }
        sums
    }

    /// The values of a row in these columns.
    fn row<'a>(&'a self, row: usize, columns: &'a [usize]) -> impl Iterator<Item = f64> + 'a {
        let row = &self.values[row * self.columns..][..self.columns];
        columns.iter().map(|&column| f64::from(row[column]))
    }

    fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    fn sums_of_rows(&self, columns: &[usize]) -> Vec<f64> {
        let rows = 0..self.rows();
        rows.map(|row| self.row(row, columns).sum()).collect()
    }
}

/// Whether Hugging Face stores the weight of this name as `[in, out]`.
fn is_transposed(base: &Base, name: &str) -> bool {
    let path = name.strip_suffix(".weight");
    let mut linears = base.linears().iter();
    let linear = linears.find(|linear| Some(linear.site.path.as_str()) == path);
    linear.is_some_and(|linear| linear.transposed)
}

/// The numbers of the `count` largest scores, in ascending order; of equal ones the lower number.
fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Follows the base's tensors and notes what each keeps.
struct IndexPath<'a> {
    base: &'a Base,
    importance: &'a dyn Fn(&str, &BaseTensor) -> Vec<f32>,
    kept: BTreeMap<String, Kept>,
}

impl IndexPath<'_> {
    fn scores(&self, name: &str) -> Matrix {
        let tensor = &self.base.tensors()[name];
        Matrix::new(self.base, name, (self.importance)(name, tensor))
    }

    /// One layer, whose input has these channels, as the encoder's output has `encoded`; returns
    /// those of its output.
    fn layer(
        &mut self,
        index: usize,
        small: &LayerShape,
        channels: Vec<usize>,
        encoded: &[usize],
    ) -> Vec<usize> {
        let (path, names) = &self.base.layer_names()[index];
        let large = &self.base.layer_shapes()[index];
        let at = |name: &str| format!("{path}.{name}");
        let placement = large.placement;

        let self_attention = (
            &names.attention,
            names.attention_norm,
            [Some(&large.attention), Some(&small.attention)],
            None,
        );
        let cross = names.cross_attention.as_ref().map(|(attention, norm)| {
            let shapes = [large, small].map(|shape| shape.cross_attention.as_ref());
            (attention, *norm, shapes, Some(encoded))
        });
        let mut channels = channels;
        for (attention, norm, shapes, read) in [Some(self_attention), cross].into_iter().flatten() {
            let [Some(large), Some(small_attention)] = shapes else {
                continue;
            };
            if placement == NormPlacement::Before {
                self.keep(&at(norm), &channels, None);
            }
            let inputs = [attention.query, attention.key, attention.value].map(at);
            let read = read.unwrap_or(&channels);
            let heads = self.attention(&inputs, [large, small_attention], [&channels, read]);
            let output = at(attention.output);
            channels = self.keep_largest(&[&output], small.hidden_size, &heads);
            if placement == NormPlacement::After {
                self.keep(&at(norm), &channels, None);
            }
        }
        if placement == NormPlacement::Before {
            self.keep(&at(names.feed_forward_norm), &channels, None);
        }

        let feed_forward = &names.feed_forward;
        let gate = feed_forward.gate.filter(|_| large.feed_forward.gated);
        let up: Vec<String> = gate.into_iter().chain([feed_forward.up]).map(at).collect();
        let up: Vec<&String> = up.iter().collect();
        let size = small.feed_forward.intermediate_size;
        let intermediate = self.keep_largest(&up, size, &channels);
        let down = at(feed_forward.down);
        let channels = self.keep_largest(&[&down], small.hidden_size, &intermediate);
        if placement == NormPlacement::After {
            self.keep(&at(names.feed_forward_norm), &channels, None);
        }
        channels
    }

    /// Queries, which read the first `channels`, keys and values, which read the second; returns
    /// the kept rows of the queries, which the output reads.
    fn attention(
        &mut self,
        [query, key, value]: &[String; 3],
        [large, small]: [&AttentionShape; 2],
        [channels, read]: [&[usize]; 2],
    ) -> Vec<usize> {
        let fused = large.projections == Projections::FusedConv1d;
        let (q_size, kv_size) = (large.query_size(), large.kv_size());
        let starts = match fused {
            true => [0, q_size, q_size + kv_size],
            false => [0; 3],
        };
        let matrices = match fused {
            true => vec![self.scores(&format!("{query}.weight"))],
            false => [query, key, value]
                .map(|it| self.scores(&format!("{it}.weight")))
                .into(),
        };
        let [q, k, v] = [0, 1, 2].map(|which| &matrices[which % matrices.len()]);
        let (dim, group) = (large.head_dim, large.heads / large.kv_heads);
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for kv_head in 0..large.kv_heads {
            let score = |at: usize| -> f64 {
                let shared = kv_head * dim + at;
                let heads = kv_head * group..(kv_head + 1) * group;
                let products = heads.flat_map(|head| {
                    let q = q.row(starts[0] + head * dim + at, channels);
                    let k = k.row(starts[1] + shared, read);
                    let v = v.row(starts[2] + shared, read);
                    q.zip(k).zip(v).map(|((q, k), v)| q * k * v)
                });
                products.sum()
            };
            let rows = match large.rotary {
                false => largest(&(0..dim).map(score).collect::<Vec<_>>(), small.head_dim),
                true => {
                    let pairs = 0..dim / 2;
                    let scores: Vec<f64> =
                        pairs.map(|at| score(at) + score(at + dim / 2)).collect();
                    let pairs = largest(&scores, small.head_dim / 2);
                    let second = pairs.iter().map(|at| at + dim / 2);
                    pairs.iter().copied().chain(second).collect()
                }
            };
            keys.extend(rows.iter().map(|at| kv_head * dim + at));
            for head in kv_head * group..(kv_head + 1) * group {
                queries.extend(rows.iter().map(|at| head * dim + at));
            }
        }
        let from = |start: usize, rows: &[usize]| -> Vec<usize> {
            rows.iter().map(|row| start + row).collect()
        };
        let rows = [&queries, &keys, &keys];
        let rows = [0, 1, 2].map(|which| from(starts[which], rows[which]));
        if fused {
            self.keep(query, &rows.concat(), Some(channels));
        } else {
            let inputs = [channels, read, read];
            for ((name, rows), inputs) in [query, key, value].into_iter().zip(rows).zip(inputs) {
                self.keep(name, &rows, Some(inputs));
            }
        }
        queries
    }

    /// Keeps, of linear layers that read `inputs`, the outputs of largest importance.
    fn keep_largest(&mut self, paths: &[&String], count: usize, inputs: &[usize]) -> Vec<usize> {
        let matrices = paths
            .iter()
            .map(|path| self.scores(&format!("{path}.weight")));
        let matrices: Vec<Matrix> = matrices.collect();
        let scores: Vec<f64> = match &matrices[..] {
            [one] => one.sums_of_rows(inputs),
            several => {
                let rows = 0..several[0].rows();
                let product = |row: usize| {
                    let mut product = vec![1.0; inputs.len()];
                    for matrix in several {
                        for (value, more) in product.iter_mut().zip(matrix.row(row, inputs)) {
                            *value *= more;
                        }
                    }
                    product.iter().sum()
                };
                rows.map(product).collect()
            }
        };
        let outputs = largest(&scores, count);
        for path in paths {
            self.keep(path, &outputs, Some(inputs));
        }
        outputs
    }

    /// Notes what the weight and the bias of a module keep.
    fn keep(&mut self, path: &str, outputs: &[usize], inputs: Option<&[usize]>) {
        for (name, inputs) in [("weight", inputs), ("bias", None)] {
            let name = format!("{path}.{name}");
            if self.base.tensor(&name).is_some() {
                let kept = Kept {
                    outputs: outputs.to_vec(),
                    inputs: inputs.map(<[usize]>::to_vec),
                };
                self.kept.insert(name, kept);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, ModelConfig, random_model};
    use epiphyte_ops::Precision;
    use serde_json::json;

    use super::*;

    fn base() -> Base {
        let config = json!({
            "model_type": "bert", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 6, "max_position_embeddings": 4,
        });
        let config = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), config.as_bytes()).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        let model = random_model(&config, head, &Device::default(), Precision::F32, 3).unwrap();
        model.base().clone()
    }

    /// Importances by hand: which row matters follows from what the tensor before it kept.
    #[test]
    fn each_tensor_reads_what_the_one_before_it_kept() {
        let base = base();
        let mut small = base.layer_shapes()[0].clone();
        small.hidden_size = 2;
        small.attention.head_dim = 1;
        small.feed_forward.intermediate_size = 3;
        let importance = |name: &str, tensor: &BaseTensor| {
            let shape = tensor.shape();
            let columns = shape.last().copied().unwrap();
            let at = |row: usize, column: usize| -> f32 {
                let last = name.rsplit("layer.0.").next().unwrap();
                f32::from(match last {
                    // Channels 1 and 2 are the largest; column 0 of the keys would mislead.
                    "bert.embeddings.word_embeddings.weight" => [0u8, 3, 2, 1][column],
                    "attention.self.query.weight" => [1, 2, 4, 3][row],
                    "attention.self.key.weight" => [9, 1, 1, 0][column] * [5, 1, 1, 1][row],
                    "attention.self.value.weight" => 1,
                    // Columns 0 and 2 are read: the first row of either head.
                    "attention.output.dense.weight" => {
                        [[0, 9, 0, 9], [1, 0, 1, 0], [0, 0, 0, 0], [2, 0, 2, 0]][row][column]
                    }
                    "intermediate.dense.weight" => {
                        u8::try_from(row).unwrap() * [9, 1, 9, 1][column]
                    }
                    "output.dense.weight" => {
                        [[0, 0, 0, 0, 0, 1], [0; 6], [0, 0, 0, 7, 0, 0], [0; 6]][row][column]
                    }
                    _ => 0,
                })
            };
            let count = tensor.count();
            (0..count)
                .map(|place| at(place / columns, place % columns))
                .collect()
        };
        let kept = Pruning::new(&base, &[small], &importance).0;
        let of = |name: &str| {
            let kept = &kept[&format!("bert.encoder.layer.0.{name}")];
            (kept.outputs.clone(), kept.inputs.clone())
        };
        let read = |inputs: &[usize]| Some(inputs.to_vec());
        for name in ["query", "key", "value"] {
            let weight = of(&format!("attention.self.{name}.weight"));
            assert_eq!(weight, (vec![0, 2], read(&[1, 2])), "{name}");
            assert_eq!(
                of(&format!("attention.self.{name}.bias")),
                (vec![0, 2], None)
            );
        }
        let output = of("attention.output.dense.weight");
        assert_eq!(output, (vec![1, 3], read(&[0, 2])));
        assert_eq!(of("attention.output.LayerNorm.bias"), (vec![1, 3], None));
        let up = of("intermediate.dense.weight");
        assert_eq!(up, (vec![3, 4, 5], read(&[1, 3])));
        let down = of("output.dense.weight");
        assert_eq!(down, (vec![0, 2], read(&[3, 4, 5])));
        assert_eq!(of("output.LayerNorm.weight"), (vec![0, 2], None));
    }

    #[test]
    fn values_are_those_of_the_rows_and_columns() {
        let base = base();
        let name = "bert.encoder.layer.0.intermediate.dense.weight";
        let kept = Kept {
            outputs: vec![2, 5],
            inputs: Some(vec![0, 3]),
        };
        let pruning = Pruning([(name.to_owned(), kept)].into());
        let all = base.tensor(name).unwrap().to_vec();
        let expected = [all[8], all[11], all[20], all[23]];
        assert_eq!(pruning.values(&base, name), expected);
    }
}
