//! Inside: one worker a disk, which looks at what the last cut has left and goes on.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use ovl_driver::{Durability, Kernel};

use super::DISKS;
use super::broken::{Broken, Variant};
use super::console::{Ledger, Told};
use crate::e2e::{Ending, FsKind, Home, Model, Step, assert_clean, work_with};
use crate::vm::guest::{mount_disk, prepare};

#[derive(Args, Clone, Debug)]
pub(crate) struct PowerGuestOptions {
    /// What the workers do.
    #[arg(long)]
    pub(super) seed: u64,
    /// Rest after so many layers made or taken away.
    #[arg(long)]
    pub(super) rest: Option<u64>,
    #[arg(long, value_enum)]
    pub(super) broken: Option<Variant>,
    /// In a worker: its file system.
    #[arg(long, value_enum)]
    pub(super) fs: Option<FsKind>,
}

impl PowerGuestOptions {
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["power-guest".to_owned()];
        arguments.extend(["--seed".to_owned(), self.seed.to_string()]);
        if let Some(rest) = self.rest {
            arguments.extend(["--rest".to_owned(), rest.to_string()]);
        }
        if let Some(variant) = self.broken {
            use clap::ValueEnum as _;
            let value = variant.to_possible_value();
            let name = value.map(|value| value.get_name().to_owned());
            arguments.extend(["--broken".to_owned(), name.unwrap_or_default()]);
        }
        arguments
    }
}

/// Ends only with the machine, unless something is wrong.
pub(crate) fn run(options: &PowerGuestOptions) -> Result<()> {
    if let Some(fs) = options.fs {
        return work(options, fs).inspect_err(|error| {
            let _ = tell(fs, &Told::Failed(format!("{error:#}")));
        });
    }
    ensure!(
        std::process::id() == 1,
        "only the first process of a guest does this"
    );
    prepare()?;
    let mut workers = Vec::new();
    for (_, fs) in DISKS {
        let mut worker = Command::new("/init");
        worker.args(options.arguments()).args(["--fs", fs.name()]);
        workers.push(worker.spawn()?);
    }
    for mut worker in workers {
        worker.wait()?;
    }
    rest()
}

/// The host takes the power away.
fn rest() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Returns when the line has left the machine: the host must not know less than has happened.
fn tell(fs: FsKind, told: &Told) -> io::Result<()> {
    let mut console = io::stdout().lock();
    console.write_all(format!("{}\n", told.line(fs)).as_bytes())?;
    console.flush()?;
    Ok(rustix::termios::tcdrain(&console)?)
}

fn work(options: &PowerGuestOptions, fs: FsKind) -> Result<()> {
    let dir = Path::new("/mnt").join(fs.name());
    let disk = DISKS.iter().find(|(_, one)| *one == fs);
    let (disk, _) = disk.context("there is no such disk")?;
    let ledger = Ledger::read(&read_ledgers()?, fs)?;
    let home = match look(&ledger, disk, fs, &dir) {
        Ok(home) => home,
        Err(error) => {
            tell(fs, &Told::Lost(format!("{error:#}")))?;
            rest();
        }
    };
    tell(fs, &Told::Sound)?;
    for line in home.model.to_string().lines() {
        tell(fs, &Told::Home(line.to_owned()))?;
    }
    tell(fs, &Told::Started)?;

    let mut left = options.rest;
    let mut lasting = false;
    let mut log = |line: &str| {
        tell(fs, &Told::Log(line.to_owned()))?;
        if let Some(step) = line.strip_prefix("begin ") {
            lasting = step.parse::<Step>().is_ok_and(|step| step.is_lasting());
        } else if lasting && line == "done" {
            left = left.map(|left| left.saturating_sub(1));
        }
        if left == Some(0) {
            tell(fs, &Told::Resting)?;
            rest();
        }
        Ok(())
    };
    let kernel = match options.broken {
        Some(variant) => Kernel::host().with_tree(Broken::new(variant)),
        None => Kernel::host(),
    };
    // Each worker does its own.
    let seed = options.seed ^ fs.magic() as u64;
    work_with(kernel, &home.path, Durability::Layer, seed, &mut log)
}

/// Mounts a disk and finds all in its home that must be there, and nothing else.
fn look(ledger: &Ledger, disk: &str, fs: FsKind, dir: &Path) -> Result<Home> {
    // Nothing but the store asks for writes.
    let data = if fs == FsKind::Ext4 {
        "noinit_itable"
    } else {
        ""
    };
    mount_disk(disk, fs, dir, data)?;
    let mut home = Home {
        path: dir.join("home"),
        model: ledger.home.join("\n").parse::<Model>()?,
    };
    if let Some((store, _)) = home.follow(&ledger.log()?, Ending::PowerCut)? {
        home.clean_up(&store).context("after the power cut")?;
        assert_clean(&store)?;
    }
    Ok(home)
}

/// The last disk is a text, filled up with NUL.
fn read_ledgers() -> Result<String> {
    let path = PathBuf::from(format!("/dev/{}", super::LEDGERS));
    let start = std::time::Instant::now();
    while !path.exists() && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = std::fs::read_to_string(path).context("cannot read the ledgers")?;
    Ok(text.trim_end_matches('\0').to_owned())
}
