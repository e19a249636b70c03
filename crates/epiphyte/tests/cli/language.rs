//! Language models: training lowers the loss, `generate` continues texts.

use std::fs;
use std::path::Path;

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
fn how_tokens_are_chosen_is_set_by_flags() {
    let here = Workplace::new();
    here.write("prompt.txt", "the film");
    let generate = |flags: &str| {
        let flags = format!(
            "generate --model llama --prompt-file prompt.txt --max-new-tokens 8 \
             --stop-at-eos=false {flags}"
        );
        here.json(&flags)["text"].as_str().unwrap().to_owned()
    };
    let greedy = generate("");
    assert_eq!(generate("--temperature 2 --top-k 1"), greedy);
    assert_eq!(generate("--temperature 2 --top-p 0.0001"), greedy);
    assert_eq!(generate("--temperature 2 --min-p 1"), greedy);
    assert_ne!(generate("--repetition-penalty 9"), greedy);
    assert!(generate("--num-beams 3 --length-penalty -1").starts_with("the film"));

    let errors = here.fail(2, "generate --model llama --prompt a --top-p 1.5");
    assert!(errors.contains("use a number above 0, up to 1"), "{errors}");
    let errors = here.fail(
        2,
        "generate --model llama --prompt a --num-beams 2 --top-k 3",
    );
    assert!(errors.contains("cannot be used with"), "{errors}");
    for (flags, words) in [
        ("--top-k 3", "pass --temperature above 0"),
        ("--length-penalty 2", "pass --num-beams above 1"),
        ("--num-beams 2 --temperature 1", "cannot be used with"),
        ("--num-beams 257", "from 1 to 256"),
    ] {
        let errors = here.fail(2, &format!("generate --model llama --prompt a {flags}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
}

#[test]
fn a_text_ends_before_a_text_to_stop_at() {
    let here = Workplace::new();
    here.write("prompt.txt", "the film");
    let ask = "generate --model llama --prompt-file prompt.txt --max-new-tokens 8 \
               --stop-at-eos=false --temperature 2 --seed 1";
    let whole = here.json(ask)["text"].as_str().unwrap().to_owned();
    let new = whole.strip_prefix("the film").unwrap();
    let word = new.split_whitespace().nth(2).expect("several words");
    let kept = &whole[..whole.len() - new.len() + new.find(word).unwrap()];
    let stopped = here.json(&format!("{ask} --stop never-there --stop {word}"));
    assert_eq!(stopped["text"], kept);
    assert!(stopped["new_tokens"].as_u64().unwrap() < 8);
    let shown = here.succeed(&format!("{ask} --stop {word}"));
    assert_eq!(shown, format!("{kept}\n"));
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

/// Training appends the tokenizer's `eos_token`, whatever the model's files say.
#[test]
fn generation_stops_on_the_token_that_training_taught() {
    let here = Workplace::new();
    here.edit("llama/config.json", |config| {
        config["eos_token_id"] = serde_json::Value::Null;
    });
    here.write("llama/generation_config.json", r#"{"eos_token_id": 1}"#);
    here.write(
        "train.jsonl",
        "{\"prompt\": \"the book\", \"completion\": \" is lovely\"}\n".repeat(16),
    );
    let train = "train --model llama --task causal-lm --train-data train.jsonl \
        --prompt-column prompt --completion-column completion --batch-size 16 --epochs 40 \
        --learning-rate 1e-2 --target-modules all-linear --output adapter";
    here.json(train);
    here.write("prompt.txt", "the book");
    let said = here.json(
        "generate --model llama --adapter adapter --prompt-file prompt.txt --max-new-tokens 30",
    );
    assert_eq!(said["text"], "the book is lovely");
    assert_eq!(said["new_tokens"], 2);
}

#[test]
fn any_number_of_new_tokens_ends_at_the_models_length() {
    let here = Workplace::new();
    for many in ["1000000000000", "18446744073709551615"] {
        let said = here.json(&format!(
            "generate --model llama --prompt film --stop-at-eos=false --temperature 1 \
             --max-new-tokens {many}"
        ));
        assert_eq!(
            said["new_tokens"], 62,
            "64 positions, two of them the prompt's"
        );
    }
}

#[test]
fn a_token_without_an_embedding_is_refused_everywhere() {
    let here = Workplace::new();
    for model in ["llama", "bert-head"] {
        here.edit(&format!("{model}/tokenizer.json"), |file| {
            let mut added = file["added_tokens"][0].clone();
            (added["id"], added["content"]) = (26.into(), "<new>".into());
            file["added_tokens"].as_array_mut().unwrap().push(added);
        });
    }
    here.write(
        "new.jsonl",
        "{\"text\": \"a <new> film\", \"label\": \"positive\"}\n",
    );
    let problem = "token 26 is not in the model's vocabulary of 26";
    for command in [
        "generate --model llama --prompt <new>",
        "eval --model llama --task causal-lm --data new.jsonl --text-columns text",
        "eval --model bert-head --task sequence-classification --data new.jsonl --text-columns text",
        "train --model llama --task causal-lm --train-data new.jsonl --text-columns text --output o",
    ] {
        let errors = here.fail(1, command);
        assert!(errors.contains(problem), "{command}: {errors}");
    }
}

/// The template travels with the adapter: generation and evaluation render as training did.
#[test]
fn a_chat_template_of_ones_own_is_kept_with_the_adapter() {
    let here = Workplace::new();
    here.write(
        "chat.jinja",
        "<s>{% for m in messages %}{% if m.role == 'user' %}the {{ m.content }}\
         {% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
    );
    here.write(
        "train.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"book\"}, \
          {\"role\": \"assistant\", \"content\": \"is lovely\"}]}\n"
            .repeat(16),
    );
    let train = "train --model llama --task causal-lm --train-data train.jsonl \
        --messages-column messages --batch-size 16 --epochs 40 --learning-rate 1e-2 \
        --target-modules all-linear";
    let errors = here.fail(1, &format!("{train} --output none"));
    assert!(errors.contains("pass --chat-template"), "{errors}");
    here.json(&format!(
        "{train} --chat-template chat.jinja --output adapter"
    ));
    let chat = "generate --model llama --adapter adapter --chat --prompt book --max-new-tokens 8";
    assert_eq!(here.succeed(chat), "is lovely\n");
    // A merged model keeps it too.
    here.succeed("merge --model llama --adapter adapter --output merged");
    let merged = chat.replace("--model llama --adapter adapter", "--model merged");
    assert_eq!(here.succeed(&merged), "is lovely\n");
    let loss = |flags: &str| {
        let eval = "eval --model llama --adapter adapter --data train.jsonl";
        here.json(&format!("{eval} {flags}"))["loss"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(loss(""), loss("--chat-template chat.jinja"));
    here.write(
        "other.jinja",
        here.read("chat.jinja").replace("the ", "quite "),
    );
    assert!(loss("--chat-template other.jinja") > loss(""));
    let errors = here.fail(
        2,
        "generate --model llama --prompt book --chat-template chat.jinja",
    );
    assert!(errors.contains("--chat"), "{errors}");
}

/// A whole book in one file trains on all of its words.
#[test]
fn plain_text_is_packed() {
    let here = Workplace::new();
    here.write("book.txt", "the film is good ".repeat(40));
    let train = "train --model llama --task causal-lm --train-data book.txt --max-length 16 \
        --batch-size 1 --epochs 1 --output";
    // 160 words with <s> and </s>, sixteen to an example.
    assert_eq!(here.json(&format!("{train} packed"))["steps"], 11);
    let output = here.run(&format!("{train} cut --packing=false"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("lost their end, 90.1 % of all tokens: packing keeps all of them"),
        "{errors}"
    );
    assert!(output.status.success());
}

/// A run that goes on another day renders its conversations as on the day when it began.
#[test]
fn the_day_of_a_run_goes_on_with_it() {
    let here = Workplace::new();
    here.write(
        "chat.jinja",
        "{% for m in messages %}{{ m.content }} {% endfor %}{{ strftime_now('%d')[2:] }}",
    );
    here.write(
        "train.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, \
          {\"role\": \"assistant\", \"content\": \"good film\"}]}\n",
    );
    let train = "train --model llama --task causal-lm --train-data train.jsonl \
        --messages-column messages --chat-template chat.jinja --output adapter --epochs";
    here.json(&format!("{train} 1"));
    let day = |here: &Workplace| {
        let record = here.record("adapter");
        record["task"]["today"].as_str().unwrap().to_owned()
    };
    let state = "adapter/checkpoint-1/trainer_state.json";
    let text = here.read(state).replace(&day(&here), "2001-09-09");
    let hash: Value = serde_json::from_str(&text).unwrap();
    let unsigned = text.replace(hash["state_sha256"].as_str().unwrap(), "");
    let signed = unsigned.replace(
        "\"state_sha256\": \"\"",
        &format!(
            "\"state_sha256\": \"{}\"",
            epiphyte::io::sha256(unsigned.as_bytes())
        ),
    );
    here.write(state, signed);
    here.json(&format!("{train} 2 --resume"));
    assert_eq!(day(&here), "2001-09-09");
}

#[test]
fn a_text_that_the_model_cannot_read_further_says_so() {
    let here = Workplace::new();
    here.write("prompt.txt", "film ".repeat(59));
    let ask = "generate --model llama --prompt-file prompt.txt --stop-at-eos=false";
    let output = here.run(&format!("{ask} --max-new-tokens 50"));
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{notes}");
    assert!(
        notes.contains("ends after 4 of 50 new tokens")
            && notes.contains("at most 64 tokens (max_position_embeddings), 60 of them the prompt"),
        "{notes}"
    );
    let result = here.json(&format!("{ask} --max-new-tokens 50"));
    assert_eq!(
        (&result["new_tokens"], &result["end"]),
        (&4.into(), &"context_length".into())
    );
    let output = here.run(&format!("{ask} --max-new-tokens 4"));
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(!notes.contains("ends after"), "{notes}");
}

#[test]
fn a_prompt_comes_from_standard_input() {
    let here = Workplace::new();
    here.write("prompt.txt", "the film");
    let ask =
        |file: &str| format!("generate --model llama --max-new-tokens 3 --prompt-file {file}");
    let mut command = here.command(&ask("-"));
    let prompt = std::fs::File::open(here.path("prompt.txt")).unwrap();
    let output = command.stdin(prompt).output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        here.succeed(&ask("prompt.txt"))
    );
}

/// The prompt of training is that of generating.
#[test]
fn a_prompt_goes_into_the_template_of_the_training_data() {
    let here = Workplace::new();
    let rows = "{\"question\": \"film\", \"context\": \"a\", \"answer\": \" good\"}\n";
    here.write("pairs.jsonl", rows.repeat(4));
    let train = |template: &str, output: &str| {
        let flags = "train --model llama --task causal-lm --train-data pairs.jsonl \
                     --completion-column answer --max-steps 1 --json --output";
        let mut command = here.command(flags);
        command.args([output, "--prompt-template", template]);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    train("the {question} is", "one");
    train("{context} {question} is", "two");
    let generate = |adapter: &str, flags: &[&str]| {
        let command = "generate --model llama --max-new-tokens 2 --json --adapter";
        let mut command = here.command(command);
        command.args([adapter, "--prompt", "film"]).args(flags);
        let output = command.output().unwrap();
        let notes = String::from_utf8(output.stderr).unwrap();
        (serde_json::from_slice::<Value>(&output.stdout).ok(), notes)
    };
    let prompt = |(result, notes): &(Option<Value>, String)| match result {
        Some(result) => result["prompt"].as_str().unwrap().to_owned(),
        None => panic!("{notes}"),
    };
    let applied = generate("one", &[]);
    assert_eq!(prompt(&applied), "the film is");
    assert!(
        applied
            .1
            .contains("template of the training data, `the {question} is`"),
        "{}",
        applied.1
    );
    let plain = generate("one", &["--prompt-template", ""]);
    assert_eq!(prompt(&plain), "film");
    assert!(!plain.1.contains("template"), "{}", plain.1);
    let other = generate("one", &["--prompt-template", "a {x}"]);
    assert_eq!(prompt(&other), "a film");
    let (result, errors) = generate("two", &[]);
    assert!(
        result.is_none() && errors.contains("several columns (context, question)"),
        "{errors}"
    );
    assert_eq!(prompt(&generate("two", &["--prompt-template", ""])), "film");
}

/// What an encoder-decoder writes is printed without the text that it read.
#[test]
fn encoder_decoders_write() {
    let here = Workplace::new();
    here.add_encoder_decoder("t5");
    here.write(
        "pairs.jsonl",
        "{\"source\": \"the book\", \"target\": \"is lovely\"}\n\
         {\"source\": \"a film\", \"target\": \"was quite awful\"}\n"
            .repeat(8),
    );
    here.json(
        "train --model t5 --task seq2seq --train-data pairs.jsonl --source-column source \
         --target-column target --batch-size 16 --epochs 60 --learning-rate 1e-2 \
         --target-modules all-linear --output adapter",
    );
    for (prompt, text) in [("the book", "is lovely"), ("a film", "was quite awful")] {
        here.write("prompt.txt", prompt);
        let ask = "generate --model t5 --adapter adapter --prompt-file prompt.txt";
        assert_eq!(here.succeed(ask), format!("{text}\n"));
        let searched = here.json(&format!("{ask} --num-beams 3"));
        assert_eq!(searched["text"], text);
        assert_eq!(
            (&searched["prompt"], &searched["end"]),
            (&prompt.into(), &"stop".into())
        );
    }
    let ask =
        "generate --model t5 --prompt-file prompt.txt --stop-at-eos=false --max-new-tokens 70";
    assert_eq!(
        here.json(ask)["new_tokens"],
        70,
        "relative positions have no end"
    );
}

#[test]
fn an_encoder_decoder_reads_and_writes_up_to_its_positions() {
    let here = Workplace::new();
    here.add_encoder_decoder("bart");
    here.write("prompt.txt", "film ".repeat(11));
    let ask = "generate --model bart --prompt-file prompt.txt --stop-at-eos=false";
    let output = here.run(ask);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{notes}");
    assert!(
        notes.contains("ends after 11 of 50 new tokens")
            && notes.contains("at most 12 tokens (max_position_embeddings), one of which begins"),
        "{notes}"
    );
    here.write("prompt.txt", "film ".repeat(12));
    let errors = here.fail(1, ask);
    assert!(
        errors.contains("the prompt has 13 tokens, but the model reads no more than 12"),
        "{errors}"
    );
}

#[test]
fn written_texts_are_scored_once_for_each_prompt() {
    let here = Workplace::new();
    here.write(
        "restaurants.csv",
        "mr,ref\nthe film,good film\nthe film,a film\na film,quite good\n",
    );
    let ask = "eval --model llama --task causal-lm --prompt-column mr --completion-column ref \
               --data restaurants.csv";
    let writing = format!("{ask} --metrics exact-match,e2e,bleu --max-new-tokens 4");
    let scores = here.json(&format!("{writing} --output texts.jsonl"));
    assert_eq!(scores["examples"], 2);
    for key in [
        "exact_match",
        "e2e_bleu",
        "nist",
        "e2e_rouge_l",
        "cider",
        "bleu",
    ] {
        assert!(scores[key].is_f64(), "{key}: {scores}");
    }
    let texts = here.read("texts.jsonl");
    let texts: Vec<Value> = texts
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0]["prompt"], "the film");
    assert_eq!(
        texts[0]["references"],
        serde_json::json!(["good film", "a film"])
    );
    here.write("prompt.txt", "the film");
    let alone = here.json("generate --model llama --prompt-file prompt.txt --max-new-tokens 4");
    let alone = alone["text"]
        .as_str()
        .unwrap()
        .strip_prefix("the film")
        .unwrap();
    assert_eq!(texts[0]["text"].as_str().unwrap().trim(), alone.trim());

    // A list of texts in a column of its own, and the batch size, which changes nothing.
    let written = texts[0]["text"].as_str().unwrap();
    let row = serde_json::json!({"mr": "the film", "ref": "", "right": ["no", written]});
    here.write("lists.jsonl", row.to_string());
    let lists = writing.replace("restaurants.csv", "lists.jsonl");
    let scores = here.json(&format!("{lists} --references right --batch-size 1"));
    assert_eq!(scores["exact_match"], 1.0);

    // METEOR, with the small tables of its own test.
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/tests/meteor");
    fs::create_dir_all(here.path("meteor/data")).unwrap();
    for file in ["meteor-1.5.jar", "data/paraphrase-en.gz"] {
        fs::copy(tables.join(file), here.path("meteor").join(file)).unwrap();
    }
    let meteor = format!("{lists} --references right --metrics meteor --meteor-data meteor");
    assert_eq!(here.json(&meteor)["meteor"], 1.0);
    let errors = here.fail(
        2,
        &format!("{meteor} --output meteor/meteor-1.5.jar --overwrite"),
    );
    assert!(errors.contains("METEOR's tables"), "{errors}");

    for (flags, words) in [
        (
            "--num-beams 2",
            "--num-beams says how texts are written, and none are: pass --metrics",
        ),
        ("--metrics meteors", "there is no metric `meteors`"),
        ("--metrics meteor", "`pip install pycocoevalcap`"),
        ("--metrics bleu --meteor-data .", "add meteor to --metrics"),
        ("--metrics bleu --output texts.txt", "another extension"),
    ] {
        let errors = here.fail(2, &format!("{ask} {flags}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
    let errors = here.fail_any(&format!("{ask} --metrics meteor --meteor-data ."));
    assert!(errors.contains("meteor-1.5.jar"), "{errors}");
    here.write("prompts.csv", "mr\nthe film\n");
    let errors = here.fail(2, &writing.replace("restaurants.csv", "prompts.csv"));
    assert!(
        errors.contains("row 1 of `prompts.csv` has no text that would be right"),
        "{errors}"
    );
    let classes = "eval --model bert --task sequence-classification --text-columns mr \
                   --labels a,b --data restaurants.csv --metrics bleu";
    let errors = here.fail_any(classes);
    assert!(
        errors.contains("writes none") || errors.contains("no head"),
        "{errors}"
    );
}

#[test]
fn a_run_has_the_scores_of_texts_that_eval_then_has() {
    let here = Workplace::new();
    here.write(
        "restaurants.csv",
        "mr,ref\nthe film, good film\nthe film, a film\na film, quite good\na play, very bad\n",
    );
    // A run takes the most likely token also where the model's authors draw.
    here.write(
        "llama/generation_config.json",
        r#"{"do_sample": true, "temperature": 2.0}"#,
    );
    let writing = "--metrics bleu,e2e,exact-match --max-new-tokens 8";
    let run = format!(
        "train --model llama --task causal-lm --prompt-column mr --completion-column ref \
         --train-data restaurants.csv --eval-data restaurants.csv --method full --learning-rate \
         3e-2 --batch-size 4 --max-steps 120 --eval-steps 40 {writing} --metric-for-best-model \
         exact_match --load-best-model-at-end --output adapter"
    );
    let dry = here.succeed(&format!("{run} --dry-run"));
    assert!(dry.contains("texts that the model writes  3"), "{dry}");
    let trained = here.json(&run)["metrics"].clone();
    assert!(trained["loss"].is_f64(), "{trained}");
    let eval = format!("eval --model llama --adapter adapter --data restaurants.csv {writing}");
    let scores = here.json(&format!("{eval} --temperature 0"));
    assert_eq!(scores["examples"], 3);
    for key in [
        "bleu",
        "cider",
        "e2e_bleu",
        "e2e_rouge_l",
        "exact_match",
        "nist",
    ] {
        assert!(scores[key].is_f64(), "{scores}");
        assert_eq!(scores[key], trained[key], "{key}");
    }
    assert!(scores["exact_match"].as_f64().unwrap() > 0.0, "{scores}");

    let classes = "train --model bert --train-data train.jsonl --eval-data dev.jsonl \
                   --text-columns text --output classes";
    for (flags, words) in [
        ("--metrics bleu", "sequence-classification writes none"),
        ("--metrics stars", "no metric `stars`"),
        (
            "--task causal-lm --metrics meteor",
            "`pip install pycocoevalcap`",
        ),
        (
            "--task causal-lm --metrics bleu --meteor-data tables",
            "add meteor to --metrics",
        ),
        ("--task causal-lm --num-beams 2", "pass --metrics"),
        (
            "--task causal-lm --metrics bleu",
            "row 1 of `dev.jsonl` has no text that would be right",
        ),
        ("--predict-with-generate", "here it is called `--metrics`"),
    ] {
        let model = flags.replace("--task causal-lm", "--task causal-lm --model llama");
        let errors = here.fail(2, &format!("{classes} {model}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
}

#[test]
fn the_models_own_settings_of_sampling_are_defaults() {
    let here = Workplace::new();
    here.write("prompt.txt", "the film");
    let ask = "generate --model llama --prompt-file prompt.txt --max-new-tokens 8 \
               --stop-at-eos=false --seed 1";
    let greedy = here.json(ask)["text"].clone();
    let drawn = here.json(&format!("{ask} --temperature 2 --top-k 50 --top-p 0.9"))["text"].clone();
    assert_ne!(greedy, drawn);
    here.write(
        "llama/generation_config.json",
        r#"{"do_sample": true, "temperature": 2.0, "top_p": 0.9}"#,
    );
    assert_eq!(here.json(ask)["text"], drawn);
    let said = here.run(ask).stderr;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("generation_config.json says (temperature 2, top-k 50, top-p 0.9)"),
        "{said}"
    );
    assert_eq!(here.json(&format!("{ask} --temperature 0"))["text"], greedy);
    assert_eq!(here.json(&format!("{ask} --top-k 1"))["text"], greedy);
    here.write(
        "llama/generation_config.json",
        r#"{"do_sample": true, "top_p": 9}"#,
    );
    let errors = here.fail(1, ask);
    assert!(errors.contains("top_p"), "{errors}");
}
