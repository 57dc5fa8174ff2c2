//! Hostile input for as long as there is time: the tests of `ovl-diff/tests/fuzz`, told to go on.

use std::num::NonZeroU64;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What gets the input
    #[arg(value_enum)]
    target: Target,
    /// How long, in minutes
    #[arg(long)]
    minutes: NonZeroU64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// The reader of archives
    Archive,
    /// Applying to a layer, on the mock kernel and on a directory of this system (root)
    Apply,
}

impl Target {
    fn test(self) -> &'static str {
        match self {
            Self::Archive => "fuzz::archive::any_bytes_are_read_or_refused",
            Self::Apply => {
                "fuzz::apply::any_bytes_become_a_layer_or_are_refused_and_nothing_else_changes"
            }
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds = options.minutes.get().checked_mul(60);
    let seconds = seconds.context("that is too long")?;
    let mut test = crate::cargo();
    test.args(["test", "--quiet", "-p", "ovl-diff", "--test", "main", "--"])
        .args(["--exact", "--nocapture", options.target.test()])
        .env("OVL_FUZZ_SECONDS", seconds.to_string());
    crate::run(&mut test)
}
