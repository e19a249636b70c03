//! A text that is read piece by piece, with a cache, gives what it gives at once.

use std::cell::Cell;

use epiphyte_models::{Adapter, AdapterBatch, Cache, DecoderTokens, Entry, HeadKind, Mode, Tokens};
use epiphyte_ops::Sequences;
use serde_json::json;

use crate::support::{IDS, case, chosen_method, distance, everywhere, model, perturb, to_vec};

const SOURCE: [u32; 7] = [8, 3, 22, 14, 1, 17, 6];
const TYPE_IDS: [u32; IDS.len()] = [0; IDS.len()];

#[test]
fn cached_logits_are_those_of_the_whole_text() {
    // Of decoders and of encoder-decoders.
    let counts = [Cell::new(0), Cell::new(0)];
    everywhere(|name, _, on, module| {
        if on.head != HeadKind::LanguageModel {
            return;
        }
        let encodes = on.model.base().dimensions.encoder_layers > 0;
        let count = &counts[usize::from(encodes)];
        count.set(count.get() + 1);
        perturb(&module);
        // An encoder-decoder writes about another text.
        let source = Tokens::new(&SOURCE, &TYPE_IDS[..7], Sequences::new(vec![0, 7]));
        let whole = Sequences::new(vec![0, IDS.len()]);
        let whole = match encodes {
            true => Tokens {
                decoder: Some(DecoderTokens {
                    ids: &IDS,
                    sequences: whole,
                }),
                ..source.clone()
            },
            false => Tokens::new(&IDS, &TYPE_IDS, whole),
        };
        let whole = to_vec(on.model.logits(&whole, &module));
        let cache = Cache::new();
        let mut cached = Vec::new();
        for ids in [&IDS[..5], &IDS[5..6], &IDS[6..7], &IDS[7..]] {
            let tokens = match encodes {
                true => Tokens {
                    decoder: Some(DecoderTokens::continuing(ids, &cache)),
                    cache: Some(&cache),
                    ..source.clone()
                },
                false => Tokens::continuing(ids, &TYPE_IDS[..ids.len()], &cache),
            };
            cached = to_vec(on.model.logits(&tokens, &module));
        }
        let difference = distance(&whole, &cached);
        match module.reads_whole_sequences() || module.first_pass().is_some() {
            true => assert!(difference > 1e-5, "{name} could be cached"),
            false => assert!(difference < 1e-5, "{name}: {difference}"),
        }
    });
    let enough = counts.iter().all(|count| count.get() > 10);
    assert!(enough || chosen_method().is_some(), "{counts:?}");
}

/// Several texts of different lengths, one of them new, in one pass.
#[test]
fn texts_that_are_read_together_are_as_alone() {
    let on = model("llama", HeadKind::LanguageModel);
    for method in ["lora", "prefix-tuning", "prompt-tuning"] {
        let module = case(method, json!({})).tune(&on).unwrap();
        perturb(&module);
        let texts = [(4, &IDS[..7]), (6, &IDS[2..9]), (0, &IDS[8..])];
        let caches = texts.map(|(read, ids)| {
            let cache = Cache::new();
            if read > 0 {
                let tokens = Tokens::continuing(&ids[..read], &TYPE_IDS[..read], &cache);
                on.model.logits(&tokens, &module);
            }
            cache
        });
        let logits = |which: std::ops::Range<usize>| {
            // Reading extends a cache; a copy is as it was.
            let caches: Vec<Cache> = caches[which.clone()].to_vec();
            let tokens: Vec<Tokens<'_>> = texts[which]
                .iter()
                .zip(&caches)
                .map(|(&(read, ids), cache)| {
                    Tokens::continuing(&ids[read..], &TYPE_IDS[read..ids.len()], cache)
                })
                .collect();
            let entries = tokens.iter().map(|tokens| Entry {
                adapter: &module,
                tokens,
                mode: Mode::Evaluation,
                streams: &[],
            });
            to_vec(on.model.batch_logits(&AdapterBatch::new(entries)))
        };
        let alone: Vec<f32> = (0..3).flat_map(|text| logits(text..text + 1)).collect();
        let together = logits(0..3);
        assert!(distance(&alone, &together) < 1e-6, "{method}");
    }
}
