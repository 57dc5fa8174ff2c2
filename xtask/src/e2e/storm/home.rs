//! A home that a process has worked on, and what must be in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Error, Kernel, OpenOptions, UpkeepOptions};
use ovl_layout::{LayerId, names};
use ovl_mount::UnmountMode;

use super::{Ending, Log, Model};
use crate::e2e::mounts::mounts_below;

/// What a layer takes beside its contents: its directories and small files, and directories that
/// do not shrink.
const LAYER_OVERHEAD: u64 = 64 << 10;
/// What a home takes beside its layers.
const HOME_OVERHEAD: u64 = 128 << 10;

/// What an end has left behind, counted by kind before anything is cleaned up.
pub(crate) type Left = BTreeMap<&'static str, u64>;

/// One home and what must be in it.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    pub(crate) model: Model,
}

impl Home {
    /// Opens the home after the process is gone: all that it has reported must be there, and what
    /// it was about to do is done or not. `None` when it has not come to making the home.
    pub(crate) fn follow(&mut self, log: &Log, how: Ending) -> Result<Option<(Overlay2, Left)>> {
        if let Some(bug) = &log.bug {
            anyhow::bail!("{bug}");
        }
        let store = match Overlay2::open(Kernel::host(), &self.path, OpenOptions::new()) {
            Err(Error::HomeNotFound { .. }) if log.done.is_empty() && self.model.is_empty() => {
                return Ok(None);
            }
            result => result?,
        };
        let report = store.check()?;
        ensure!(report.is_sound(), "damage: {:#?}", report.findings);
        let mut left = Left::new();
        for finding in &report.findings {
            *left.entry(finding.kind.as_str()).or_default() += 1;
        }
        self.model.follow(log, &store, how)?;
        Ok(Some((store, left)))
    }

    /// Nothing that nobody needs is left after that.
    pub(crate) fn clean_up(&mut self, store: &Overlay2) -> Result<()> {
        let garbage = store.gc(UpkeepOptions::new())?;
        ensure!(garbage.kept.is_empty(), "kept: {:#?}", garbage.kept);
        assert_clean(store)?;
        let mut mounts = mounts_below(&self.path)?;
        mounts.sort();
        let held = self.model.persistent();
        let held = held
            .keys()
            .map(|id| self.path.join(id.as_str()).join(names::MERGED));
        let held: Vec<PathBuf> = held.collect();
        ensure!(mounts == held, "mounted are {mounts:?}, held {held:?}");
        self.assert_no_space_is_lost(store)
    }

    /// Takes every hold away through the store: there are as many as were reported.
    pub(crate) fn release_all(&mut self, store: &Overlay2) -> Result<()> {
        for (id, count) in self.model.persistent() {
            for left in (0..count).rev() {
                let found = store.unmount(&id, UnmountMode::Now)?;
                ensure!(found == left, "{found} holds of {id} are left, not {left}");
            }
        }
        self.model.unmount_all();
        let mounts = mounts_below(&self.path)?;
        ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
        assert_clean(store)
    }

    fn assert_no_space_is_lost(&self, store: &Overlay2) -> Result<()> {
        let (mut expected, mut layers) = (HOME_OVERHEAD, 0);
        for id in self.model.ids() {
            expected += store.inspect(id)?.size.allocated + LAYER_OVERHEAD;
            layers += 1;
        }
        let found = allocated(&self.path)?;
        ensure!(
            found <= expected,
            "{found} bytes are allocated, {expected} at most for {layers} layers"
        );
        for id in self.model.ids() {
            let known = |name: &str| names::LAYER.contains(&name);
            let unknown = names_in(&self.path.join(id.as_str()))?;
            let unknown: Vec<_> = unknown.iter().filter(|name| !known(name)).collect();
            ensure!(unknown.is_empty(), "{id} holds {unknown:?}");
        }
        Ok(())
    }

    /// Takes everything away: the home is as empty as a new one.
    pub(in crate::e2e) fn end(&mut self) -> Result<()> {
        if !self.path.join(names::LINK_DIR).exists() {
            return Ok(());
        }
        let store = Overlay2::open(Kernel::host(), &self.path, OpenOptions::new())?;
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
        let found = allocated(&self.path)?;
        ensure!(
            found <= HOME_OVERHEAD,
            "{found} bytes are allocated without a layer"
        );
        drop(store);
        fs::remove_dir_all(&self.path)?;
        Ok(())
    }
}

/// Neither damage nor leftovers, and nothing that is not understood.
pub(crate) fn assert_clean(store: &Overlay2) -> Result<()> {
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
