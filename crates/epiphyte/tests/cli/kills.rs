//! Runs that are killed at any time and resumed end with the same bytes; of two processes in one
//! directory one works and the other is refused.
//!
//! Some kills and pairs are tried; 500 kills and 100 pairs with
//!
//! ```sh
//! EPIPHYTE_LONG_TESTS=1 cargo test --workspace --test cli -- kills
//! ```

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use crate::interruptions::{assert_same, start};
use crate::workplace::{CLASSIFY, SPEAK, Workplace, long_tests};

/// The steps of each run, with evaluations, checkpoints and a log.
const STEPS: &str = "--max-steps 60 --eval-steps 20 --save-steps 4 --logging-steps 3 --seed 3";

/// What runs differ in: methods with state of their own, stages, accumulation, memory options.
const SETTINGS: [(&str, &str); 10] = [
    (
        CLASSIFY,
        "--rank 4 --dropout 0.1 --gradient-accumulation-steps 2 --load-best-model-at-end",
    ),
    (CLASSIFY, "--method ia3 --save-total-limit 2"),
    (
        CLASSIFY,
        "--method adalora --tinit 5 --tfinal 10 --delta-t 3",
    ),
    (CLASSIFY, "--method lt-sft"),
    (CLASSIFY, "--method prefix-tuning"),
    (CLASSIFY, "--method full"),
    (CLASSIFY, "--gradient-checkpointing"),
    (CLASSIFY, "--method houlsby --early-stopping-patience 2"),
    (SPEAK, "--rank 4 --dropout 0.1"),
    (SPEAK, "--method prompt-tuning --precision bf16"),
];

#[test]
fn killed_runs_end_with_the_same_bytes() {
    let here = Workplace::new();
    let wanted = if long_tests() { 50 } else { 2 };
    let mut chance = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    for (number, (command, settings)) in SETTINGS.into_iter().enumerate() {
        let command = format!("{command} {STEPS} {settings}");
        let started = Instant::now();
        here.json(&format!("{command} --output whole-{number}"));
        let whole = started.elapsed();
        let mut kills = 0;
        for run in 0.. {
            let output = format!("killed-{number}-{run}");
            let command = format!("{command} --output {output} --resume");
            while kills < wanted {
                let mut child = start(&here, &command);
                chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sleep(whole.mul_f64(0.6 * f64::from(chance >> 8) / f64::from(1 << 24)));
                child.kill().unwrap();
                let ended = child.wait_with_output().unwrap();
                let errors = String::from_utf8_lossy(&ended.stderr);
                match ended.status.code() {
                    None => kills += 1,
                    Some(0) => break,
                    Some(code) => panic!("{command}: {code}\n{errors}"),
                }
            }
            here.json(&command);
            assert_same(&here, &format!("whole-{number}"), &output);
            if kills >= wanted {
                break;
            }
        }
    }
}

#[test]
fn of_two_processes_in_one_directory_one_is_refused() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} {STEPS}");
    here.json(&format!("{command} --output whole"));
    for pair in 0..if long_tests() { 100 } else { 4 } {
        let output = format!("pair-{pair}");
        let command = format!("{command} --output {output}");
        let first = start(&here, &command);
        // Now and then the second one comes a little later.
        sleep(Duration::from_millis(pair % 4 * 5));
        let second = start(&here, &command);
        let ended = [first, second].map(|child| child.wait_with_output().unwrap());
        let mut codes = ended.each_ref().map(|it| it.status.code());
        codes.sort_unstable();
        let errors = ended
            .map(|it| String::from_utf8(it.stderr).unwrap())
            .concat();
        assert_eq!(codes, [Some(0), Some(1)], "{errors}");
        let is_refused =
            errors.contains("another process") || errors.contains("already holds a run");
        assert!(is_refused, "{errors}");
        assert_same(&here, "whole", &output);
    }
}
