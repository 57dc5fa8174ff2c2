//! Hostile input for as long as there is time: the targets of `ovl-diff/fuzz` where `cargo fuzz` and
//! a nightly compiler are at hand, which lets what the code does guide the input; otherwise the
//! tests of `ovl-diff/tests/fuzz`, told to go on.

use std::io::{BufRead as _, BufReader};
use std::num::NonZeroU64;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What gets the input
    #[arg(value_enum)]
    target: Target,
    /// How long, in minutes
    #[arg(long)]
    minutes: NonZeroU64,
    /// Input by chance, even where `cargo fuzz` is at hand
    #[arg(long)]
    by_chance: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// The reader of archives
    Archive,
    /// Mount plans: that they fit their limit to the byte and say what was meant
    MountLength,
    /// Applying to a layer, on the mock kernel and on a directory of this system (root)
    Apply,
    /// Scripts of operations on the mock kernel, against the model of the store
    Model,
    /// Power cuts of the mock kernel before every call of every operation
    Power,
    /// Calls of the mock kernel that fail, each with every error, or all from one on
    Faults,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Apply => "apply",
            Self::MountLength => "mount-length",
            Self::Model => "model",
            Self::Power => "power",
            Self::Faults => "faults",
        }
    }

    /// Package, arguments of its test program.
    fn tests(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Archive => (
                "ovl-diff",
                &["--exact", "fuzz::archive::any_bytes_are_read_or_refused"],
            ),
            Self::Apply => (
                "ovl-diff",
                &[
                    "--exact",
                    "fuzz::apply::any_bytes_become_a_layer_or_are_refused_and_nothing_else_changes",
                ],
            ),
            Self::MountLength => (
                "ovl-mount",
                &[
                    "--exact",
                    "plan_properties::a_plan_keeps_to_its_limit_and_to_its_meaning",
                ],
            ),
            Self::Model => (
                "ovl-testkit",
                &["--exact", "model::any_script_does_what_the_model_predicts"],
            ),
            Self::Power => (
                "ovl-testkit",
                &[
                    "--exact",
                    "exhaustive::crashes::no_power_cut_takes_a_published_layer",
                ],
            ),
            Self::Faults => (
                "ovl-testkit",
                &[
                    "--exact",
                    "exhaustive::faults::whatever_fails_from_a_point_on_nothing_is_half_done",
                ],
            ),
        }
    }

    /// Whether `ovl-diff/fuzz` has it.
    fn is_guided(self) -> bool {
        !matches!(
            self,
            Self::MountLength | Self::Model | Self::Power | Self::Faults
        )
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds = options.minutes.get().checked_mul(60);
    let seconds = seconds.context("that is too long")?;
    if options.target.is_guided() && !options.by_chance && has_cargo_fuzz() {
        let mut fuzz = nightly();
        // No sanitizer: the code under test has no unsafe part.
        fuzz.args(["fuzz", "run", "-s", "none", options.target.name(), "--"])
            .args(["-max_len=4096", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-max_total_time={seconds}"));
        return crate::run(&mut fuzz);
    }
    if options.target.is_guided() && !options.by_chance {
        println!("without `cargo fuzz` and a nightly compiler: input by chance");
    }
    let (package, tests) = options.target.tests();
    let mut test = crate::cargo();
    test.args([
        "test",
        "--quiet",
        "--release",
        "-p",
        package,
        "--test",
        "main",
        "--",
    ])
    .args(["--nocapture"])
    .args(tests)
    .env("OVL_FUZZ_SECONDS", seconds.to_string())
    .stderr(Stdio::piped());
    let mut child = test
        .spawn()
        .with_context(|| format!("cannot run {test:?}"))?;
    let mut words = 0;
    // Passed on as they come. A test of another name would run nothing, and fail in nothing.
    for line in child
        .stderr
        .take()
        .into_iter()
        .flat_map(|pipe| BufReader::new(pipe).lines())
    {
        let line = line?;
        words += usize::from(line.starts_with("fuzz ") && line.ends_with(", no failure"));
        eprintln!("{line}");
    }
    let status = child.wait()?;
    ensure!(status.success(), "{test:?} failed: {status}");
    // All but the first word are names.
    ensure!(
        words >= tests.len() - 1,
        "{words} of {} tests say what they have tried: is there none of this name? {test:?}",
        tests.len() - 1
    );
    Ok(())
}

fn has_cargo_fuzz() -> bool {
    let version = nightly().args(["fuzz", "--version"]).output();
    version.is_ok_and(|output| output.status.success())
}

/// Nightly's cargo, whatever runs this task.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .current_dir(crate::root().join("ovl-diff"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    command
}
