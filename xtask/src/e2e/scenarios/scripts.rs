//! Random changes of real overlay mounts.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sched::{CloneFlags, unshare};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Error, Kernel, OpenOptions};
use ovl_layout::XattrNamespace;
use ovl_testkit::conformance::{Skip, Subject, run_scripts};
use ovl_testkit::differential::{Counts, run};
use ovl_testkit::{KernelProfile, MockKernel, edit_file};

use super::Place;
use crate::e2e::FsKind;

/// Not those of the case that every kernel has.
const FIRST: u64 = 1000;

/// Layers that a mount with `redirect_dir=on` and `metacopy=on` wrote are read as the kernel does.
pub(super) fn random(place: &Place) -> Result<()> {
    let subject = Subject::new(Kernel::host(), &place.dir).editing(edit_file);
    let count = if place.quick { 100 } else { 2000 };
    let written = run_scripts(&subject, FIRST..FIRST + count);
    let expected = count / 10;
    ensure!(
        written.redirects > expected && written.metacopies > expected,
        "{count} scripts made the kernel write little: {written:?}"
    );
    Ok(())
}

/// So are those of a user namespace, whose marks are attributes that anybody can write.
pub(super) fn random_in_namespace(place: &Place) -> Result<()> {
    let count = if place.quick { 25 } else { 500 };
    let mut process = Command::new(std::env::current_exe()?);
    process.arg("scripts").arg("--dir").arg(&place.dir);
    process.arg("--count").arg(count.to_string());
    let mut process = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = process.stdin.take().context("no standard input")?;
    let mut output = BufReader::new(process.stdout.take().context("no standard output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    if line == READY {
        // Only who is outside may map more than one id.
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", process.id()), "0 0 65536")?;
        }
        input.write_all(b"\n")?;
    }
    drop(input);
    let (mut said, mut errors) = (String::new(), String::new());
    output.read_to_string(&mut said)?;
    let read = process
        .stderr
        .take()
        .map(|mut all| all.read_to_string(&mut errors));
    let status = process.wait()?;
    read.transpose()?;
    if status.success() && said == NO_XATTRS {
        place.skip(Skip::whole(
            "the file system keeps no attributes of a user namespace, and says so",
        ));
        return Ok(());
    }
    ensure!(
        line == READY && status.success() && said == format!("{count}\n"),
        "{status}, {line:?}, {said:?}: {errors}"
    );
    Ok(())
}

const READY: &str = "ready\n";
/// Homes are refused here, with the reason.
const NO_XATTRS: &str = "no attributes\n";

#[derive(Debug, Args)]
pub(crate) struct ScriptsOptions {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    count: u64,
}

/// Enters a user namespace whose ids the parent maps, and runs scripts there.
pub(crate) fn in_namespace(options: &ScriptsOptions) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .context("cannot enter a user namespace")?;
    print!("{READY}");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    let probe = OpenOptions::new().create(true);
    match Overlay2::open(Kernel::host(), &options.dir.join("probe"), probe) {
        Err(Error::NoXattrs { .. }) => {
            print!("{NO_XATTRS}");
            return Ok(());
        }
        opened => drop(opened?),
    }
    let subject = Subject::new(Kernel::host(), &options.dir).editing(edit_file);
    let numbers = FIRST..FIRST + options.count;
    let written = run_scripts(&subject, numbers.clone());
    ensure!(
        written.redirects == 0 && written.metacopies == 0,
        "the kernel follows what anybody can write: {written:?}"
    );
    println!("{}", numbers.count());
    Ok(())
}

/// The mock kernel answers to every step as this one does, and leaves the same trees.
pub(super) fn differential(place: &Place) -> Result<()> {
    let host = Subject::new(Kernel::host(), &place.dir).editing(edit_file);
    let mut profile = match place.fs {
        FsKind::Xfs => KernelProfile::xfs(),
        FsKind::Tmpfs | FsKind::Ext4 => KernelProfile::modern(),
    };
    profile.user_xattrs = host.kernel().system().keeps_xattrs(
        &host.kernel().tree().open_root(&place.dir)?,
        XattrNamespace::User,
    )?;
    profile.quota = host.kernel().quota().enforcement(&place.dir)?;
    // More than 5000 on the three file systems together.
    let count: u32 = if place.quick { 150 } else { 1700 };
    // Others on each file system, and the same ones in every run.
    let first = 1_000_000 * (1 + place.fs as u64);
    let (mut lines, mut failed) = (0, Vec::new());
    let mut counts = Counts::default();
    for number in first..first + u64::from(count) {
        let mock = MockKernel::new(profile.clone());
        mock.mkdir_all(Path::new("/scratch"))?;
        let editor = mock.clone();
        let subject = Subject::new(mock.kernel(), "/scratch")
            .editing(move |path, edit| editor.edit(path, edit));
        let there = run(&subject, number)?;
        let here = run(&host, number)?;
        lines += here.lines().len();
        counts.add(&here);
        if let Some(difference) = here.difference(&there) {
            println!("script {number} differs on the mock:\n{difference}");
            failed.push(number);
            ensure!(
                failed.len() < 5,
                "the scripts {failed:?} differ, and more may"
            );
        }
    }
    ensure!(failed.is_empty(), "the scripts {failed:?} differ");
    let missing = counts.missing(usize::try_from(count)?);
    ensure!(missing.is_empty(), "too little was done: {missing:?}");
    println!("{count} scripts, {lines} answers and objects the same on the mock");
    Ok(())
}
