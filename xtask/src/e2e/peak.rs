//! How much memory a program takes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};

#[derive(Debug, Args)]
pub(crate) struct PeakOptions {
    /// Where the number of KiB is written
    #[arg(long)]
    to: PathBuf,
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs a command and writes down the most memory that it had at once. A process of its own does
/// that, since the kernel counts all that it ever waited for.
pub(crate) fn peak(options: &PeakOptions) -> Result<()> {
    let (program, arguments) = options.command.split_first().context("no command")?;
    crate::run(Command::new(program).args(arguments))?;
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    std::fs::write(&options.to, peak.to_string())?;
    Ok(())
}

/// What a command has printed, and its peak in bytes.
pub(super) struct Measured {
    pub(super) printed: String,
    pub(super) peak: u64,
}

/// Runs a command of the program on a home with what `write` gives on standard input.
pub(super) fn measure(
    program: &Path,
    home: &Path,
    scratch: &Path,
    arguments: &[&str],
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Result<Measured> {
    let to = scratch.join("peak");
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("peak").arg("--to").arg(&to).arg("--");
    command.arg(program).arg("--home").arg(home).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = command.stderr(Stdio::piped()).spawn()?;
    let mut input = process.stdin.take().context("no standard input")?;
    let (written, output) = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut buffered = io::BufWriter::with_capacity(1 << 20, &mut input);
            write(&mut buffered).and_then(|()| buffered.flush())
        });
        let output = process.wait_with_output();
        (writer.join(), output)
    });
    let output = output?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ovl {arguments:?} ended with {}: {errors}",
        output.status
    );
    written.map_err(|_| anyhow!("the writer panicked"))??;
    let peak: u64 = std::fs::read_to_string(&to)?.parse()?;
    Ok(Measured {
        printed: String::from_utf8_lossy(&output.stdout).into_owned(),
        peak: peak << 10,
    })
}
