//! Results as HF PEFT's `method_comparison` has them, a file a run, so that its programs show them
//! with its own. What they ask for and a run here does not have is empty.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use epiphyte_io::FileError;
use epiphyte_methods::by_name;
use serde_json::{Value, json};

use crate::CompareError;
use crate::result::{RunResult, Status};
use crate::run::{path_of, shortened};

/// The longest name of a file without its ending, which has the names of model, task and method.
const LONGEST: usize = 200;

/// Writes a file for each finished run that counts.
pub(crate) fn write(results: &[RunResult], directory: &Path) -> Result<(), CompareError> {
    std::fs::create_dir_all(directory).map_err(FileError::at("create", directory))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = timestamp(now.map_or(0, |since| since.as_secs()));
    let counted = results
        .iter()
        .filter(|it| !it.trial && it.status == Status::Finished);
    for result in counted {
        let name = path_of(result)
            .display()
            .to_string()
            .replace(['/', '\\'], "--");
        let name = shortened(&name, LONGEST);
        let text = serde_json::to_string_pretty(&record(result, &now)).expect("plain values");
        epiphyte_io::write(&directory.join(format!("{name}.json")), text.as_bytes())?;
    }
    Ok(())
}

/// A run as PEFT's `log_results` writes it.
fn record(result: &RunResult, now: &str) -> Value {
    let cost = result.cost.clone().unwrap_or_default();
    let declared = result.declared.as_ref();
    let trainable = declared.map(|it| it.trainable_parameters + it.head_parameters);
    let total = declared.map(|it| it.base_parameters + it.head_parameters);
    let peak = result.peak_bytes().unwrap_or(0);
    let setting = |key: &str| result.settings.get(key).cloned().unwrap_or(Value::Null);
    // PyTorch's class where it is one.
    let optimizer = match setting("optimizer") {
        Value::String(name) if name != "adamw" => name,
        _ => "AdamW".to_owned(),
    };
    let batch_size = setting("batch_size").as_u64().unwrap_or(0);
    // As PEFT has it, how much the loss on other texts rose.
    let own_task = cost.forgetting.as_ref().filter(|it| it.score == "loss");
    let forgetting = own_task.and_then(|it| Some(it.after? - it.before));
    let training = cost
        .tokens_per_second
        .map_or(cost.seconds, |speed| cost.tokens as f64 / speed);
    json!({
        "run_info": {
            "created_at": now,
            "total_time": cost.seconds,
            "experiment_name": format!("{}/{}-{}-{}", result.name, result.model, result.task, result.seed),
            "peft_branch": "epiphyte",
            "train_config": {
                "model_id": setting("model"),
                "dtype": dtype(result),
                "max_seq_length": setting("max_length"),
                "batch_size": batch_size,
                "batch_size_eval": setting("eval_batch_size").as_u64().unwrap_or(batch_size),
                "max_steps": cost.steps,
                "seed": result.seed,
                "grad_norm_clip": setting("max_grad_norm"),
                "optimizer_type": optimizer,
                "optimizer_kwargs": { "lr": learning_rate(result), "weight_decay": setting("weight_decay") },
                "lr_scheduler": setting("lr_scheduler_type"),
            },
            "peft_config": config(result),
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": peak,
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": peak,
            "train_time": training,
            "file_size": cost.stored_bytes,
            "num_trainable_params": trainable,
            "num_total_params": total,
            "status": "success",
            "metrics": [{
                "step": cost.steps,
                // PEFT's programs need the key, and take null for a score that there is not.
                "test accuracy": result.metrics.get("accuracy").or(result.metrics.get("math_answer")),
                "test score name": result.score_name,
                "test score": result.score,
                "train loss": result.losses.last().map(|last| last.1),
                "train samples": cost.steps * batch_size,
                "train total tokens": cost.tokens,
                "forgetting": forgetting,
            }],
        },
        "meta_info": {
            "model_info": { "sha": null, "created_at": null },
            "dataset_info": {},
            "package_info": {
                "epiphyte-version": env!("CARGO_PKG_VERSION"),
                "transformers-version": null,
                "peft-version": null,
                "datasets-version": null,
                "torch-version": null,
                "bitsandbytes-version": null,
            },
            "system_info": { "system": std::env::consts::OS, "machine": std::env::consts::ARCH },
            "pytorch_info": null,
        },
    })
}

/// PEFT's name of the type in which the base's matrices are stored.
fn dtype(result: &RunResult) -> Value {
    let setting = |key: &str| result.settings.get(key).and_then(Value::as_str);
    match (setting("quantization"), setting("precision")) {
        (Some("int8"), _) => "int8".into(),
        (Some(_), _) => "int4".into(),
        (None, Some("f32")) => "float32".into(),
        (None, Some("bf16")) => "bfloat16".into(),
        (None, other) => other.into(),
    }
}

/// The learning rate of a run: its own, or its method's.
fn learning_rate(result: &RunResult) -> Option<f64> {
    let own = result.settings.get("learning_rate").and_then(Value::as_f64);
    own.or_else(|| Some(by_name(&result.method).ok()?.learning_rate))
}

/// The configuration of a run's adapter: that of its file, or where that was not kept, its settings
/// and the method's defaults. PEFT has none for full fine-tuning.
fn config(result: &RunResult) -> Value {
    if result.method == "full" {
        return Value::Null;
    }
    let Ok(method) = by_name(&result.method) else {
        return json!({ "peft_type": "" });
    };
    let mut config = result.adapter_config.clone();
    if config.is_empty() {
        config = (method.defaults)();
        let own = method.flags.iter();
        let own = own.filter_map(|flag| Some((flag.key, result.settings.get(flag.key)?)));
        config.extend(own.map(|(key, value)| (key.to_owned(), value.clone())));
    }
    config.insert("peft_type".to_owned(), method.peft_type.into());
    Value::Object(config)
}

/// Seconds since 1970 as `2026-11-26T20:28:00+00:00`.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a date, as Howard Hinnant's `civil_from_days` has it, for days after 1970.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}+00:00",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use epiphyte_train::scoring::metrics::Metrics;
    use serde_json::{Value, json};

    use super::{record, timestamp};
    use crate::result::RunResult;

    fn result(score_name: &str, scores: &[(&'static str, f64)]) -> RunResult {
        let result = json!({
            "method": "lora", "name": "lora", "model": "base", "task": "t", "seed": 0, "point": "",
            "trial": false, "status": "finished", "score_name": score_name, "score": scores[0].1,
            "metrics": {}, "change": null, "cost": null, "losses": [], "scores": [],
            "settings": { "precision": "bf16", "learning_rate": null, "r": 32 },
        });
        let mut result: RunResult = serde_json::from_value(result).unwrap();
        result.metrics = Metrics::from_iter(scores.iter().copied());
        result
    }

    #[test]
    fn a_loss_is_no_accuracy() {
        let metrics = |result: &RunResult| record(result, "")["train_info"]["metrics"][0].clone();
        let of_loss = metrics(&result("loss", &[("loss", 4.4)]));
        assert_eq!(of_loss.get("test accuracy"), Some(&Value::Null));
        assert_eq!(of_loss["test score"], 4.4);
        let of_answers = metrics(&result(
            "math_answer",
            &[("math_answer", 0.4), ("loss", 1.2)],
        ));
        assert_eq!(of_answers["test accuracy"], 0.4);
        let of_f1 = metrics(&result("f1", &[("f1", 0.8), ("accuracy", 0.7)]));
        assert_eq!(of_f1["test accuracy"], 0.7);
    }

    #[test]
    fn settings_are_those_of_the_run_in_words_of_peft() {
        let mut result = result("accuracy", &[("accuracy", 0.7)]);
        let run = record(&result, "")["run_info"].clone();
        assert_eq!(run["train_config"]["dtype"], "bfloat16");
        let rate = run["train_config"]["optimizer_kwargs"]["lr"].as_f64();
        let default = epiphyte_methods::by_name("lora").unwrap().learning_rate;
        assert_eq!(rate, Some(default));
        let config = &run["peft_config"];
        assert_eq!(
            (&config["r"], &config["peft_type"]),
            (&json!(32), &json!("LORA"))
        );
        assert!(config["lora_alpha"].is_number(), "{config}");
        let targets = json!(["query", "value"]);
        result
            .settings
            .insert("quantization".to_owned(), "nf4".into());
        let run = record(&result, "")["run_info"].clone();
        assert_eq!(run["train_config"]["dtype"], "int4");
        let Value::Object(file) = json!({ "r": 32, "target_modules": targets }) else {
            unreachable!()
        };
        result.adapter_config = file;
        let config = record(&result, "")["run_info"]["peft_config"].clone();
        assert_eq!(config["target_modules"], targets);
    }

    #[test]
    fn seconds_are_a_date_and_a_time() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00+00:00"),
            (951_782_399, "2000-02-28T23:59:59+00:00"),
            (951_782_400, "2000-02-29T00:00:00+00:00"),
            (1_795_724_880, "2026-11-26T20:28:00+00:00"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
