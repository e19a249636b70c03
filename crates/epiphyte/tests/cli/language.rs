//! Language models: training lowers the loss, `generate` continues texts.

use serde_json::Value;

use crate::workplace::{SPEAK, Workplace};

#[test]
fn generation_is_repeatable() {
    let here = Workplace::new();
    let generate = |flags: &str| {
        let mut command = here.command("generate --model llama --max-new-tokens 8 --json --prompt");
        let output = command
            .arg("the film")
            .args(flags.split_whitespace())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let greedy = generate("");
    assert_eq!(greedy["prompt"], "the film");
    assert!(greedy["text"].as_str().unwrap().starts_with("the film"));
    assert_eq!(greedy["text"], generate("--temperature 0 --seed 9")["text"]);
    let drawn = generate("--temperature 2 --seed 1 --stop-at-eos=false");
    assert_eq!(drawn["new_tokens"], 8);
    assert_eq!(
        drawn["text"],
        generate("--temperature 2 --seed 1 --stop-at-eos=false")["text"]
    );
    assert_ne!(
        drawn["text"],
        generate("--temperature 2 --seed 2 --stop-at-eos=false")["text"]
    );
}

#[test]
fn an_adapter_changes_what_is_said() {
    let here = Workplace::new();
    here.write(
        "train.jsonl",
        "{\"text\": \"the book is lovely\"}\n".repeat(16),
    );
    here.json(&format!(
        "{SPEAK} --epochs 40 --target-modules all-linear --output adapter"
    ));
    here.write("prompt.txt", "the book");
    let text = here.succeed(
        "generate --model llama --adapter adapter --prompt-file prompt.txt --max-new-tokens 8",
    );
    assert_eq!(text.trim_end(), "the book is lovely");
}
