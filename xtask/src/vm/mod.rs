//! Virtual machines: kernels that this host does not run, and quotas that its kernel lacks.
//!
//! A guest boots one of Debian's kernels into an initramfs whose first process is this program,
//! linked statically. It mounts new disks, runs the suites of `e2e` on them and tells the host by
//! lines on the serial console.

mod guest;
mod initramfs;
mod kernel;
mod machine;
mod power;
mod report;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand, ValueEnum};

use crate::e2e::{self, FsKind, Programs};
use guest::Part;
pub(crate) use guest::{GuestOptions, run as guest};
use kernel::{Kernel, Release};
use machine::{Machine, make_disk, scratch_drive};
use power::PowerCut;
pub(crate) use power::{PowerGuestOptions, guest as power_guest};
use report::{DONE, Report};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// Project quotas, enforced and not, on XFS and ext4
    Quota(Run),
    /// Everything of `e2e` that needs no Debian root, on XFS, ext4 and tmpfs
    E2e(Run),
    /// A store on disks that forget what was not flushed, cut off at random moments; on XFS and ext4
    PowerCut(PowerCut),
}

#[derive(Debug, Args)]
struct Run {
    /// Fewer and smaller scenarios
    #[arg(long)]
    quick: bool,
    /// Debian 12's kernel, that of a later release, or all of them
    #[arg(long, value_enum, default_value = "6.1")]
    kernels: Kernels,
    /// Only cases and scenarios whose name holds this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// What the scenarios of chance do; a failure tells its own
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kernels {
    #[value(name = "6.1")]
    Oldest,
    #[value(name = "6.12")]
    Middle,
    Newest,
    All,
}

impl Kernels {
    fn releases(self) -> &'static [Release] {
        match self {
            Self::Oldest => &kernel::ALL[..1],
            Self::Middle => &kernel::ALL[1..2],
            Self::Newest => &kernel::ALL[2..],
            Self::All => &kernel::ALL,
        }
    }
}

impl Options {
    /// What the gate asks for.
    pub(crate) fn for_ci(quick: bool) -> Self {
        Self {
            suite: Suite::Quota(Run {
                quick,
                kernels: if quick { Kernels::Oldest } else { Kernels::All },
                filter: None,
                seed: None,
            }),
        }
    }

    /// The power cuts that the gate asks for.
    pub(crate) fn power_cuts_for_ci(quick: bool) -> Vec<Self> {
        let mut all = vec![PowerCut::of_rounds(if quick { 6 } else { 50 })];
        if !quick {
            all.extend(PowerCut::broken(50));
        }
        let suites = all.into_iter().map(Suite::PowerCut);
        suites.map(|suite| Self { suite }).collect()
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machines are made for x86_64 only"
    );
    e2e::require_tools(&machine::TOOLS)?;
    let (run, parts) = match &options.suite {
        Suite::Quota(run) => (run, quota_parts()),
        Suite::E2e(run) => (run, e2e_parts()),
        Suite::PowerCut(options) => return power::run(options),
    };
    let programs = e2e::build()?;
    let cache = e2e::target_dir()?.join("vm");
    let mut report = Report::default();
    for release in run.kernels.releases() {
        let kernel = Kernel::fetch(*release, &cache)?;
        println!("vm: {} is {}", release.version, kernel.name);
        boot(&kernel, &programs, &parts, run, &mut report)?;
    }
    print!("{report}");
    let bad = report.bad();
    ensure!(!report.is_empty(), "nothing has run");
    ensure!(bad.is_empty(), "failed: {}", bad.join("; "));
    Ok(())
}

const DISKS: [(&str, FsKind); 2] = [("vda", FsKind::Xfs), ("vdb", FsKind::Ext4)];

/// Each file system without quotas, then with: what is made without must not be in the way.
fn quota_parts() -> Vec<Part> {
    let parts = DISKS.iter().flat_map(|(disk, fs)| {
        ["off", "enforced"].map(|quotas| Part {
            disk: (*disk).to_owned(),
            fs: *fs,
            quotas: Some(quotas.to_owned()),
        })
    });
    parts.collect()
}

fn e2e_parts() -> Vec<Part> {
    let tmpfs = ("tmpfs", FsKind::Tmpfs);
    let part = |(disk, fs): (&str, FsKind)| Part {
        disk: disk.to_owned(),
        fs,
        quotas: None,
    };
    DISKS.into_iter().chain([tmpfs]).map(part).collect()
}

/// Runs all parts in one guest. That it ends badly is in the report.
fn boot(
    kernel: &Kernel,
    programs: &Programs,
    parts: &[Part],
    run: &Run,
    report: &mut Report,
) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("ovl-vm").tempdir()?;
    let initramfs = scratch.path().join("initramfs");
    initramfs::write(kernel, programs, &initramfs)?;
    let mut disks = Vec::new();
    for (_, fs) in DISKS {
        disks.push(scratch_drive(&make_disk(fs, scratch.path())?));
    }
    let seed = run.seed.map_or_else(e2e::random_seed, Ok)?;
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["guest".to_owned(), "--parts".to_owned(), parts.join(",")];
    arguments.extend(["--seed".to_owned(), seed.to_string()]);
    arguments.extend(run.quick.then(|| "--quick".to_owned()));
    if let Some(filter) = &run.filter {
        ensure!(
            !filter.contains([' ', '"']),
            "a filter is a part of a name: no spaces"
        );
        arguments.extend(["--filter".to_owned(), filter.clone()]);
    }
    let start = Instant::now();
    let name = kernel.name.trim_start_matches("linux-image-");
    let machine = Machine::boot(kernel, &initramfs, &disks, &arguments)?;
    let mut last = String::new();
    while let Some(line) = machine.line()? {
        if line == DONE {
            println!(
                "vm: {}: {:.1} s",
                kernel.name,
                start.elapsed().as_secs_f64()
            );
            return Ok(());
        }
        println!("{line}");
        report.line(name, &line, start.elapsed().as_secs_f64());
        last = line;
    }
    report.lost(name, last);
    Ok(())
}
