//! `train --optimizer`.

use crate::workplace::{CLASSIFY, Workplace};

/// A run that stops after two steps and goes on ends with the bytes of one that did not stop, and
/// each optimizer moves the parameters in its own way.
#[test]
fn every_optimizer_trains_and_resumes_to_the_bit() {
    let here = Workplace::new();
    let train = format!(
        "{CLASSIFY} --method full --lr-scheduler-type constant --warmup-ratio 0 --learning-rate 1e-3"
    );

    let mut all = Vec::new();
    for optimizer in [
        "adamw",
        "adamw-8bit",
        "adafactor",
        "galore --galore-rank 2 --galore-update-proj-gap 3",
        "lisa --lisa-activated-layers 1 --lisa-interval-steps 1",
    ] {
        let train = format!("{train} --optimizer {optimizer}");
        let name = optimizer.split(' ').next().unwrap();
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        here.succeed(&format!("{train} --max-steps 4 --output {whole}"));
        here.succeed(&format!("{train} --max-steps 2 --output {parts}"));
        here.succeed(&format!("{train} --max-steps 4 --output {parts} --resume"));
        let [whole, parts] = [&whole, &parts].map(|name| {
            let dir = here.path(name);
            epiphyte::models::Checkpoint::open_file(&dir.join("adapter_model.safetensors"))
                .unwrap()
                .content_hash()
                .to_owned()
        });
        assert_eq!(whole, parts, "{optimizer}");
        all.push(whole);
    }
    // The tiny model has no tensor that is large enough for 8 bits.
    assert_eq!(all[0], all[1]);
    all.remove(1);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
fn an_optimizer_that_has_nothing_to_do_is_refused() {
    let here = Workplace::new();
    for (flags, words) in [
        ("--optimizer sgd", "expected one of `adamw`, `adamw-8bit`"),
        ("--optimizer galore", "`lora` trains none of their weights"),
        ("--galore-rank 4", "it is for --optimizer galore"),
        ("--optimizer lisa --method bitfit", "leave none out"),
    ] {
        let errors = here.fail_any(&format!("{CLASSIFY} --max-steps 1 --output out {flags}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
}
