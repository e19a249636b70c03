//! What the model card says to somebody who was not there.

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

#[test]
fn a_card_says_how_to_use_and_to_repeat_a_run() {
    let here = Workplace::new();
    let root = here.path("").display().to_string();
    let run = CLASSIFY
        .replace("--model bert", &format!("--model {root}/bert"))
        .replace("--train-data ", &format!("--train-data={root}/"));
    here.json(&format!("{run} --max-steps 1 --output {root}/adapter"));
    let card = here.read("adapter/README.md");
    let root = root.trim_end_matches('/');
    assert!(!card.contains(root), "{card}");
    assert!(!card.contains("target/"), "{card}");
    for words in [
        "`BASE` that of the base model `bert`",
        "epiphyte predict --model BASE --adapter ADAPTER",
        "from_pretrained(\"BASE\")",
        "from peft import PeftModel",
        "AutoModelForSequenceClassification.from_pretrained(",
        "num_labels=2",
        "id2label={0: \"negative\", 1: \"positive\"}",
        "| `max_length` | `16` |",
        "| `labels` | `negative, positive` |",
        "| `target_modules` | `query, value` |",
        "| `rank` | `8` |",
        "| `alpha` |",
        "| `learning_rate` | `0.01` |",
        concat!("| `epiphyte` | `", env!("CARGO_PKG_VERSION"), "` |"),
        "epiphyte train --model BASE --train-data=train.jsonl",
    ] {
        assert!(card.contains(words), "{words}\n{card}");
    }

    here.json(&format!(
        "{SPEAK} --method freeze --max-steps 1 --output speaker"
    ));
    let card = here.read("speaker/README.md");
    assert!(
        card.contains("epiphyte generate --model BASE --adapter ADAPTER --prompt"),
        "{card}"
    );
    for unused in [
        "labels",
        "galore_rank",
        "lisa_interval_steps",
        "doc_stride",
        "max_answer_length",
    ] {
        assert!(
            !card.contains(&format!("| `{unused}` |")),
            "{unused}\n{card}"
        );
    }
    assert!(
        !card.contains("peft import"),
        "HF PEFT has no such method\n{card}"
    );
}
