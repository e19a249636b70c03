//! Results that HF PEFT publishes of its `method_comparison`, read from its files to be shown with
//! those of a suite.

use std::path::Path;

use epiphyte_io::FileError;
use epiphyte_methods::by_peft_config;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CompareError;

/// A run that others made and published.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// Its name there, such as `lora/llama-3.2-3B-rank32`.
    pub experiment: String,
    /// The base's name.
    pub model: String,
    /// PEFT's name of the method; empty for full fine-tuning.
    pub peft_type: String,
    /// The method here, if there is one.
    pub method: Option<&'static str>,
    /// The accuracy on the test data.
    pub score: f64,
    /// How much the loss on other texts rose.
    pub forgetting: Option<f64>,
    /// Trainable parameters, with those of a head.
    pub trainable_parameters: u64,
    /// Parameters of base and adapter.
    pub total_parameters: u64,
    /// Bytes of the adapter's file.
    pub stored_bytes: u64,
    /// The most memory of the accelerator, in bytes.
    pub peak_bytes: u64,
    /// Seconds of training.
    pub seconds: f64,
}

/// The parts of a file that are read.
#[derive(Deserialize)]
struct File {
    run_info: RunInfo,
    train_info: TrainInfo,
}

#[derive(Deserialize)]
struct RunInfo {
    experiment_name: String,
    train_config: TrainConfig,
    peft_config: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct TrainConfig {
    model_id: String,
}

#[derive(Deserialize)]
struct TrainInfo {
    status: String,
    accelerator_memory_max: u64,
    train_time: f64,
    file_size: u64,
    num_trainable_params: u64,
    num_total_params: u64,
    metrics: Vec<Map<String, Value>>,
}

impl Published {
    /// The results at a path: a file, or all JSON files of a directory in the order of their
    /// names. Runs that did not succeed are left out.
    ///
    /// # Errors
    /// [`CompareError::Published`] if a file is no such result, or a directory has none.
    pub fn read(path: &Path) -> Result<Vec<Self>, CompareError> {
        if !path.is_dir() {
            return Ok(Self::of_file(path)?.into_iter().collect());
        }
        let entries = std::fs::read_dir(path).map_err(FileError::at("read", path))?;
        let mut files = Vec::new();
        for entry in entries {
            let file = entry.map_err(FileError::at("read", path))?.path();
            if file.extension().is_some_and(|it| it == "json") {
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(CompareError::Published {
                path: path.to_owned(),
                reason: "the directory has no JSON file".to_owned(),
            });
        }
        files.sort();
        let results = files.iter().map(|file| Self::of_file(file));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        Ok(results.into_iter().flatten().collect())
    }

    fn of_file(path: &Path) -> Result<Option<Self>, CompareError> {
        let text = epiphyte_io::read_regular(path).map_err(FileError::at("read", path))?;
        Self::parse(&text).map_err(|reason| CompareError::Published {
            path: path.to_owned(),
            reason,
        })
    }

    /// A result; none if the run did not succeed.
    fn parse(text: &[u8]) -> Result<Option<Self>, String> {
        let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let (run, train) = (file.run_info, file.train_info);
        if train.status != "success" {
            return Ok(None);
        }
        let last = train.metrics.last();
        let number = |key: &str| last?.get(key)?.as_f64();
        let score = number("test accuracy");
        let score = score.ok_or("the last of `metrics` has no number `test accuracy`")?;
        let (method, peft_type) = match &run.peft_config {
            None => (Some("full"), String::new()),
            Some(config) => {
                let peft_type = config.get("peft_type").and_then(Value::as_str);
                let method = by_peft_config(config).map(|method| method.name);
                (method, peft_type.unwrap_or_default().to_owned())
            }
        };
        Ok(Some(Self {
            experiment: run.experiment_name,
            model: run.train_config.model_id,
            peft_type,
            method,
            score,
            forgetting: number("forgetting"),
            trainable_parameters: train.num_trainable_params,
            total_parameters: train.num_total_params,
            stored_bytes: train.file_size,
            peak_bytes: train.accelerator_memory_max,
            seconds: train.train_time,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::Published;

    /// PEFT's published result of LoRA of rank 64 with rsLoRA, cut to what is read and what tells
    /// the method.
    const RSLORA: &str = r#"{
        "run_info": {
            "created_at": "2026-07-15T06:41:50+00:00",
            "experiment_name": "lora/llama-3.2-3B-rank64-rslora",
            "train_config": { "model_id": "meta-llama/Llama-3.2-3B", "max_steps": 5000 },
            "peft_config": { "peft_type": "LORA", "r": 64, "use_rslora": true, "use_dora": false },
            "error_msg": ""
        },
        "train_info": {
            "accelerator_memory_max": 22292725760, "train_time": 941.95, "file_size": 73415408,
            "num_trainable_params": 18350080, "num_total_params": 3231099904, "status": "success",
            "metrics": [
                { "step": 250, "valid accuracy": 0.32 },
                { "step": 5000, "test accuracy": 0.513267626990144, "forgetting": 0.11056065559387207 }
            ]
        }
    }"#;

    #[test]
    fn a_published_result_is_read() {
        let read = Published::parse(RSLORA.as_bytes()).unwrap().unwrap();
        assert_eq!(read.method, Some("lora"));
        assert_eq!(
            (read.score, read.stored_bytes),
            (0.513267626990144, 73_415_408)
        );
        assert_eq!(read.forgetting, Some(0.11056065559387207));
        let dora = RSLORA.replace("\"use_dora\": false", "\"use_dora\": true");
        let dora = Published::parse(dora.as_bytes()).unwrap().unwrap();
        assert_eq!(dora.method, Some("dora"));
        let failed = RSLORA.replace("\"success\"", "\"failed\"");
        assert_eq!(Published::parse(failed.as_bytes()), Ok(None));
        let error = Published::parse(RSLORA.replace("test accuracy", "x").as_bytes());
        assert!(error.unwrap_err().contains("`test accuracy`"));
    }
}
