//! Repository tasks: `cargo xtask`, without arguments, lists them.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program talks")]

mod ci;
mod coverage;
mod e2e;
mod fuzz;
mod mutants;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::{CommandFactory as _, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Repository tasks")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the invariants of ARCHITECTURE.md and the house rules
    Tidy,
    /// Run the real-kernel suites on XFS, ext4 and tmpfs (root)
    E2e(e2e::Options),
    /// Run suites in virtual machines, with kernels and quotas that this host may not have (root)
    Vm(vm::Options),
    /// Have a real Docker write ovl-driver/tests/fixtures anew (root)
    DockerFixtures,
    /// Try hostile input for as long as there is time
    Fuzz(fuzz::Options),
    /// Put faults into the code one at a time, and see that the tests notice each
    Mutants(mutants::Options),
    /// Say which lines of the libraries the tests reach (needs LLVM's tools)
    Coverage,
    /// Run the whole gate
    Ci {
        /// With the full counts instead of the quick ones
        #[arg(long)]
        full: bool,
    },
    /// One file system's part of `e2e`, in the static program
    #[command(hide = true)]
    Suite(e2e::SuiteOptions),
    /// The first process of a virtual machine
    #[command(hide = true)]
    Guest(vm::GuestOptions),
    /// The first process of a virtual machine whose power is cut, and its workers
    #[command(hide = true)]
    PowerGuest(vm::PowerGuestOptions),
    /// Works on a home until it is killed
    #[command(hide = true)]
    StormWorker(e2e::WorkerOptions),
    /// Works on a home beside others
    #[command(hide = true)]
    Crowd(e2e::CrowdOptions),
    /// Random changes in a user namespace
    #[command(hide = true)]
    Scripts(e2e::ScriptsOptions),
    /// Runs a command and tells its memory
    #[command(hide = true)]
    Peak(e2e::PeakOptions),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        None => Cli::command().print_help().map_err(Into::into),
        Some(Task::Tidy) => tidy::run(),
        Some(Task::E2e(options)) => e2e::run(&options),
        Some(Task::Vm(options)) => vm::run(&options),
        Some(Task::Guest(options)) => vm::guest(&options),
        Some(Task::PowerGuest(options)) => vm::power_guest(&options),
        Some(Task::DockerFixtures) => e2e::run(&e2e::Options::for_fixtures()),
        Some(Task::Fuzz(options)) => fuzz::run(&options),
        Some(Task::Mutants(options)) => mutants::run(&options),
        Some(Task::Coverage) => coverage::run(),
        Some(Task::Ci { full }) => ci::run(full),
        Some(Task::Suite(options)) => e2e::suite(&options),
        Some(Task::StormWorker(options)) => e2e::work(&options),
        Some(Task::Crowd(options)) => e2e::crowd(&options),
        Some(Task::Peak(options)) => e2e::peak(&options),
        Some(Task::Scripts(options)) => e2e::in_namespace(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned()
}

/// The cargo that runs this task.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command and insists on success.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Runs a command, insists on success, and gives what it prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
