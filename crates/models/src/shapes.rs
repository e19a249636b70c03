//! Shapes of well-known models, by name: their `config.json` without any weights.

use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::{ModelConfig, ModelError};

/// `config.json` of each, without what changes no shape.
static SHAPES: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let shapes = serde_json::from_str(include_str!("shapes.json"));
    shapes.expect("the project's own file is an object")
});

/// The names there are, in order.
pub fn names() -> Vec<&'static str> {
    SHAPES.keys().map(String::as_str).collect()
}

/// The configuration of a well-known model; none if the name is not known.
///
/// # Errors
/// As [`ModelConfig::parse`].
pub fn config(name: &str) -> Option<Result<ModelConfig, ModelError>> {
    let text = SHAPES.get(name)?.to_string();
    Some(ModelConfig::parse(Path::new(name), text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::Precision;

    use super::{config, names};
    use crate::{HeadKind, random_model};

    /// Numbers of parameters of the bases without heads, as transformers counts them
    /// (`AutoModel.from_config(...).num_parameters()`), RoBERTa's without the pooler, which its
    /// classifier lacks.
    #[test]
    fn shapes_have_the_published_numbers_of_parameters() {
        let published = [
            ("bert-base-uncased", 109_482_240),
            ("bert-large-uncased", 335_141_888),
            ("all-MiniLM-L6-v2", 22_713_216),
            ("roberta-base", 124_055_040),
            ("roberta-large", 354_310_144),
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("t5-small", 60_506_624),
            ("t5-base", 222_903_552),
            ("t5-large", 737_668_096),
            ("t0-3b", 2_783_959_040),
            ("bart-base", 139_420_416),
            ("bart-large", 406_291_456),
            ("llama-7b", 6_607_343_616),
            ("llama-2-7b", 6_607_343_616),
            ("llama-3-8b", 7_504_924_672),
            ("mistral-7b", 7_110_660_096),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-0.6b", 596_049_920),
        ];
        assert_eq!(published.len(), names().len());
        for (name, expected) in published {
            let config = config(name).expect(name).unwrap();
            let head = HeadKind::Classification { labels: 2 };
            let model = random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap();
            assert_eq!(model.base().count(), expected, "{name}");
        }
    }
}
