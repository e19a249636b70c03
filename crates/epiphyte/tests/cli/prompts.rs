//! Trained prompts: what they mean, which are alike, and other prompts that start from them.

use crate::workplace::{CLASSIFY, Workplace};

#[test]
fn prompts_are_compared_and_start_others() {
    let here = Workplace::new();
    let prompt = |method: &str, flags: &str| {
        format!("{CLASSIFY} --method {method} --num-virtual-tokens 3 --max-steps 1 --quiet {flags}")
    };
    for (name, init) in [("one", "SAMPLE_VOCAB"), ("other", "RANDOM")] {
        let flags = format!("--prompt-tuning-init {init} --output {name} --learning-rate 1e-9");
        here.succeed(&prompt("prompt-tuning", &flags));
    }
    let alike = here.json("prompts similarity one other one");
    assert_eq!(alike["sources"][0]["adapter"], "one");
    let similarity = |at: usize| alike["sources"][at]["similarity"].as_f64().unwrap();
    assert!((similarity(0) - 1.0).abs() < 1e-6 && similarity(1) < 0.9);

    // It started as words, and nearly stayed.
    let nearest = here.json("prompts nearest one --model bert --top-k 2");
    let words = nearest["virtual_tokens"].as_array().unwrap();
    assert_eq!(words.len(), 3);
    for word in words {
        assert!(word[0]["cosine"].as_f64().unwrap() > 0.99, "{word}");
        assert_eq!(word.as_array().unwrap().len(), 2);
    }
    let table = here.succeed("prompts nearest one --model bert --top-k 1");
    assert_eq!(table.lines().count(), 3, "{table}");

    let spot = "--source-prompts one,other --target-prompt one --output spot --learning-rate 1e-9";
    here.succeed(&prompt("spot", spot));
    let alike = here.json("prompts similarity spot one");
    assert!((alike["sources"][0]["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-6);

    let flags = "--ipt-stage subspace --source-prompts one,other --intrinsic-dim 4 --output space";
    here.succeed(&prompt("ipt", flags));
    let flags = "--subspace-adapter space --intrinsic-dim 4 --output tuned";
    here.succeed(&prompt("ipt", flags));
    assert_eq!(here.json("inspect tuned")["trainable_parameters"], 4);

    let errors = here.fail_any("prompts nearest space --model bert");
    assert!(errors.contains("no matrix `prompt_embeddings`"), "{errors}");
}
