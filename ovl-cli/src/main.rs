//! `ovl`: a layer store for overlayfs on the command line.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks")]

mod args;
mod demo;
mod fail;
mod input;
mod keeper;
mod namespace;
mod report;
mod run;

use std::process::ExitCode;

use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A stack of 499 layers takes half of the descriptors that a process has at first, and a comparison
/// of two such stacks takes more than all. What is not allowed is told where it is missed.
fn open_as_many_as_allowed() {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current, ..limit });
}

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let json = cli.json;
    open_as_many_as_allowed();
    match run::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            failure.code()
        }
    }
}
