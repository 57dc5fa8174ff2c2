//! Inside: the first process of a guest, which runs the suites and tells the host on the console.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::initramfs::{MODULE_DIR, OVL};
use super::report::{BEGIN, DONE, END};
use crate::e2e::FsKind;

#[derive(Debug, Args)]
pub(crate) struct GuestOptions {
    /// Runs of the suite: disk, file system, state of quotas or `-`.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    filter: Option<String>,
}

/// One run of the suite on a file system, mounted for it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(super) disk: String,
    pub(super) fs: FsKind,
    /// What is said of project quotas: the file system keeps them unless they are `off`.
    pub(super) quotas: Option<String>,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quotas = self.quotas.as_deref().unwrap_or("-");
        write!(f, "{}:{}:{quotas}", self.disk, self.fs.name())
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let [disk, fs, quotas] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err("a part is a disk, a file system and the state of quotas".to_owned());
        };
        Ok(Self {
            disk: disk.to_owned(),
            fs: clap::ValueEnum::from_str(fs, false)?,
            quotas: (quotas != "-").then(|| quotas.to_owned()),
        })
    }
}

impl Part {
    /// What the host's table calls it.
    pub(super) fn name(&self) -> String {
        match &self.quotas {
            Some(quotas) => format!("quotas {quotas}, {}", self.fs.name()),
            None => self.fs.name().to_owned(),
        }
    }
}

/// Never comes back: a first process that ends is a crash of the kernel.
pub(crate) fn run(options: &GuestOptions) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "only the first process of a guest does this"
    );
    match run_parts(options) {
        Ok(()) => println!("{DONE}"),
        Err(error) => println!("the guest failed: {error:#}"),
    }
    rustix::fs::sync();
    // The host starts the machine so that this ends it.
    reboot(RebootCommand::Restart)?;
    Ok(())
}

fn run_parts(options: &GuestOptions) -> Result<()> {
    prepare()?;
    for part in &options.parts {
        println!("{BEGIN}{}", part.name());
        let passed = run_part(part, options)?;
        println!("{END}{}", if passed { "passed" } else { "failed" });
    }
    Ok(())
}

/// What every guest needs before it can use a disk.
pub(super) fn prepare() -> Result<()> {
    for (source, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/tmp"),
    ] {
        mount(source, target, source, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {target}"))?;
    }
    load_modules()
}

fn load_modules() -> Result<()> {
    let mut modules: Vec<PathBuf> = std::fs::read_dir(MODULE_DIR)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    // Each after those that it needs.
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        finit_module(&file, c"", 0).with_context(|| format!("cannot load {}", module.display()))?;
    }
    Ok(())
}

fn run_part(part: &Part, options: &GuestOptions) -> Result<bool> {
    let dir = Path::new("/mnt").join(part.fs.name());
    let quotas_off = part.quotas.as_deref() == Some("off");
    let data = match part.fs {
        FsKind::Tmpfs => "",
        _ if quotas_off => "",
        _ => "prjquota",
    };
    mount_disk(&part.disk, part.fs, &dir, data)?;
    let mut suite = Command::new("/init");
    suite.arg("suite").arg("--dir").arg(&dir);
    suite.args(["--fs", part.fs.name(), "--ovl", OVL]);
    if let Some(quotas) = &part.quotas {
        suite.args(["--quotas", quotas]);
    }
    suite.arg("--seed").arg(options.seed.to_string());
    suite.args(options.quick.then_some("--quick"));
    if let Some(filter) = &options.filter {
        suite.arg("--filter").arg(filter);
    }
    let status = suite.env("NO_COLOR", "1").status();
    let status = status.context("cannot run the suite")?;
    if status.code().is_none() {
        // As where memory has run out.
        println!("the suite ended with {status}");
    }
    let how = match status.success() {
        true => UnmountFlags::empty(),
        // What a failure has left must not keep the other parts from running.
        false => UnmountFlags::DETACH,
    };
    unmount(&dir, how).with_context(|| format!("something is still using {}", dir.display()))?;
    Ok(status.success())
}

/// Mounts a disk, which may take a moment to appear.
pub(super) fn mount_disk(disk: &str, fs: FsKind, dir: &Path, data: &str) -> Result<()> {
    let device = match fs {
        FsKind::Tmpfs => PathBuf::from(disk),
        _ => Path::new("/dev").join(disk),
    };
    let start = Instant::now();
    while fs != FsKind::Tmpfs && !device.exists() {
        if start.elapsed() > Duration::from_secs(10) {
            bail!("there is no disk {disk}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::create_dir_all(dir)?;
    let data = CString::new(data)?;
    mount(&device, dir, fs.name(), MountFlags::empty(), &*data)
        .with_context(|| format!("cannot mount {disk} as {}", fs.name()))?;
    let found = rustix::fs::statfs(dir)?.f_type;
    ensure!(
        found == fs.magic(),
        "{} shows a file system of type {found:#x}",
        dir.display()
    );
    Ok(())
}
