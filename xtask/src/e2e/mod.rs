//! The real-kernel suites on real file systems, as root.
//!
//! Everything happens in a mount namespace of its own and on a tmpfs that only exists there, so that
//! nothing is left mounted or written whatever happens.

mod compare;
mod crowd;
mod deny;
mod docker;
mod images;
mod mounts;
mod peak;
mod random;
mod rows;
mod scenarios;
mod storm;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use ovl_driver::Kernel;
use ovl_quota::Enforcement;
use ovl_testkit::conformance::{Case, Skip, Subject, cases};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::{cargo, output};
pub(crate) use crowd::{CrowdOptions, crowd};
use deny::{Answer, Denial, Denied};
use images::{Image, Scratch};
use mounts::unmount_below;
pub(crate) use peak::{PeakOptions, peak};
pub(crate) use random::Random;
pub(crate) use scenarios::{ScriptsOptions, in_namespace};
pub(crate) use storm::{
    Ending, Home, Log, Model, Step, WorkerOptions, assert_clean, work, work_with,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Fewer and smaller scenarios
    #[arg(long)]
    quick: bool,
    /// Only these file systems
    #[arg(long, value_enum)]
    fs: Vec<FsKind>,
    /// Only cases and scenarios whose name holds this; `rows` means the tests of archives
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// The scenarios beside a real Docker daemon instead of all others
    #[arg(long)]
    docker: bool,
    /// Take these system calls away, with ENOSYS and with EPERM: all at once, and each alone unless
    /// it has to be quick
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CALL,...")]
    deny: Vec<Denied>,
    /// Leave everything there until a line comes on standard input
    #[arg(long)]
    keep: bool,
    /// What the scenarios of chance do; a failure tells its own
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Instead of anything else, have Docker write the fixtures here.
    #[arg(skip)]
    fixtures: Option<PathBuf>,
}

impl Options {
    pub(crate) fn for_ci(quick: bool) -> Self {
        Self {
            quick,
            fs: Vec::new(),
            filter: None,
            docker: false,
            deny: Vec::new(),
            keep: false,
            seed: None,
            fixtures: None,
        }
    }

    /// Everything denied, where it has to be quick all at once and on one file system; without what
    /// takes long.
    pub(crate) fn denying(quick: bool) -> Self {
        Self {
            deny: Denied::value_variants().to_vec(),
            fs: match quick {
                true => vec![FsKind::Tmpfs],
                false => Vec::new(),
            },
            ..Self::for_ci(quick)
        }
    }

    pub(crate) fn with_docker() -> Self {
        Self {
            docker: true,
            ..Self::for_ci(false)
        }
    }

    pub(crate) fn for_fixtures() -> Self {
        Self {
            fs: vec![FsKind::Ext4],
            docker: true,
            fixtures: Some(crate::root().join("ovl-driver/tests/fixtures")),
            ..Self::for_ci(false)
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
    /// An archive of a Debian root; without it, what needs one is skipped.
    #[arg(long)]
    rootfs: Option<PathBuf>,
    /// Only what is about project quotas.
    #[arg(long, value_enum)]
    quotas: Option<Quotas>,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    filter: Option<String>,
    #[arg(long)]
    docker: bool,
    #[arg(long, value_enum, value_delimiter = ',')]
    deny: Vec<Denied>,
    #[arg(long, value_enum)]
    answer: Option<Answer>,
    #[arg(long)]
    keep: bool,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    fixtures: Option<PathBuf>,
}

/// What the file system does about project quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quotas {
    Enforced,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FsKind {
    Tmpfs,
    Xfs,
    Ext4,
}

impl FsKind {
    const ALL: [Self; 3] = [Self::Tmpfs, Self::Xfs, Self::Ext4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }

    /// What `statfs` says of it, from linux/magic.h.
    pub(crate) fn magic(self) -> rustix::fs::FsWord {
        match self {
            Self::Tmpfs => 0x0102_1994,
            Self::Xfs => 0x5846_5342,
            Self::Ext4 => 0xef53,
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
    let docker = docker::TOOLS.iter().filter(|_| options.docker);
    require_tools(TOOLS.iter().chain(docker))?;
    let programs = step("static build", build)?;

    unshare(CloneFlags::CLONE_NEWNS).context("cannot enter a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("cannot make the mounts private")?;
    let scratch = Scratch::mount()?;
    let result = on_scratch(options, &programs, scratch.path());
    let left = scratch.left()?;
    drop(scratch);
    result?;
    ensure!(left.is_empty(), "this is left: {}", left.join(", "));
    Ok(())
}

/// Fails with the package that has the first missing program.
pub(crate) fn require_tools<'t>(
    tools: impl IntoIterator<Item = &'t (&'t str, &'t str)>,
) -> Result<()> {
    for (tool, package) in tools {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(tool).exists());
        ensure!(
            found,
            "{tool} is missing; install the Debian package {package}"
        );
    }
    Ok(())
}

fn on_scratch(options: &Options, programs: &Programs, scratch: &Path) -> Result<()> {
    let rootfs = step("debian root", || debian_root(scratch))?;
    let chosen = |fs: &FsKind| match options.fs.is_empty() {
        // What Docker keeps its layers on.
        true => !options.docker || *fs != FsKind::Tmpfs,
        false => options.fs.contains(fs),
    };
    let (mut failed, mut images) = (Vec::new(), Vec::new());
    let seed = options.seed.map_or_else(random_seed, Ok)?;
    let only_rows = options.filter.as_deref() == Some(rows::NAME);
    let rows = !options.docker && options.deny.is_empty();
    let rows = only_rows || rows && options.filter.is_none();
    if rows {
        step("build of the rows' tests", rows::build)?;
    }
    let denials = match options.deny.is_empty() {
        true => vec![None],
        false => {
            let runs = Denial::runs(&options.deny, !options.quick);
            runs.into_iter().map(Some).collect()
        }
    };
    let runs = FsKind::ALL.into_iter().filter(chosen);
    for (fs, denial) in runs.flat_map(|fs| denials.iter().map(move |denial| (fs, denial))) {
        let image = Image::mount(scratch, fs)?;
        if rows && step(rows::NAME, || rows::run(image.path())).is_err() {
            failed.push(format!("{} of {}", fs.name(), rows::NAME));
        }
        if only_rows {
            image.unmount()?;
            continue;
        }
        let mut suite = match options.docker {
            true => docker::confined(&programs.xtask),
            false => Command::new(&programs.xtask),
        };
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
        suite.arg("--seed").arg(seed.to_string());
        suite.args(options.quick.then_some("--quick"));
        suite.args(options.docker.then_some("--docker"));
        suite.args(options.keep.then_some("--keep"));
        if let Some(filter) = &options.filter {
            suite.arg("--filter").arg(filter);
        }
        if let Some(dir) = &options.fixtures {
            suite.arg("--fixtures").arg(dir);
        }
        let mut name = fs.name().to_owned();
        if let Some(denial) = denial {
            let (list, answer) = (denial.list(), denial.answer.name());
            suite.args(["--deny", &list, "--answer", answer]);
            name = format!("{name} without {list} ({answer})");
        }
        if step(&name, || crate::run(&mut suite)).is_err() {
            failed.push(name);
        }
        if options.keep {
            images.push(image);
        } else {
            image.unmount()?;
        }
    }
    if options.keep {
        wait(scratch)?;
    }
    ensure!(
        failed.is_empty(),
        "the suite failed on {}",
        failed.join(", ")
    );
    Ok(())
}

pub(crate) fn random_seed() -> Result<u64> {
    // Small enough to be typed again.
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(random).into())
}

/// Nobody else sees this mount namespace, but whoever may look at this process.
fn wait(scratch: &Path) -> Result<()> {
    println!(
        "e2e: kept at /proc/{}/root{}; Enter takes it away",
        std::process::id(),
        scratch.display()
    );
    std::io::stdin().read_line(&mut String::new())?;
    unmount_below(scratch)
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work();
    println!("e2e: {name}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

pub(crate) struct Programs {
    pub(crate) ovl: PathBuf,
    pub(crate) xtask: PathBuf,
}

/// Where cargo builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    Ok(target.context("no target directory")?.into())
}

/// Static programs: they run in a chroot and in a virtual machine as well.
pub(crate) fn build() -> Result<Programs> {
    let version = output(std::process::Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it builds for")?;
    let target = target_dir()?.join("static");
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
    if let Some(answer) = options.answer {
        deny::apply(&options.deny, answer)?;
    }
    let _confinement = match options.docker {
        true => Some(docker::Confinement::enter()?),
        false => None,
    };
    if let Some(quotas) = options.quotas {
        let found = Kernel::host().quota().enforcement(&options.dir)?;
        ensure!(
            (found == Enforcement::Enforced) == (quotas == Quotas::Enforced),
            "{}: {found}",
            options.dir.display()
        );
    }
    let (cases, scenarios) = match (options.docker, options.quotas) {
        (true, _) => (Vec::new(), &docker::ALL[..]),
        (false, None) => (cases(), &scenarios::ALL[..]),
        (false, Some(Quotas::Enforced)) => (cases(), &scenarios::QUOTAS[..]),
        (false, Some(Quotas::Off)) => (cases(), &[][..]),
    };
    let chosen = |case: &Case| options.quotas.is_none() || case.subject == "quotas";
    for case in cases.into_iter().filter(chosen) {
        count.run(options, case.name, |dir| {
            let subject = Subject::new(Kernel::host(), dir).editing(ovl_testkit::edit_file);
            (case.run)(&subject);
            Ok(subject.skips())
        });
    }
    let place = |dir: &Path| scenarios::Place {
        dir: dir.to_owned(),
        ovl: options.ovl.clone(),
        rootfs: options.rootfs.clone(),
        fs: options.fs,
        quick: options.quick,
        seed: options.seed,
        skips: RefCell::default(),
    };
    if let Some(fixtures) = &options.fixtures {
        return docker::write_fixture(&place(&options.dir), fixtures);
    }
    for (name, scenario) in scenarios {
        match options.rootfs {
            _ if options.answer.is_some() && scenarios::OF_CHANCE.contains(name) => {
                count.skip(
                    options,
                    name,
                    "of chance: it shows nothing more without these calls",
                );
            }
            None if scenarios::NEED_DEBIAN.contains(name) => {
                count.skip(options, name, "no Debian root and its programs here");
            }
            _ => count.run(options, name, |dir| {
                let place = place(dir);
                scenario(&place)?;
                Ok(place.skips.take())
            }),
        }
    }
    let Count {
        passed,
        failed,
        skipped,
        unasked,
    } = count;
    println!(
        "{passed} passed, {} failed, {skipped} skipped, {unasked} not asked for",
        failed.len()
    );
    ensure!(
        passed + failed.len() + skipped > 0,
        "no case and no scenario has the filter in its name"
    );
    ensure!(
        failed.is_empty(),
        "{} on {}",
        failed.join(", "),
        options.fs.name()
    );
    Ok(())
}

#[derive(Default)]
struct Count {
    passed: usize,
    failed: Vec<String>,
    /// They lack something here.
    skipped: usize,
    /// The filter leaves them out.
    unasked: usize,
}

impl Count {
    fn is_asked(&mut self, options: &SuiteOptions, name: &str) -> bool {
        let filter = options.filter.as_deref().unwrap_or_default();
        let asked = name.contains(filter);
        self.unasked += usize::from(!asked);
        asked
    }

    fn skip(&mut self, options: &SuiteOptions, name: &str, reason: &str) {
        if self.is_asked(options, name) {
            println!("test {name} ... skipped: {reason}");
            self.skipped += 1;
        }
    }

    /// Runs something, which says what it has left out.
    fn run(
        &mut self,
        options: &SuiteOptions,
        name: &str,
        work: impl FnOnce(&Path) -> Result<Vec<Skip>>,
    ) {
        if !self.is_asked(options, name) {
            return;
        }
        let start = Instant::now();
        let dir = options.dir.join(name);
        let result = std::fs::create_dir(&dir)
            .map_err(Into::into)
            .and_then(|()| {
                // A case panics as a test does; the message has been printed by then.
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&dir)))
                    .unwrap_or_else(|_| Err(anyhow!("it panicked")))
            });
        let took = start.elapsed().as_secs_f64();
        // What one leaves behind must not be the next one's trouble.
        let result = match options.keep {
            true => result,
            false => result.and_then(|skips| clear(&dir).map(|()| skips)),
        };
        match result {
            Ok(skips) => {
                for Skip { part, reason, .. } in &skips {
                    let part = part.as_ref().map(|part| format!(" ({part})"));
                    println!(
                        "test {name}{} ... skipped: {reason}",
                        part.unwrap_or_default()
                    );
                }
                self.skipped += skips.len();
                if skips.iter().all(|skip| skip.part.is_some()) {
                    println!("test {name} ... ok ({took:.2} s)");
                    self.passed += 1;
                }
            }
            Err(error) => {
                println!("test {name} ... FAILED ({took:.2} s): {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }
}

fn clear(dir: &Path) -> Result<()> {
    unmount_below(dir)?;
    std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
