//! Results as HF PEFT's `method_comparison` has them, a file a run, so that its programs show them
//! with its own. What they ask for and a run here does not have is empty.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use epiphyte_io::FileError;
use epiphyte_methods::by_name;
use serde_json::{Value, json};

use crate::CompareError;
use crate::result::{RunResult, Status};
use crate::run::path_of;

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
    let mut config = json!({ "peft_type": by_name(&result.method).map_or("", |it| it.peft_type) });
    let own = by_name(&result.method).map_or(&[][..], |method| method.flags);
    for flag in own {
        if let Some(value) = result.settings.get(flag.key) {
            config[flag.key] = value.clone();
        }
    }
    // PEFT has no configuration for full fine-tuning.
    let config = if result.method == "full" {
        Value::Null
    } else {
        config
    };
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
                "dtype": setting("precision"),
                "max_seq_length": setting("max_length"),
                "batch_size": batch_size,
                "batch_size_eval": setting("eval_batch_size"),
                "max_steps": cost.steps,
                "seed": result.seed,
                "grad_norm_clip": setting("max_grad_norm"),
                "optimizer_type": optimizer,
                "optimizer_kwargs": { "lr": setting("learning_rate"), "weight_decay": setting("weight_decay") },
                "lr_scheduler": setting("lr_scheduler_type"),
            },
            "peft_config": config,
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
                "test accuracy": result.score,
                "test score name": result.score_name,
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
    use super::timestamp;

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
