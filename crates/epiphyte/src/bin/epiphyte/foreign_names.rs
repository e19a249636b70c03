//! What the settings of other programs for fine-tuning are called here.
//!
//! The names are those of transformers' `TrainingArguments` and example scripts, of HF PEFT's
//! configurations and of configuration files of LLaMA-Factory, axolotl and TRL.

/// Names of other programs, with underscores, and what does the same here.
const NAMES: &[(&[&str], &str)] = &[
    (
        &[
            "model_name_or_path",
            "model_name",
            "base_model",
            "base_model_name_or_path",
            "pretrained_model_name_or_path",
        ],
        "model",
    ),
    (&["output_dir", "out_dir", "save_dir"], "output"),
    (
        &[
            "train_file",
            "train_dataset",
            "dataset",
            "dataset_path",
            "data_path",
        ],
        "train_data",
    ),
    (
        &[
            "validation_file",
            "valid_file",
            "eval_file",
            "eval_dataset",
            "val_data",
            "test_file",
        ],
        "eval_data",
    ),
    (
        &[
            "text_column",
            "text_column_name",
            "dataset_text_field",
            "text_field",
        ],
        "text_columns",
    ),
    (
        &["label_column_name", "label_field", "target_field"],
        "label_column",
    ),
    (&["task_type", "task_name"], "task"),
    (
        &["peft_type", "peft_method", "finetuning_type", "tuner_type"],
        "method",
    ),
    (
        &[
            "num_train_epochs",
            "num_epochs",
            "n_epochs",
            "max_epochs",
            "epoch",
        ],
        "epochs",
    ),
    (
        &["max_train_steps", "num_train_steps", "num_steps", "iters"],
        "max_steps",
    ),
    (
        &[
            "per_device_train_batch_size",
            "train_batch_size",
            "per_gpu_train_batch_size",
            "bs",
        ],
        "batch_size",
    ),
    (
        &[
            "per_device_eval_batch_size",
            "per_gpu_eval_batch_size",
            "val_batch_size",
        ],
        "eval_batch_size",
    ),
    (
        &[
            "gradient_accumulation",
            "grad_accumulation_steps",
            "accumulate_grad_batches",
        ],
        "gradient_accumulation_steps",
    ),
    (&["lr", "learning_rate_max"], "learning_rate"),
    (
        &["lr_scheduler", "scheduler", "lr_schedule"],
        "lr_scheduler_type",
    ),
    (&["num_warmup_steps"], "warmup_steps"),
    (&["warmup_proportion", "warmup_fraction"], "warmup_ratio"),
    (&["wd"], "weight_decay"),
    (&["eps", "epsilon", "adam_eps"], "adam_epsilon"),
    (
        &[
            "clip_grad_norm",
            "max_gradient_norm",
            "gradient_clipping",
            "grad_clip",
        ],
        "max_grad_norm",
    ),
    (&["label_smoothing_factor"], "label_smoothing"),
    (
        &[
            "max_seq_length",
            "max_seq_len",
            "max_sequence_length",
            "model_max_length",
            "cutoff_len",
            "sequence_len",
            "block_size",
        ],
        "max_length",
    ),
    (&["max_train_samples", "max_samples"], "max_train_rows"),
    (&["max_eval_samples", "max_val_samples"], "max_eval_rows"),
    (&["sample_packing", "pack_sequences"], "packing"),
    (
        &["bf16", "fp16", "torch_dtype", "dtype", "compute_type"],
        "precision",
    ),
    (
        &["use_gradient_checkpointing", "activation_checkpointing"],
        "gradient_checkpointing",
    ),
    (
        &[
            "eval_strategy",
            "evaluation_strategy",
            "eval_interval",
            "evals_per_epoch",
            "val_steps",
        ],
        "eval_steps",
    ),
    (
        &[
            "save_strategy",
            "save_interval",
            "saves_per_epoch",
            "checkpointing_steps",
        ],
        "save_steps",
    ),
    (
        &["logging_strategy", "log_interval", "log_steps"],
        "logging_steps",
    ),
    (
        &["load_best_model", "save_best_model"],
        "load_best_model_at_end",
    ),
    (&["early_stopping", "patience"], "early_stopping_patience"),
    (&["predict_with_generate"], "metrics"),
    (&["generation_max_length"], "max_new_tokens"),
    (&["random_seed", "data_seed"], "seed"),
    (&["lora_r", "lora_rank", "lora_dim"], "rank"),
    (&["lora_scaling"], "alpha"),
    (
        &["lora_target", "lora_target_modules", "target_module"],
        "target_modules",
    ),
    (
        &[
            "num_prompt_tokens",
            "prompt_length",
            "prefix_length",
            "pre_seq_len",
        ],
        "num_virtual_tokens",
    ),
    (
        &["bottleneck_size", "bottleneck_dimension", "adapter_size"],
        "bottleneck_dim",
    ),
];

/// Names of other programs for what is no setting, and what to do instead.
const OTHERWISE: &[(&[&str], &str)] = &[
    (&["overwrite_output_dir"], "pass --overwrite"),
    (&["resume_from_checkpoint"], "pass --resume"),
    (
        &["report_to", "logging_dir", "run_name"],
        "the log is OUTPUT/log.jsonl, TensorBoard's events are in OUTPUT/runs",
    ),
    (
        &["do_train", "do_eval", "do_predict"],
        "`epiphyte train`, `eval` and `predict` are commands",
    ),
    (&["use_cpu", "no_cuda", "device_map"], "pass --device"),
    (
        &["load_in_8bit", "load_in_4bit", "quantization_config"],
        "see `quantization`, which is nf4, fp4, int8 or int4",
    ),
];

/// What to do instead of using the setting `name` of another program; none if the name is unknown.
pub(crate) fn advice(name: &str) -> Option<String> {
    let is_flag = name.starts_with("--");
    let name = name.trim_start_matches('-').replace('-', "_");
    let name = name.to_lowercase();
    let is_named = |names: &&[&str]| names.contains(&name.as_str());
    if let Some((_, ours)) = NAMES.iter().find(|(names, _)| is_named(names)) {
        let ours = match is_flag {
            true => format!("--{}", ours.replace('_', "-")),
            false => (*ours).to_owned(),
        };
        return Some(format!("here it is called `{ours}`"));
    }
    let (_, otherwise) = OTHERWISE.iter().find(|(names, _)| is_named(names))?;
    Some((*otherwise).to_owned())
}

#[cfg(test)]
mod tests {
    use epiphyte::methods::{METHODS, framework::settings::Settings};
    use epiphyte::train::RunConfig;

    use super::*;

    #[test]
    fn names_of_others_lead_to_settings_that_there_are() {
        // A method may call a setting of its own so: then it is meant, if that method is.
        let is_of_runs = |name: &str| RunConfig::FLAGS.iter().any(|flag| flag.is_called(name));
        let is_of_a_method = |name: &str| {
            let mut flags = METHODS.iter().flat_map(|method| method.flags);
            flags.any(|flag| flag.is_called(name))
        };
        for (names, ours) in NAMES {
            assert!(is_of_runs(ours) || is_of_a_method(ours), "{ours}");
            for name in *names {
                assert!(!is_of_runs(name), "{name} is a setting of ours");
            }
        }
        for (names, _) in OTHERWISE {
            assert!(names.iter().all(|name| !is_of_runs(name)), "{names:?}");
        }
        assert_eq!(
            advice("--max-seq-length").unwrap(),
            "here it is called `--max-length`"
        );
        assert_eq!(
            advice("num_train_epochs").unwrap(),
            "here it is called `epochs`"
        );
        assert_eq!(advice("rnak"), None);
    }
}
