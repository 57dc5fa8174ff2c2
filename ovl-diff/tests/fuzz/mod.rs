//! Hostile input by chance: a few cases with the other tests, and as many as there is time for with
//! `cargo xtask fuzz`.

pub(crate) mod apply;
mod archive;

use std::env;
use std::fmt::Debug;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// How long to go on, in seconds, and with it that this is a run of `cargo xtask fuzz`.
const SECONDS: &str = "OVL_FUZZ_SECONDS";
/// Cases after which the time is looked at.
const BATCH: u32 = 64;

/// Tries `cases` inputs, or as many as there is time for.
fn fuzz<S: Strategy>(
    what: &str,
    share: u32,
    cases: u32,
    input: &S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) where
    S::Value: Debug,
{
    let seconds = env::var(SECONDS).ok().map(|text| text.parse().unwrap());
    let time = seconds.map(|seconds| Duration::from_secs(seconds) / share);
    let config = Config {
        cases: if time.is_some() { BATCH } else { cases },
        failure_persistence: None,
        ..Config::default()
    };
    let (start, mut executions) = (Instant::now(), 0_u64);
    loop {
        // Every runner has a seed of its own.
        if let Err(error) = TestRunner::new(config.clone()).run(input, &property) {
            panic!("{what}, after {executions} executions: {error}");
        }
        executions += u64::from(config.cases);
        if time.is_none_or(|time| start.elapsed() >= time) {
            break;
        }
    }
    if time.is_some() {
        let seconds = start.elapsed().as_secs();
        let line = format!("fuzz {what}: {executions} executions in {seconds} s, no failure\n");
        io::stderr().write_all(line.as_bytes()).unwrap();
    }
}
