//! The real-kernel suites on real file systems, as root.
//!
//! Everything happens in a mount namespace of its own and on a tmpfs that only exists there, so that
//! nothing is left mounted or written whatever happens.

mod images;
mod scenarios;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::Kernel;
use ovl_testkit::conformance::{Subject, cases};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::{cargo, output};
use images::{Image, loop_devices};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Fewer and smaller scenarios
    #[arg(long)]
    quick: bool,
    /// Only these file systems
    #[arg(long, value_enum)]
    fs: Vec<FsKind>,
    /// Only cases and scenarios whose name holds this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
}

impl Options {
    pub(crate) fn for_ci(quick: bool) -> Self {
        Self {
            quick,
            fs: Vec::new(),
            filter: None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct SuiteOptions {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long, value_enum)]
    fs: FsKind,
    #[arg(long)]
    ovl: PathBuf,
    #[arg(long)]
    rootfs: PathBuf,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FsKind {
    Tmpfs,
    Xfs,
    Ext4,
}

impl FsKind {
    const ALL: [Self; 3] = [Self::Tmpfs, Self::Xfs, Self::Ext4];

    fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }
}

/// Programs that the scenarios use, and the Debian packages that have them.
const TOOLS: [(&str, &str); 9] = [
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("debootstrap", "debootstrap"),
    ("tar", "tar"),
    ("bsdtar", "libarchive-tools"),
    ("setfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("chroot", "coreutils"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "e2e mounts file systems: run it as root"
    );
    for (tool, package) in TOOLS {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(tool).exists());
        ensure!(
            found,
            "{tool} is missing; install the Debian package {package}"
        );
    }
    let programs = step("static build", build)?;

    unshare(CloneFlags::CLONE_NEWNS).context("cannot enter a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("cannot make the mounts private")?;
    let scratch = tempfile::Builder::new().prefix("ovl-e2e").tempdir()?;
    mount(
        "ovl-e2e",
        scratch.path(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=0755"),
    )
    .context("cannot mount a tmpfs")?;
    let devices = loop_devices()?;
    let result = on_scratch(options, &programs, scratch.path());
    rustix::mount::unmount(scratch.path(), rustix::mount::UnmountFlags::DETACH)?;
    let left: Vec<String> = loop_devices()?
        .into_iter()
        .filter(|device| !devices.contains(device))
        .collect();
    scratch.close()?;
    result?;
    ensure!(left.is_empty(), "loop devices are left: {left:?}");
    Ok(())
}

fn on_scratch(options: &Options, programs: &Programs, scratch: &Path) -> Result<()> {
    let rootfs = step("debian root", || debian_root(scratch))?;
    let chosen = if options.fs.is_empty() {
        FsKind::ALL.to_vec()
    } else {
        options.fs.clone()
    };
    let mut failed = Vec::new();
    for fs in chosen {
        let image = Image::mount(scratch, fs)?;
        let mut suite = Command::new(&programs.xtask);
        suite
            .arg("suite")
            .arg("--dir")
            .arg(image.path())
            .args(["--fs", fs.name()]);
        suite
            .arg("--ovl")
            .arg(&programs.ovl)
            .arg("--rootfs")
            .arg(&rootfs);
        suite.args(options.quick.then_some("--quick"));
        if let Some(filter) = &options.filter {
            suite.arg("--filter").arg(filter);
        }
        if step(fs.name(), || crate::run(&mut suite)).is_err() {
            failed.push(fs.name());
        }
        image.unmount()?;
    }
    ensure!(
        failed.is_empty(),
        "the suite failed on {}",
        failed.join(", ")
    );
    Ok(())
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work();
    println!("e2e: {name}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

struct Programs {
    ovl: PathBuf,
    xtask: PathBuf,
}

/// Static programs: they run in a chroot and in a virtual machine as well.
fn build() -> Result<Programs> {
    let version = output(std::process::Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it builds for")?;
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"]
        .as_str()
        .context("no target directory")?;
    let target = Path::new(target).join("static");
    let mut build = cargo();
    build.args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--target",
        host,
    ]);
    build
        .args(["-p", "ovl-cli", "-p", "xtask", "--target-dir"])
        .arg(&target);
    crate::run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let dir = target.join(host).join("release");
    Ok(Programs {
        ovl: dir.join("ovl"),
        xtask: dir.join("xtask"),
    })
}

/// A Debian root file system as an archive.
fn debian_root(scratch: &Path) -> Result<PathBuf> {
    let (dir, archive) = (scratch.join("debian"), scratch.join("root.tar"));
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", "bookworm"])
        .arg(&dir);
    output(&mut debootstrap)?;
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-cf"])
        .arg(&archive);
    output(tar.arg("-C").arg(&dir).arg("."))?;
    std::fs::remove_dir_all(&dir)?;
    Ok(archive)
}

/// Runs everything on one file system and counts.
pub(crate) fn suite(options: &SuiteOptions) -> Result<()> {
    let mut count = Count::default();
    let wanted = |name: &str| {
        options
            .filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    };
    for case in cases().into_iter().filter(|case| wanted(case.name)) {
        let dir = options.dir.join(case.name);
        std::fs::create_dir(&dir)?;
        count.run(case.name, || {
            (case.run)(&Subject::new(Kernel::host(), &dir));
            Ok(())
        });
        std::fs::remove_dir_all(&dir)?;
    }
    for (name, scenario) in scenarios::ALL {
        if !wanted(name) {
            continue;
        }
        let dir = options.dir.join(name);
        std::fs::create_dir(&dir)?;
        let place = scenarios::Place {
            dir: dir.clone(),
            ovl: options.ovl.clone(),
            rootfs: options.rootfs.clone(),
            quick: options.quick,
        };
        count.run(name, || scenario(&place));
        scenarios::unmount_below(&dir)?;
        std::fs::remove_dir_all(&dir)?;
    }
    println!(
        "{} passed, {} failed, 0 skipped",
        count.passed,
        count.failed.len()
    );
    if count.failed.is_empty() {
        return Ok(());
    }
    bail!("{} on {}", count.failed.join(", "), options.fs.name())
}

#[derive(Default)]
struct Count {
    passed: usize,
    failed: Vec<String>,
}

impl Count {
    fn run(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        // A case panics as a test does; the message has been printed by then.
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let result = caught.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
        let took = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("test {name} ... ok ({took:.2} s)");
                self.passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED ({took:.2} s): {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }
}
