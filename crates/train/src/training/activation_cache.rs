//! The activation cache: hidden states that are the same in every epoch, computed once.
//!
//! Where nothing below layer k is trained and no dropout is on there, the input of layer k is a
//! function of the text alone. It is computed when a text is first seen and kept, in memory or in a
//! file. A row's states do not depend on the other rows of its batch, so training gives the same
//! bytes as without the cache.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::FileError;
use epiphyte_models::{Adapter, AdapterBatch, Entry, Hidden, Hook, Model, Tokens};
use epiphyte_ops::Sequences;
use serde::{Deserialize, Serialize};

use crate::memory;

/// Where hidden states are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationCacheKind {
    /// In memory if they fit, else in a file if they fit, else nowhere.
    #[default]
    Auto,
    /// In memory, as many as the budget allows.
    Memory,
    /// In a file of the output directory, as many as the budget allows.
    Disk,
    /// Nowhere.
    Off,
}

/// States that enter a layer, by text.
#[derive(Debug)]
pub(crate) struct ActivationCache {
    layer: usize,
    device: Device,
    slots: HashMap<Vec<u32>, Slot>,
    store: Store,
    /// Bytes that may still be kept.
    left: u64,
}

/// Where a text's states lie: the first value's number, and how many there are.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u64,
    values: usize,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<Vec<f32>>),
    Disk(Spill),
}

/// A file of states, without a name: the system removes it when the process ends.
#[derive(Debug)]
struct Spill {
    /// The directory on whose disk it lies.
    directory: PathBuf,
    file: File,
    values: u64,
}

/// The base model whose positions start behind a prefix.
struct PositionOffset(usize);

impl Adapter for PositionOffset {
    fn prefix_length(&self, _decoder: bool) -> usize {
        self.0
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

impl ActivationCache {
    /// A cache for what enters layer `layer`, `bytes` in all if everything is kept; none where
    /// `kind` says so or, under [`ActivationCacheKind::Auto`], where they fit nowhere. The file
    /// lies in `dir`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn new(
        kind: ActivationCacheKind,
        layer: usize,
        bytes: u64,
        budget: u64,
        dir: &Path,
        device: &Device,
    ) -> Result<Option<Self>, FileError> {
        let room = memory::available_bytes().map_or(budget, |available| budget.min(available / 2));
        let in_memory = match kind {
            ActivationCacheKind::Off => return Ok(None),
            ActivationCacheKind::Memory => true,
            ActivationCacheKind::Disk => false,
            ActivationCacheKind::Auto if bytes <= room => true,
            ActivationCacheKind::Auto if bytes <= budget => false,
            ActivationCacheKind::Auto => {
                tracing::info!(
                    "the states below layer {layer} would take {bytes} bytes and are computed anew in each epoch: \
                     raise --activation-cache-budget to keep them"
                );
                return Ok(None);
            }
        };
        let store = match in_memory {
            true => Store::Memory(Vec::new()),
            false => Store::Disk(Spill::new(dir)?),
        };
        tracing::info!(
            "what enters layer {layer} is computed once for each example and kept {}",
            if in_memory { "in memory" } else { "in a file" }
        );
        Ok(Some(Self {
            layer,
            device: device.clone().inner(),
            slots: HashMap::new(),
            store,
            left: budget,
        }))
    }

    /// The layer that the states enter.
    pub(crate) fn layer(&self) -> usize {
        self.layer
    }

    /// The input of the layer for the entry's sequences, computed for the texts that are new.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn states(&mut self, model: &Model, entry: &Entry<'_>) -> Result<Hidden, FileError> {
        let (tokens, offset) = (entry.tokens, entry.adapter.prefix_length(false));
        let size = model.base().dimensions.hidden_size;
        let rows = |index: usize| tokens.sequences.range(&(index..index + 1));
        let keys: Vec<Vec<u32>> = (0..tokens.sequences.count())
            .map(|index| {
                let (ids, type_ids) = (&tokens.ids[rows(index)], &tokens.type_ids[rows(index)]);
                [&[offset as u32], ids, type_ids].concat()
            })
            .collect();
        let new: Vec<usize> = (0..keys.len())
            .filter(|&index| !self.slots.contains_key(&keys[index]))
            .collect();
        let computed = self.compute(model, tokens, offset, &new);
        let mut fresh = HashMap::new();
        let mut start = 0;
        for &index in &new {
            let values = &computed[start..][..rows(index).len() * size];
            start += values.len();
            self.keep(&keys[index], values);
            fresh.insert(index, values);
        }
        let mut states = Vec::with_capacity(tokens.ids.len() * size);
        for (index, key) in keys.iter().enumerate() {
            match fresh.get(&index) {
                Some(values) => states.extend_from_slice(values),
                None => self.read(self.slots[key], &mut states)?,
            }
        }
        let states = TensorData::new(states, [tokens.ids.len(), size]);
        let states = Tensor::from_data(states, &self.device);
        let hidden = Hidden::new(states, tokens.sequences.clone());
        Ok(model.backbone().prepare(hidden, offset))
    }

    /// The states of some of the sequences, computed.
    fn compute(
        &self,
        model: &Model,
        tokens: &Tokens<'_>,
        offset: usize,
        which: &[usize],
    ) -> Vec<f32> {
        if which.is_empty() {
            return Vec::new();
        }
        let (mut ids, mut type_ids, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
        for &index in which {
            let rows = tokens.sequences.range(&(index..index + 1));
            ids.extend_from_slice(&tokens.ids[rows.clone()]);
            type_ids.extend_from_slice(&tokens.type_ids[rows]);
            boundaries.push(ids.len());
        }
        let tokens = Tokens::new(&ids, &type_ids, Sequences::new(boundaries));
        let adapter = PositionOffset(offset);
        let batch = AdapterBatch::single(&adapter, &tokens);
        let hidden = model.embed(&batch.entries()[0]);
        let hidden = model.run(0..self.layer, hidden, None, &batch);
        let values = hidden.states.try_into_vec_as::<f32>();
        values.expect("states are f32 on a device that can be read")
    }

    /// Keeps a text's states if there is room.
    fn keep(&mut self, key: &[u32], values: &[f32]) {
        let bytes = 4 * values.len() as u64;
        if bytes > self.left || self.slots.contains_key(key) {
            return;
        }
        let start = match &mut self.store {
            Store::Memory(kept) => {
                kept.push(values.to_vec());
                kept.len() as u64 - 1
            }
            Store::Disk(spill) => match spill.append(values) {
                Ok(start) => start,
                Err(error) => {
                    tracing::warn!(
                        "the activation cache in `{}` cannot take more, so other states are computed anew \
                         in each epoch: {error}",
                        spill.directory.display()
                    );
                    self.left = 0;
                    return;
                }
            },
        };
        self.left -= bytes;
        let values = values.len();
        self.slots.insert(key.to_vec(), Slot { start, values });
    }

    fn read(&mut self, slot: Slot, into: &mut Vec<f32>) -> Result<(), FileError> {
        match &mut self.store {
            Store::Memory(kept) => into.extend_from_slice(&kept[slot.start as usize]),
            Store::Disk(spill) => {
                let read = spill.read(slot, into);
                read.map_err(FileError::at("read a file in", &spill.directory))?;
            }
        }
        Ok(())
    }
}

impl Spill {
    fn new(directory: &Path) -> Result<Self, FileError> {
        let file = tempfile::tempfile_in(directory);
        Ok(Self {
            directory: directory.to_owned(),
            file: file.map_err(FileError::at("create a file in", directory))?,
            values: 0,
        })
    }

    fn append(&mut self, values: &[f32]) -> io::Result<u64> {
        let start = self.values;
        self.file.seek(SeekFrom::Start(4 * start))?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.file.write_all(&bytes)?;
        self.values += values.len() as u64;
        Ok(start)
    }

    fn read(&mut self, slot: Slot, into: &mut Vec<f32>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(4 * slot.start))?;
        let mut bytes = vec![0; 4 * slot.values];
        self.file.read_exact(&mut bytes)?;
        let values = bytes.chunks_exact(4);
        into.extend(
            values.map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_models::{HeadKind, Identity, ModelConfig, random_model};
    use epiphyte_ops::Precision;
    use serde_json::json;

    use super::*;

    fn model(seed: u64) -> Model {
        let config = json!({
            "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
        });
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        let (config, device) = (config.unwrap(), Device::default());
        let head = HeadKind::Classification { labels: 2 };
        random_model(&config, head, &device, Precision::F32, seed).unwrap()
    }

    const IDS: [u32; 9] = [3, 4, 5, 6, 3, 4, 5, 8, 9];
    const TYPE_IDS: [u32; 9] = [0, 0, 0, 0, 0, 0, 1, 0, 0];

    fn tokens(boundaries: &[usize]) -> Tokens<'static> {
        let count = boundaries[boundaries.len() - 1];
        let sequences = Sequences::new(boundaries.to_vec());
        Tokens::new(&IDS[..count], &TYPE_IDS[..count], sequences)
    }

    fn cache(kind: ActivationCacheKind, budget: u64, dir: &Path) -> ActivationCache {
        let cache = ActivationCache::new(kind, 2, 0, budget, dir, &Device::default());
        cache.unwrap().expect("a cache was asked for")
    }

    fn values(hidden: Hidden) -> Vec<f32> {
        hidden.states.try_into_vec_as::<f32>().unwrap()
    }

    fn computed(model: &Model, tokens: &Tokens<'_>) -> Vec<f32> {
        let batch = AdapterBatch::base(tokens);
        let hidden = model.embed(&batch.entries()[0]);
        values(model.run(0..2, hidden, None, &batch))
    }

    /// What the cache returns for the base without adapter.
    fn kept(cache: &mut ActivationCache, model: &Model, tokens: &Tokens<'_>) -> Vec<f32> {
        let batch = AdapterBatch::single(&Identity, tokens);
        values(cache.states(model, &batch.entries()[0]).unwrap())
    }

    /// A model with other weights shows where states come from.
    #[test]
    fn what_is_kept_is_not_computed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, other) = (model(1), model(2));
        for kind in [ActivationCacheKind::Memory, ActivationCacheKind::Disk] {
            let mut cache = cache(kind, 1 << 20, dir.path());
            let before = computed(&first, &tokens(&[0, 4, 7]));
            assert_eq!(kept(&mut cache, &first, &tokens(&[0, 4, 7])), before);
            let both = kept(&mut cache, &other, &tokens(&[0, 4, 7, 9]));
            assert_eq!(both[..before.len()], before);
            let new = computed(&other, &tokens(&[0, 4, 7, 9]));
            assert_eq!(both[before.len()..], new[before.len()..]);
        }
    }

    /// The same words in other segments are another text.
    #[test]
    fn segments_tell_texts_apart() {
        let dir = tempfile::tempdir().unwrap();
        let model = model(1);
        let mut cache = cache(ActivationCacheKind::Memory, 1 << 20, dir.path());
        let sequences = || Sequences::new(vec![0, 3]);
        for type_ids in [[0, 0, 0], [0, 0, 1]] {
            let tokens = Tokens::new(&IDS[..3], &type_ids, sequences());
            let states = kept(&mut cache, &model, &tokens);
            assert_eq!(states, computed(&model, &tokens));
        }
    }

    #[test]
    fn no_more_than_the_budget_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (first, other) = (model(1), model(2));
        // Room for the first text, of four tokens.
        let mut cache = cache(ActivationCacheKind::Disk, 4 * 4 * 16, dir.path());
        let texts = tokens(&[0, 4, 7]);
        let before = kept(&mut cache, &first, &texts);
        let after = kept(&mut cache, &other, &texts);
        assert_eq!(after[..64], before[..64]);
        assert_eq!(after[64..], computed(&other, &texts)[64..]);
        let Store::Disk(spill) = &cache.store else {
            panic!("a cache on the disk was asked for");
        };
        assert_eq!(spill.file.metadata().unwrap().len(), 4 * 4 * 16);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
