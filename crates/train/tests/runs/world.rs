//! A small model and small data in a temporary directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_data::{Fields, Table, Tokenizer};
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::{AdapterModule, Definition, METHODS, MethodError};
use epiphyte_models::adapter::Role;
use epiphyte_models::families::FAMILIES;
use epiphyte_models::{HeadKind, ModelConfig, random_model};
use epiphyte_ops::Precision;
use epiphyte_train::{RunConfig, TaskKind, TaskSpec};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Words of the vocabulary, the first half of which makes a text good.
const WORDS: usize = 12;

pub(crate) struct World {
    dir: TempDir,
}

/// What a run sees of a model: how many layers are an encoder's that a decoder reads, whether
/// tokens see those after them, and what its linear layers do. Families that agree in this differ
/// inside of their layers, where the properties of methods are tried on every family; and heads
/// that are no language model's in what they read of the last layer.
fn structure(config: &ModelConfig, head: HeadKind) -> (usize, bool, BTreeSet<Role>) {
    let head = match head {
        HeadKind::LanguageModel => head,
        _ => HeadKind::Classification { labels: 2 },
    };
    let model = random_model(config, head, &Device::default(), Precision::F32, 0);
    let model = model.expect("the family has the head");
    let base = model.base();
    let causal = base.layer_shapes().iter().any(|it| it.attention.causal);
    let roles = base.linears().iter().map(|it| it.site.role);
    (base.dimensions.encoder_layers, causal, roles.collect())
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        world.write_model("model", &bert(), HeadKind::Classification { labels: 2 });
        world.write_model("language_model", &qwen(), HeadKind::LanguageModel);
        world.write_model("encoder_decoder", &t5(), HeadKind::LanguageModel);
        write_examples(&world.path("train.jsonl"), 0..30, |good| good);
        write_examples(&world.path("eval.jsonl"), 30..40, |good| good);
        write_examples(&world.path("opposite.jsonl"), 30..40, |good| !good);
        write_all_fields(&world.path("all.jsonl"));
        let words = json!({ "1": "w0", "2": ["w1", "w2"] }).to_string();
        fs::write(world.path("verbalizer.json"), words).expect("a verbalizer");
        world
    }

    /// A directory with a model of random weights and the tokenizer.
    pub(crate) fn write_model(&self, name: &str, config: &Value, head: HeadKind) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).expect("a directory");
        write_tokenizer(&dir);
        write_model(&dir, config, head);
        dir
    }

    /// A file of examples, one JSON object a line.
    pub(crate) fn write_data(&self, name: &str, rows: &[Value]) -> PathBuf {
        let path = self.path(name);
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(&path, lines).expect("examples");
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Evaluation data whose labels are the other way round.
    pub(crate) fn opposite(&self) -> PathBuf {
        self.path("opposite.jsonl")
    }

    /// A run with dropout, accumulation and evaluations: 12 steps, evaluated after 3, 6, 9 and 12.
    pub(crate) fn run(&self, name: &str, method: &str, settings: &Value) -> RunConfig {
        RunConfig {
            model: self.path("model"),
            output: self.path("runs").join(name),
            train_data: self.path("train.jsonl"),
            eval_data: Some(self.path("eval.jsonl")),
            text_columns: vec!["text".to_owned()],
            method: method.to_owned(),
            method_settings: settings
                .as_object()
                .expect("settings are an object")
                .clone(),
            batch_size: 4,
            gradient_accumulation_steps: 2,
            learning_rate: Some(2e-2),
            weight_decay: 0.01,
            epochs: 3.0,
            max_length: Some(32),
            eval_steps: Some(3),
            logging_steps: 1,
            ..RunConfig::default()
        }
    }

    /// The same texts as a language: a decoder, and other batches.
    pub(crate) fn language_run(&self, name: &str, method: &str, settings: &Value) -> RunConfig {
        RunConfig {
            model: self.path("language_model"),
            task: TaskKind::text(),
            batch_size: 5,
            gradient_accumulation_steps: 1,
            ..self.run(name, method, settings)
        }
    }

    /// A classifier over an encoder-decoder.
    pub(crate) fn encoder_decoder_run(
        &self,
        name: &str,
        method: &str,
        settings: &Value,
    ) -> RunConfig {
        RunConfig {
            model: self.path("encoder_decoder"),
            ..self.run(name, method, settings)
        }
    }

    /// The first words of each text from its text, with an encoder-decoder.
    pub(crate) fn seq2seq_run(&self, name: &str, method: &str, settings: &Value) -> RunConfig {
        RunConfig {
            task: "seq2seq".parse().expect("a task"),
            text_columns: Vec::new(),
            source_column: Some("text".to_owned()),
            target_column: Some("target".to_owned()),
            batch_size: 5,
            gradient_accumulation_steps: 1,
            ..self.encoder_decoder_run(name, method, settings)
        }
    }

    /// A short run of every method for every task on the first example of each
    /// [structure](structure), wherever they fit together, with each of the method's example
    /// settings on one of them; with dropout wherever there is any.
    pub(crate) fn matrix(&self, name: &str) -> Vec<RunConfig> {
        let configs = FAMILIES.iter().flat_map(|family| (family.examples)());
        let (mut runs, mut seen) = (Vec::new(), BTreeMap::new());
        let (mut of_task, mut tried) = (BTreeMap::new(), BTreeSet::new());
        for (number, config) in configs.enumerate() {
            for task in epiphyte_train::tasks::names() {
                let task: TaskKind = task.parse().expect("a task of the table");
                let head = task.head(2);
                let parsed =
                    ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
                let parsed = parsed.expect("a family's example");
                if parsed.family().class_name(head).is_none() {
                    continue;
                }
                // What an encoder-decoder's encoder does alone, other encoders do.
                let model = random_model(&parsed, head, &Device::default(), Precision::F32, 0);
                let layers = model.expect("the family has the head").layers();
                if layers != parsed.facts().num_hidden_layers {
                    continue;
                }
                // Where a task trains no head, it differs from others in its loss alone.
                let trains_head = head.outputs().is_some() || task.predicts_text();
                if !trains_head && *of_task.entry(task.name()).or_insert(number) != number {
                    continue;
                }
                let structure = structure(&parsed, head);
                let methods = match seen.get(&structure) {
                    None => METHODS,
                    // Tasks of one structure differ in targets, which no method sees.
                    Some(&first) if first == number => &METHODS[..1],
                    Some(_) => continue,
                };
                seen.entry(structure).or_insert(number);
                // Tasks with one head share a base, so that their runs can be trained together.
                let is_lm = head == HeadKind::LanguageModel;
                let model = self.path(&format!("model-{number}-{is_lm}"));
                if !model.exists() {
                    fs::create_dir(&model).expect("a directory");
                    write_tokenizer(&model);
                    write_model(&model, &config, head);
                }
                let name = format!("{name}/{number}");
                let tried = &mut tried;
                runs.extend(self.methods_on(&parsed, task, &model, &name, methods, tried));
            }
        }
        assert!(runs.len() >= METHODS.len(), "{} runs", runs.len());
        runs
    }

    /// The runs of the matrix for one task on one base, with these methods.
    fn methods_on(
        &self,
        config: &ModelConfig,
        task: TaskKind,
        model: &Path,
        name: &str,
        methods: &[Definition],
        tried: &mut BTreeSet<(&'static str, usize)>,
    ) -> Vec<RunConfig> {
        let device = Device::default();
        let small = random_model(config, task.head(2), &device, Precision::F32, 0);
        let small = small.expect("the family has the head");
        let template = with_columns(RunConfig {
            model: model.to_owned(),
            task,
            train_data: self.path("all.jsonl"),
            eval_data: None,
            eval_steps: None,
            max_steps: Some(4),
            // Methods take up to 20 of a model's 32 positions.
            max_length: Some(12),
            base_dropout: Some(0.1),
            ..self.run(name, "lora", &json!({}))
        });
        // Language is learned from target texts exactly where the model has a decoder for them.
        let fields = task.fields(&spec(&template), true);
        let has_target_texts = matches!(fields, Ok(Fields::SourceTarget { .. }));
        // The tokenizer gives the second text a segment of its own.
        let is_pair = matches!(
            fields,
            Ok(Fields::Questions { .. } | Fields::Choices { .. })
        );
        if is_pair && small.base().dimensions.type_vocabulary == 1 {
            return Vec::new();
        }
        let is_encoder_decoder = small.base().dimensions.encoder_layers > 0;
        if task.predicts_text() && has_target_texts != is_encoder_decoder {
            return Vec::new();
        }
        let mut runs = Vec::new();
        for method in methods {
            for (example, mut settings) in (method.examples)().into_iter().enumerate() {
                for flag in method.flags.iter().filter(|it| it.key.ends_with("dropout")) {
                    settings[flag.key] = json!(0.2);
                }
                let configured = settings
                    .as_object()
                    .expect("settings are an object")
                    .clone();
                let configured = method.configure(configured).expect("the example is valid");
                match AdapterModule::new(configured, small.base(), &device, 0) {
                    Ok(_) => {}
                    Err(MethodError::NotApplicable { .. }) => continue,
                    Err(error) => panic!("{} on {task}: {error}", method.name),
                }
                // The first example on every structure, each other on the first that takes it.
                if !tried.insert((method.name, example)) && example > 0 {
                    continue;
                }
                let name = format!("{name}/{task}/{}-{example}", method.name);
                let run = self.run(&name, method.name, &settings);
                runs.push(RunConfig {
                    output: run.output,
                    method: run.method,
                    method_settings: run.method_settings,
                    ..template.clone()
                });
            }
        }
        runs
    }

    /// Removes all runs.
    pub(crate) fn clear(&self) {
        fs::remove_dir_all(self.path("runs")).expect("runs that can be removed");
    }
}

/// The classes of `all.jsonl`.
fn classes() -> [String; 2] {
    ["1", "2"].map(str::to_owned)
}

/// A run with the columns of `all.jsonl` of which its task makes examples.
fn with_columns(run: RunConfig) -> RunConfig {
    let texts = |names: &[&str], label: Option<&str>| RunConfig {
        text_columns: names.iter().map(|&name| name.to_owned()).collect(),
        label_column: label.map(str::to_owned),
        ..run.clone()
    };
    let choices = RunConfig {
        choice_columns: ["first", "last"].map(str::to_owned).into(),
        ..texts(&["first"], Some("choice"))
    };
    let pairs = RunConfig {
        source_column: Some("text".to_owned()),
        target_column: Some("answer".to_owned()),
        ..texts(&[], None)
    };
    let cloze = RunConfig {
        prompt_template: Some("{text} {mask}".to_owned()),
        verbalizer: Some(run.train_data.with_file_name("verbalizer.json")),
        ..texts(&[], Some("number"))
    };
    let candidates = [
        texts(&["text"], Some("number")),
        texts(&["text"], Some("tags")),
        texts(&["answer", "text"], Some("part")),
        choices,
        texts(&["text"], None),
        pairs,
        texts(&["text", "answer"], None),
        cloze,
    ];
    let tokenizer = Tokenizer::load(&run.model).expect("a tokenizer");
    let fits = |run: &RunConfig| {
        let reading = run.reading().expect("a way to read files");
        let table = Table::read(&run.train_data, &reading).expect("examples");
        spec(run).examples(&table, &tokenizer, true).is_ok()
    };
    let mut candidates = candidates.into_iter();
    candidates.find(fits).expect("columns for the task")
}

/// The run's task over the world's classes.
fn spec(run: &RunConfig) -> TaskSpec {
    TaskSpec {
        columns: run.columns(),
        labels: classes().to_vec(),
        ..TaskSpec::new(run.task, 16)
    }
}

/// Rows with a text, a number that can be a class too, an answer, a tag for each word of the text,
/// a part of it, two words, and which of them is right.
fn write_all_fields(path: &Path) {
    let lines = (0..14).map(|number| {
        let words = |count: usize, step: usize| {
            let words = (0..count).map(|at| format!("w{}", (number * 5 + at * step) % WORDS));
            words.collect::<Vec<String>>().join(" ")
        };
        let text = words(3 + number % 4, 7);
        let tags = (0..3 + number % 4).map(|at| (1 + (number + at) % 2).to_string());
        let row = json!({
            "text": text, "number": 1 + number % 2, "answer": words(2 + number % 3, 5),
            "tags": tags.collect::<Vec<_>>(), "part": text.split_once(' ').map(|(_, part)| part),
            "first": words(1, 7), "last": format!("w{}", number % WORDS), "choice": number % 2,
        });
        format!("{row}\n")
    });
    fs::write(path, lines.collect::<String>()).expect("examples");
}

/// Words `w0` to `w11` after the special tokens; `[CLS] text [SEP]`.
fn write_tokenizer(dir: &Path) {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let words = (0..WORDS).map(|word| format!("w{word}"));
    let tokens = special.map(str::to_owned).into_iter().chain(words);
    let vocabulary: Map<String, Value> = tokens
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let added = special.iter().enumerate().map(|(id, token)| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let piece = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": added.collect::<Vec<Value>>(),
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]"), text, piece("[SEP]")],
            "pair": [piece("[CLS]"), text, piece("[SEP]"), { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] },
            },
        },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    // What is unknown serves as what is hidden.
    let special = json!({ "bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[UNK]" });
    let special = special.to_string();
    fs::write(dir.join("tokenizer_config.json"), special).expect("its configuration");
}

/// A BERT of two layers with dropout.
pub(crate) fn bert() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "vocab_size": WORDS + 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 32, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.2,
    })
}

/// A Qwen2 of two layers: heads share keys, queries, keys and values have biases.
pub(crate) fn qwen() -> Value {
    json!({
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": WORDS + 4,
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
        "attention_dropout": 0.1, "initializer_range": 0.2,
    })
}

/// A T5 of one encoder layer and two decoder layers with dropout.
fn t5() -> Value {
    json!({
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": WORDS + 4, "d_model": 16, "d_kv": 3, "d_ff": 24, "num_layers": 1,
        "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 6, "dropout_rate": 0.1, "classifier_dropout": 0.1,
        "initializer_factor": 0.8, "eos_token_id": 3,
    })
}

/// Random weights.
fn write_model(dir: &Path, config: &Value, task: HeadKind) {
    let config = config.to_string();
    fs::write(dir.join("config.json"), &config).expect("a configuration");
    let config =
        ModelConfig::parse("config.json".as_ref(), config.as_bytes()).expect("a configuration");
    let model =
        random_model(&config, task, &Device::default(), Precision::F32, 7).expect("a model");
    let tensors = model
        .base()
        .tensors()
        .iter()
        .filter(|(name, _)| !model.base().is_of_head(name))
        .map(|(name, tensor)| (name, tensor.shape(), || tensor.to_vec()));
    write_f32(&dir.join("model.safetensors"), tensors).expect("a checkpoint");
}

/// Texts of 3 to 7 words, all from one half of the vocabulary, and whether it is the first half.
fn write_examples(path: &Path, numbers: std::ops::Range<usize>, label: impl Fn(bool) -> bool) {
    let lines = numbers.map(|number| {
        let good = number % 2 == 0;
        let words = (0..3 + number % 5).map(|at| {
            let word = (number * 5 + at * 7) % (WORDS / 2) + if good { 0 } else { WORDS / 2 };
            format!("w{word}")
        });
        let words: Vec<String> = words.collect();
        let (text, target) = (words.join(" "), words[..2 + number % 2].join(" "));
        let label = if label(good) { "good" } else { "bad" };
        format!(
            "{}\n",
            json!({ "text": text, "label": label, "target": target })
        )
    });
    fs::write(path, lines.collect::<String>()).expect("examples");
}
