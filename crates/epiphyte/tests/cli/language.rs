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
fn what_is_shown_as_it_is_written_is_the_whole_text() {
    let here = Workplace::new();
    here.write("prompt.txt", "the film");
    let flags = "generate --model llama --prompt-file prompt.txt --max-new-tokens 8 --temperature 2 --seed 1";
    let text = here.json(flags)["text"].as_str().unwrap().to_owned();
    assert_eq!(here.succeed(flags), format!("{text}\n"));
}

#[test]
fn a_chat_goes_through_the_models_template() {
    let here = Workplace::new();
    let ask =
        "generate --model llama --prompt-file prompt.txt --max-new-tokens 8 --stop-at-eos=false";
    here.write("prompt.txt", "good film");
    let errors = here.fail(1, &format!("{ask} --chat"));
    assert!(errors.contains("chat template"), "{errors}");
    here.edit("llama/tokenizer_config.json", |config| {
        config["chat_template"] = "<s>{% for message in messages %}\
            {{ {'system': 'the', 'user': 'a'}[message.role] }} {{ message.content }} {% endfor %}\
            {% if add_generation_prompt %}is{% endif %}"
            .into();
    });
    let chat = here.json(&format!("{ask} --chat --system quite"));
    assert_eq!(chat["prompt"], "good film");
    assert_eq!(
        here.succeed(&format!("{ask} --chat --system quite")),
        format!("{}\n", chat["text"].as_str().unwrap())
    );
    // The template's own words, written out; the tokenizer puts <s> in front.
    here.write("prompt.txt", "the quite a good film is");
    let plain = here.json(ask);
    assert_eq!(
        plain["text"].as_str().unwrap(),
        format!(
            "the quite a good film is {}",
            chat["text"].as_str().unwrap()
        )
    );
    let errors = here.fail(2, &format!("{ask} --system quite"));
    assert!(errors.contains("--chat"), "{errors}");
}

#[test]
fn prompts_and_temperatures_that_cannot_be_used_are_refused() {
    let here = Workplace::new();
    here.write("prompt.txt", "film ".repeat(63));
    let errors = here.fail(1, "generate --model llama --prompt-file prompt.txt");
    assert!(
        errors.contains("the prompt has 64 tokens, but the model reads no more than 64"),
        "{errors}"
    );
    let errors = here.fail(2, "generate --model llama --prompt film --temperature=-1");
    assert!(errors.contains("use a number, 0 or more"), "{errors}");
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
    let errors = here.fail(
        2,
        "predict --model llama --adapter adapter --data none.jsonl --output preds.jsonl",
    );
    assert!(
        errors.contains("a language model has no labels to predict"),
        "{errors}"
    );
    here.write("prompt.txt", "the book");
    let text = here.succeed(
        "generate --model llama --adapter adapter --prompt-file prompt.txt --max-new-tokens 8",
    );
    assert_eq!(text.trim_end(), "the book is lovely");
}
