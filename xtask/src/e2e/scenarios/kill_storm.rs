use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Error, Kernel, OpenOptions, UpkeepOptions};
use ovl_layout::{LayerId, names};
use ovl_mount::UnmountMode;
use rustix::process::Signal;

use super::Place;
use crate::e2e::mounts::mounts_below;
use crate::e2e::random::Random;
use crate::e2e::storm::{Log, Model};

const ROUNDS: [u64; 2] = [40, 300];
/// Rounds on one home.
const ON_ONE_HOME: u64 = 25;
/// What a layer takes beside its contents: its directories and small files, and directories that
/// do not shrink.
const LAYER_OVERHEAD: u64 = 64 << 10;
/// What a home takes beside its layers.
const HOME_OVERHEAD: u64 = 128 << 10;

/// Whatever a process is doing when it is killed, what it has reported is there, and what it has
/// left goes.
pub(super) fn run(place: &Place) -> Result<()> {
    let rounds = ROUNDS[usize::from(!place.quick)];
    let (mut random, mut tally) = (Random::new(place.seed), Tally::default());
    let mut storm = Storm::new(place, 0);
    for round in 0..rounds {
        let next = round / ON_ONE_HOME;
        if next != storm.number {
            storm.end().context("at the end of a home")?;
            storm = Storm::new(place, next);
        }
        storm.round(&mut random, &mut tally).with_context(|| {
            format!(
                "round {round} with --seed {}; its log is {}",
                place.seed,
                storm.log.display()
            )
        })?;
    }
    storm.end().context("at the end of a home")?;
    println!("{rounds} rounds of seed {}; {tally}", place.seed);
    Ok(())
}

/// What the kills hit.
#[derive(Default)]
struct Tally {
    steps: u64,
    refused: usize,
    hit: BTreeMap<&'static str, u64>,
    /// What they left behind, before anything was cleaned up.
    left: BTreeMap<&'static str, u64>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<&str, u64>| {
            let counts = counts.iter().map(|(name, count)| format!("{name} {count}"));
            counts.collect::<Vec<_>>().join(", ")
        };
        let (hit, left) = (list(&self.hit), list(&self.left));
        let Self { steps, refused, .. } = self;
        write!(
            f,
            "{steps} steps done, {refused} refused; killed in {hit}; left: {left}"
        )
    }
}

/// One home and what must be in it.
struct Storm {
    number: u64,
    home: PathBuf,
    log: PathBuf,
    model: Model,
}

impl Storm {
    fn new(place: &Place, number: u64) -> Self {
        Self {
            number,
            home: place.dir.join(format!("home-{number}")),
            log: place.dir.join("log"),
            model: Model::default(),
        }
    }

    fn round(&mut self, random: &mut Random, tally: &mut Tally) -> Result<()> {
        let delay = match random.below(8) {
            // The home is made within the first moments.
            _ if !self.home.join(names::LINK_DIR).exists() => random.below(6_000),
            0 => random.below(150_000),
            _ => random.below(30_000),
        };
        let log = self.kill_worker(random, Duration::from_micros(delay))?;
        if let Some(bug) = &log.bug {
            anyhow::bail!("{bug}");
        }
        tally.steps += log.done.len() as u64;
        tally.refused += log.refused;
        let hit = match &log.pending {
            Some(step) => step.name(),
            None if log.done.is_empty() => "start",
            None => "between steps",
        };
        *tally.hit.entry(hit).or_default() += 1;

        let kernel = Kernel::host();
        let store = match Overlay2::open(kernel, &self.home, OpenOptions::new()) {
            Err(Error::HomeNotFound { .. }) if log.done.is_empty() => return Ok(()),
            result => result?,
        };
        let report = store.check()?;
        ensure!(report.is_sound(), "damage: {:#?}", report.findings);
        for finding in &report.findings {
            *tally.left.entry(finding.kind.as_str()).or_default() += 1;
        }
        self.model.follow(&log, &store)?;
        // Sometimes the next process meets what this one has left.
        if !random.one_in(4) {
            self.clean_up(&store)?;
            if random.one_in(3) {
                self.release_all(&store)?;
            }
        }
        Ok(())
    }

    /// Runs a process that works on the home, and kills it.
    fn kill_worker(&self, random: &mut Random, delay: Duration) -> Result<Log> {
        match fs::remove_file(&self.log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let durability = match random.below(4) {
            0 | 1 => "none",
            2 => "layer",
            _ => "full",
        };
        let mut worker = Command::new(std::env::current_exe()?);
        worker
            .arg("storm-worker")
            .arg("--home")
            .arg(&self.home)
            .arg("--log")
            .arg(&self.log);
        worker.args(["--durability", durability]);
        worker.arg("--seed").arg(random.next().to_string());
        let mut worker = worker.stdin(Stdio::null()).spawn()?;
        std::thread::sleep(delay);
        worker.kill()?;
        let status = worker.wait()?;
        let log: Log = match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Log::default(),
            log => log?.parse()?,
        };
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        ensure!(
            killed || log.bug.is_some(),
            "the process has ended by itself: {status}"
        );
        Ok(log)
    }

    /// Nothing that nobody needs is left after that.
    fn clean_up(&mut self, store: &Overlay2) -> Result<()> {
        let garbage = store.gc(UpkeepOptions::new())?;
        ensure!(garbage.kept.is_empty(), "kept: {:#?}", garbage.kept);
        assert_clean(store)?;
        let mut mounts = mounts_below(&self.home)?;
        mounts.sort();
        let held = self.model.persistent();
        let held = held
            .keys()
            .map(|id| self.home.join(id.as_str()).join(names::MERGED));
        let held: Vec<PathBuf> = held.collect();
        ensure!(mounts == held, "mounted are {mounts:?}, held {held:?}");
        self.assert_no_space_is_lost(store)
    }

    /// Takes every hold away through the store: there are as many as were reported.
    fn release_all(&mut self, store: &Overlay2) -> Result<()> {
        for (id, count) in self.model.persistent() {
            for left in (0..count).rev() {
                let found = store.unmount(&id, UnmountMode::Now)?;
                ensure!(found == left, "{found} holds of {id} are left, not {left}");
            }
        }
        self.model.unmount_all();
        let mounts = mounts_below(&self.home)?;
        ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
        assert_clean(store)
    }

    fn assert_no_space_is_lost(&self, store: &Overlay2) -> Result<()> {
        let (mut expected, mut layers) = (HOME_OVERHEAD, 0);
        for id in self.model.ids() {
            expected += store.inspect(id)?.size.allocated + LAYER_OVERHEAD;
            layers += 1;
        }
        let found = allocated(&self.home)?;
        ensure!(
            found <= expected,
            "{found} bytes are allocated, {expected} at most for {layers} layers"
        );
        for id in self.model.ids() {
            let known = |name: &str| names::LAYER.contains(&name);
            let unknown = names_in(&self.home.join(id.as_str()))?;
            let unknown: Vec<_> = unknown.iter().filter(|name| !known(name)).collect();
            ensure!(unknown.is_empty(), "{id} holds {unknown:?}");
        }
        Ok(())
    }

    /// Takes everything away: the home is as empty as a new one.
    fn end(&mut self) -> Result<()> {
        if !self.home.join(names::LINK_DIR).exists() {
            return Ok(());
        }
        let store = Overlay2::open(Kernel::host(), &self.home, OpenOptions::new())?;
        self.clean_up(&store)?;
        self.release_all(&store)?;
        let mut left: Vec<LayerId> = self.model.ids().cloned().collect();
        while !left.is_empty() {
            let before = left.len();
            let mut refused = Vec::new();
            for id in left {
                match store.remove(&id, false) {
                    Ok(()) => {}
                    Err(Error::HasChildren { .. }) => refused.push(id),
                    Err(error) => return Err(error.into()),
                }
            }
            ensure!(refused.len() < before, "{refused:?} stand on each other");
            left = refused;
        }
        store.reclaim()?;
        assert_clean(&store)?;
        let children = names_in(&store.layout().store_dir().join(names::CHILDREN))?;
        ensure!(children.len() <= 1, "still noted as parents: {children:?}");
        let found = allocated(&self.home)?;
        ensure!(
            found <= HOME_OVERHEAD,
            "{found} bytes are allocated without a layer"
        );
        drop(store);
        fs::remove_dir_all(&self.home)?;
        Ok(())
    }
}

/// Neither damage nor leftovers, and nothing that is not understood.
pub(super) fn assert_clean(store: &Overlay2) -> Result<()> {
    let report = store.check()?;
    ensure!(
        report.is_clean() && report.findings.is_empty(),
        "not clean: {:#?}",
        report.findings
    );
    for name in [names::STAGING, names::TRASH] {
        let left = names_in(&store.layout().store_dir().join(name))?;
        ensure!(left.is_empty(), "{left:?} are left in {name}");
    }
    Ok(())
}

/// Bytes on disk below a directory, without what is mounted.
fn allocated(dir: &Path) -> Result<u64> {
    let mut inodes = BTreeMap::new();
    collect(dir, &mut inodes)?;
    Ok(inodes.into_values().sum())
}

/// An inode with several names takes its space once.
fn collect(dir: &Path, inodes: &mut BTreeMap<u64, u64>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        inodes.insert(metadata.ino(), metadata.blocks() * 512);
        // A layer without a parent is mounted from the same file system.
        if metadata.is_dir() && entry.file_name() != names::MERGED {
            collect(&entry.path(), inodes)?;
        }
    }
    Ok(())
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let listed = match fs::read_dir(dir) {
        // The home's own directories are made with the first layer.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = listed
        .map(|entry| entry.map(name))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}
