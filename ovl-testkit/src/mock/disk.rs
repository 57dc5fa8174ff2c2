//! What is on disk, and what a power cut leaves of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::PathBuf;

use ovl_diff::{FileKind, Node, Timestamp};

use super::data::Data;
use super::inode::{Body, Ino, Inode, ROOT, Result};
use super::{MockKernel, State};
use crate::random::Random;

/// What of an inode no power cut takes.
#[derive(Clone, Debug, Default)]
pub(super) struct OnDisk {
    attributes: Attributes,
    data: Data,
    names: BTreeMap<OsString, Ino>,
    /// The last write that is not on disk.
    written: Option<Written>,
    /// When anything changed last.
    pub(super) touched: i64,
    /// When everything was synced last.
    synced: i64,
}

/// A file's time comes with its contents.
#[derive(Clone, Copy, Debug)]
struct Written {
    at: i64,
    mtime: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    project: u32,
    inherits: bool,
}

/// A change of names that is not on disk: all of it survives, or nothing.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    at: i64,
    cells: Vec<Cell>,
    /// Directories that it removes. They are as empty on disk.
    removed: Vec<Ino>,
}

/// What a name of a directory stands for afterwards.
#[derive(Clone, Debug)]
struct Cell {
    dir: Ino,
    name: OsString,
    ino: Option<Ino>,
    /// The directory's time, which comes with its names.
    mtime: Timestamp,
}

impl Cell {
    fn place(&self) -> (Ino, &OsStr) {
        (self.dir, &self.name)
    }
}

/// A change that is not on disk yet: see [`MockKernel::pending`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// What has changed.
    pub kind: PendingKind,
    /// The object; of a rename, first the old name and then the new one; of limits, none.
    pub paths: Vec<PathBuf>,
}

/// What of an object has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PendingKind {
    /// A name was made, removed, replaced or moved.
    Names,
    /// Owner, mode, time, extended attributes or project. What it was made with comes with its name.
    Attributes,
    /// The contents of a file.
    Data,
    /// The limits of a project, which has no path.
    Limits {
        /// Its number.
        project: u32,
    },
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            PendingKind::Names => "names",
            PendingKind::Attributes => "attributes",
            PendingKind::Data => "data",
            PendingKind::Limits { project } => return write!(f, "limits of project {project}"),
        })?;
        self.paths
            .iter()
            .try_for_each(|path| write!(f, " {}", path.display()))
    }
}

/// What becomes of a pending change when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It never happened. A file has its contents of the last sync; a new one is empty.
    Lost,
    /// Of a file's new contents the first half is there and the rest is zeros; for any other change
    /// the same as [`Kept`](Self::Kept).
    Torn,
    /// It is there.
    Kept,
}

/// What survives a power cut of what was not synced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Survivors {
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
    /// What chance decides, by a seed.
    Random(u64),
    /// The fates of the [pending](MockKernel::pending) changes, in their order; those without are
    /// lost.
    Chosen(Vec<Fate>),
    /// Names and attributes up to one change and none after it, as a file system with a journal
    /// leaves them; and what chance decides of the data.
    Journal {
        /// How many changes of names and attributes.
        changes: usize,
        /// Decides about the data.
        seed: u64,
    },
}

impl Survivors {
    fn fates(&self, pending: &[Pending]) -> Vec<Fate> {
        let mut fates = match self {
            Self::Nothing => Vec::new(),
            Self::Everything => vec![Fate::Kept; pending.len()],
            Self::Chosen(fates) => fates.clone(),
            Self::Random(seed) => {
                let mut random = Random::new(*seed);
                pending.iter().map(|_| fate(&mut random)).collect()
            }
            Self::Journal { changes, seed } => {
                let (mut random, mut left) = (Random::new(*seed), *changes);
                let one = |change: &Pending| match change.kind {
                    PendingKind::Data => fate(&mut random),
                    _ if left == 0 => Fate::Lost,
                    _ => {
                        left -= 1;
                        Fate::Kept
                    }
                };
                pending.iter().map(one).collect()
            }
        };
        fates.resize(pending.len(), Fate::Lost);
        fates
    }
}

fn fate(random: &mut Random) -> Fate {
    [Fate::Lost, Fate::Kept, Fate::Torn, Fate::Kept, Fate::Lost][random.below(5)]
}

/// Which change it is.
#[derive(Clone, Copy)]
enum Subject {
    Names(usize),
    Attributes(Ino),
    Data(Ino),
    Limits(u32),
}

impl Inode {
    fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs: self.xattrs.clone(),
            project: self.project,
            inherits: self.inherits,
        }
    }

    fn set_attributes(&mut self, attributes: Attributes) {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
            project,
            inherits,
        } = attributes;
        (self.mode, self.uid, self.gid, self.mtime) = (mode, uid, gid, mtime);
        (self.xattrs, self.project, self.inherits) = (xattrs, project, inherits);
    }

    /// What a new one has as soon as its name is on disk.
    pub(super) fn settle_new(&mut self, now: i64) {
        self.disk.attributes = self.attributes();
        self.disk.touched = now;
        if matches!(&self.body, Body::Regular(data) if data.len() > 0) {
            self.note_write(now);
        }
    }

    /// Its contents have changed, and with them its time.
    pub(super) fn note_write(&mut self, now: i64) {
        let mtime = self.mtime;
        self.disk.written = Some(Written { at: now, mtime });
    }

    fn settle_attributes(&mut self) {
        self.disk.attributes = self.attributes();
    }

    fn settle_data(&mut self) {
        if let Some(written) = self.disk.written.take()
            && let Body::Regular(data) = &self.body
        {
            self.disk.data = data.clone();
            self.disk.attributes.mtime = written.mtime;
        }
    }
}

impl State {
    /// Changes what names stand for, in one step.
    pub(super) fn set_names(&mut self, changes: &[(Ino, &OsStr, Option<Ino>)]) -> Result<()> {
        let mut cells = Vec::with_capacity(changes.len());
        let mut removed = Vec::new();
        for &(dir, name, ino) in changes {
            let (entries, name) = (self.entries_mut(dir)?, name.to_owned());
            let before = match ino {
                Some(ino) => entries.insert(name.clone(), ino),
                None => entries.remove(&name),
            };
            removed.extend(before);
            let mtime = self.inode(dir)?.mtime;
            cells.push(Cell {
                dir,
                name,
                ino,
                mtime,
            });
        }
        let is_removed = |ino: &Ino| {
            let is_dir = self.inode(*ino).is_ok_and(Inode::is_dir);
            is_dir && cells.iter().all(|cell| cell.ino != Some(*ino))
        };
        removed.retain(is_removed);
        let at = self.clock;
        self.pending.push(NameChange { at, cells, removed });
        Ok(())
    }

    /// Whether more has changed than what comes with names and contents.
    fn has_pending_attributes(&self, ino: Ino, inode: &Inode) -> bool {
        let now = inode.attributes();
        let disk = &inode.disk.attributes;
        if now == *disk {
            return false;
        }
        let changes = self.pending.iter().rev();
        let mut cells = changes.flat_map(|change| change.cells.iter().rev());
        let names = match &inode.body {
            Body::Directory(_) => cells.find(|cell| cell.dir == ino),
            _ => None,
        };
        let written = inode.disk.written.map(|written| written.mtime);
        let mtime = names.map(|cell| cell.mtime).or(written);
        now != Attributes {
            mtime: mtime.unwrap_or(disk.mtime),
            ..disk.clone()
        }
    }

    /// Whether a change of the object itself, or of names in it, is not on disk.
    pub(super) fn is_unsynced(&self, ino: Ino) -> Result<bool> {
        let inode = self.inode(ino)?;
        let named = |change: &NameChange| change.cells.iter().any(|cell| cell.dir == ino);
        Ok(inode.disk.written.is_some()
            || self.has_pending_attributes(ino, inode)
            || (inode.is_dir() && self.pending.iter().any(named)))
    }

    /// When the object itself, or a name in it, last changed, if a sync of it has to wait for that.
    fn changed_at(&self, ino: Ino, only_data: bool) -> Option<i64> {
        let disk = &self.inode(ino).ok()?.disk;
        // Its times, too, of which the contents alone need none.
        let touched = (!only_data && disk.touched > disk.synced).then_some(disk.touched);
        let named = |change: &&NameChange| change.cells.iter().any(|cell| cell.dir == ino);
        let names = self.pending.iter().filter(named).map(|change| change.at);
        let written = disk.written.map(|written| written.at);
        names.chain(written).chain(touched).max()
    }

    /// `fsync(2)` of a file or directory, `fdatasync(2)` where only the data is meant.
    fn sync(&mut self, ino: Ino, only_data: bool) -> Result<()> {
        if let Some(changed) = self.changed_at(ino, only_data) {
            self.limits.settle(changed);
        }
        let clock = self.clock;
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return Ok(());
        };
        inode.settle_data();
        if !only_data {
            inode.settle_attributes();
            inode.disk.synced = clock;
        }
        if !inode.is_dir() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.pending);
        let concerned = |change: &NameChange| change.cells.iter().any(|cell| cell.dir == ino);
        let mut goes: Vec<bool> = changes.iter().map(concerned).collect();
        add_needed(&changes, &mut goes);
        for (change, goes) in changes.into_iter().zip(goes) {
            match goes {
                true => self.put_on_disk(&change),
                false => self.pending.push(change),
            }
        }
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.settle_attributes();
        }
        // What nobody can open is in the log before whoever asked for the names in it.
        let unopenable = |ino: &Ino| {
            let kind = self.inode(*ino).map(Inode::kind);
            !matches!(kind, Ok(FileKind::Regular | FileKind::Directory))
        };
        let inside: Vec<Ino> = self.entries(ino)?.values().copied().collect();
        for ino in inside.into_iter().filter(unopenable).collect::<Vec<_>>() {
            if let Some(inode) = self.inodes.get_mut(&ino) {
                inode.settle_attributes();
            }
        }
        Ok(())
    }

    fn put_on_disk(&mut self, change: &NameChange) {
        for Cell {
            dir,
            name,
            ino,
            mtime,
        } in &change.cells
        {
            let Some(dir) = self.inodes.get_mut(dir) else {
                continue;
            };
            dir.disk.attributes.mtime = *mtime;
            match ino {
                Some(ino) => dir.disk.names.insert(name.clone(), *ino),
                None => dir.disk.names.remove(name),
            };
        }
    }

    /// `syncfs(2)`.
    pub(super) fn sync_all(&mut self) {
        self.limits.settle(i64::MAX);
        for change in std::mem::take(&mut self.pending) {
            self.put_on_disk(&change);
        }
        let clock = self.clock;
        for inode in self.inodes.values_mut() {
            inode.settle_data();
            inode.settle_attributes();
            inode.disk.synced = clock;
        }
    }

    /// What is not on disk, in the order in which it changed last. What no name can lead to after
    /// a power cut does not count.
    fn list_pending(&self) -> Vec<(Subject, Pending)> {
        let paths = self.possible_paths();
        let mut found = Vec::new();
        for (index, change) in self.pending.iter().enumerate() {
            let path = |cell: &Cell| paths.get(&cell.dir).map(|dir| dir.join(&cell.name));
            let paths: Vec<PathBuf> = change.cells.iter().filter_map(path).collect();
            if !paths.is_empty() {
                found.push((change.at, Subject::Names(index), PendingKind::Names, paths));
            }
        }
        for (&ino, path) in &paths {
            let Ok(inode) = self.inode(ino) else {
                continue;
            };
            if self.has_pending_attributes(ino, inode) {
                let (subject, kind) = (Subject::Attributes(ino), PendingKind::Attributes);
                found.push((inode.disk.touched, subject, kind, vec![path.clone()]));
            }
            if let Some(Written { at, .. }) = inode.disk.written {
                found.push((
                    at,
                    Subject::Data(ino),
                    PendingKind::Data,
                    vec![path.clone()],
                ));
            }
        }
        for (at, project) in self.limits.pending() {
            let (subject, kind) = (Subject::Limits(project), PendingKind::Limits { project });
            found.push((at, subject, kind, Vec::new()));
        }
        found.sort_by_key(|(at, ..)| *at);
        found
            .into_iter()
            .map(|(_, subject, kind, paths)| (subject, Pending { kind, paths }))
            .collect()
    }

    /// A path of everything that there may be after a power cut: the present one where it has one.
    fn possible_paths(&self) -> BTreeMap<Ino, PathBuf> {
        let mut pending: BTreeMap<Ino, Vec<(&OsStr, Ino)>> = BTreeMap::new();
        for cell in self.pending.iter().flat_map(|change| &change.cells) {
            let Some(ino) = cell.ino else {
                continue;
            };
            pending.entry(cell.dir).or_default().push((&cell.name, ino));
        }
        let mut paths = BTreeMap::from([(ROOT, PathBuf::from("/"))]);
        for live in [true, false] {
            let mut next: Vec<Ino> = paths.keys().copied().collect();
            while let Some(dir) = next.pop() {
                let Ok(inode) = self.inode(dir) else {
                    continue;
                };
                let mut inside: Vec<(&OsStr, Ino)> = Vec::new();
                match &inode.body {
                    Body::Directory(entries) if live => {
                        inside.extend(entries.iter().map(|(name, ino)| (&**name, *ino)));
                    }
                    _ => {
                        let names = inode.disk.names.iter();
                        inside.extend(names.map(|(name, ino)| (&**name, *ino)));
                        inside.extend(pending.get(&dir).into_iter().flatten());
                    }
                }
                for (name, ino) in inside {
                    if !paths.contains_key(&ino) {
                        paths.insert(ino, paths[&dir].join(name));
                        next.push(ino);
                    }
                }
            }
        }
        paths
    }

    fn lose_power(&mut self, survivors: &Survivors) {
        let (subjects, pending): (Vec<_>, Vec<_>) = self.list_pending().into_iter().unzip();
        let fates = survivors.fates(&pending);
        let mut kept_names = vec![false; self.pending.len()];
        let (mut attributes, mut data) = (BTreeSet::new(), BTreeMap::new());
        for (subject, fate) in subjects.into_iter().zip(fates) {
            match subject {
                Subject::Names(index) => kept_names[index] = fate != Fate::Lost,
                Subject::Attributes(ino) if fate != Fate::Lost => {
                    attributes.insert(ino);
                }
                Subject::Attributes(_) => {}
                Subject::Data(ino) => {
                    data.insert(ino, fate);
                }
                Subject::Limits(project) if fate != Fate::Lost => self.limits.settle_one(project),
                Subject::Limits(_) => {}
            }
        }
        let changes = std::mem::take(&mut self.pending);
        add_needed(&changes, &mut kept_names);
        for (change, _) in changes.iter().zip(&kept_names).filter(|(_, kept)| **kept) {
            self.put_on_disk(change);
        }
        for (ino, inode) in &mut self.inodes {
            match data.get(ino) {
                Some(Fate::Kept) => inode.settle_data(),
                Some(Fate::Torn) => {
                    inode.settle_data();
                    inode.disk.data.tear();
                }
                _ => inode.disk.written = None,
            }
            if attributes.contains(ino) {
                inode.settle_attributes();
            }
        }
        self.read_disk();
    }

    /// Finds what is on disk, and nothing else.
    fn read_disk(&mut self) {
        self.limits.read_disk();
        let mut links: BTreeMap<Ino, u32> = BTreeMap::from([(ROOT, 0)]);
        let mut next = vec![ROOT];
        while let Some(dir) = next.pop() {
            let names = self.inode(dir).map(|inode| inode.disk.names.clone());
            for ino in names.unwrap_or_default().into_values() {
                let count = links.entry(ino).or_default();
                *count += 1;
                if *count == 1 {
                    next.push(ino);
                }
            }
        }
        self.inodes.retain(|ino, _| links.contains_key(ino));
        for (ino, inode) in &mut self.inodes {
            inode.nlink = links.get(ino).copied().unwrap_or_default();
            inode.set_attributes(inode.disk.attributes.clone());
            match &mut inode.body {
                Body::Directory(entries) => entries.clone_from(&inode.disk.names),
                Body::Regular(data) => data.clone_from(&inode.disk.data),
                Body::Symlink(_) | Body::Node(_) => {}
            }
        }
    }
}

/// A change that survives needs those before it under its names, and those in a directory that it
/// removes.
fn add_needed(changes: &[NameChange], kept: &mut [bool]) {
    let mut places: BTreeSet<(Ino, &OsStr)> = BTreeSet::new();
    let mut removed: BTreeSet<Ino> = BTreeSet::new();
    for (change, kept) in changes.iter().zip(kept).rev() {
        let needed = |cell: &Cell| places.contains(&cell.place()) || removed.contains(&cell.dir);
        *kept |= change.cells.iter().any(needed);
        if *kept {
            places.extend(change.cells.iter().map(Cell::place));
            removed.extend(&change.removed);
        }
    }
}

impl MockKernel {
    /// The changes that are not on disk, in the order in which they happened: a
    /// [crash](Self::crash) may keep or lose each of them.
    ///
    /// What a sync puts on disk is what POSIX promises, and what every file system with a journal
    /// keeps:
    ///
    /// - `fsync` of a file: its contents and attributes, and not its name.
    /// - `fsync` of a directory: its own attributes, and its names; not what they stand for. Of
    ///   symbolic links and devices in it, which nobody can sync, their attributes too.
    /// - A name that is on disk stands for an object with the kind, the target and the attributes
    ///   that it was made with. A new file is empty.
    /// - A rename or exchange is one change. It is on disk once one of its directories is synced,
    ///   with what was changed before under the names that it concerns. A directory is removed only
    ///   with what was removed from it.
    /// - The time of a directory goes with its names, and that of a file with its contents.
    /// - Changes of different names, attributes and contents survive in any combination; so a later
    ///   one can be there without an earlier one. That is harsher than any file system with a
    ///   journal, which keeps the order of names and attributes, as [`Survivors::Journal`] does, but
    ///   what was synced for itself: a file system may write that alone, without what came before.
    /// - Limits of projects are on disk with the next sync of something that changed after they were
    ///   set: setting them only joins the journal's transaction, and a sync of what is on disk
    ///   already writes nothing. What project a directory has from its parent comes with its name.
    /// - Two changes of attributes of one object are one: both survive, or neither. So are those that
    ///   one operation makes of an upper layer, such as a copy that overlayfs moves to its place.
    ///
    /// What a store of layers promises holds for any combination, but for two things that rely on
    /// the order: the index of children, of which nothing is synced, since no operation shall pay
    /// for it; and that a link of a layer that was never finished is known as the store's own.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        let pending = self.state().list_pending();
        pending.into_iter().map(|(_, change)| change).collect()
    }

    /// What a power cut could leave: nothing, everything, and as many of the
    /// [pending](Self::pending) changes of names and attributes as a journal may have written; then,
    /// and `true`, every combination where there are at most `limit`, otherwise `samples` that chance
    /// decides by `seed`.
    #[must_use]
    pub fn power_cuts(&self, limit: usize, samples: u64, seed: u64) -> (Vec<Survivors>, bool) {
        let pending = self.pending();
        let fates = |change: &Pending| match change.kind {
            PendingKind::Data => &[Fate::Lost, Fate::Kept, Fate::Torn][..],
            _ => &[Fate::Lost, Fate::Kept],
        };
        let names = pending
            .iter()
            .filter(|change| change.kind != PendingKind::Data);
        let mut cuts = vec![Survivors::Nothing, Survivors::Everything];
        cuts.extend((1..names.count()).map(|changes| Survivors::Journal {
            changes,
            seed: seed.wrapping_add(changes as u64),
        }));
        let counts = pending.iter().map(|change| fates(change).len());
        let exhausts = counts.fold(1_usize, usize::saturating_mul) <= limit;
        if exhausts {
            let mut chosen = vec![Vec::new()];
            for change in &pending {
                let longer = chosen.iter().flat_map(|before: &Vec<Fate>| {
                    let more = fates(change).iter();
                    more.map(|fate| [&**before, &[*fate]].concat())
                });
                chosen = longer.collect();
            }
            cuts.extend(chosen.into_iter().map(Survivors::Chosen));
        } else {
            let seeds = (0..samples).map(|sample| seed.wrapping_add(sample));
            cuts.extend(seeds.map(Survivors::Random));
        }
        (cuts, exhausts)
    }

    /// How many changes are not on disk.
    #[must_use]
    pub fn pending_changes(&self) -> usize {
        self.state().list_pending().len()
    }

    /// Cuts the power, and starts the machine anew: of what was not synced is there what
    /// `survivors` say. Mounts, locks and processes are gone; handles from before are not to be used.
    ///
    /// ```
    /// use ovl_testkit::{KernelProfile, MockKernel, Survivors};
    ///
    /// let kernel = MockKernel::new(KernelProfile::modern());
    /// kernel.mkdir_all("/dir".as_ref())?;
    /// kernel.sync_all();
    /// kernel.write_file("/dir/file".as_ref(), b"never synced")?;
    /// // A name and contents: either may survive without the other.
    /// assert_eq!(kernel.pending_changes(), 2, "{:?}", kernel.pending());
    /// kernel.fork().crash(&Survivors::Everything);
    /// kernel.crash(&Survivors::Nothing);
    /// assert!(kernel.read_file("/dir/file".as_ref()).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn crash(&self, survivors: &Survivors) {
        self.state().lose_power(survivors);
        self.restart();
    }

    /// Puts all changes on disk: `sync(2)`.
    pub fn sync_all(&self) {
        self.state().sync_all();
    }

    /// Puts a file's contents on disk and not its attributes: `fdatasync(2)`.
    ///
    /// # Errors
    /// As [`metadata`](ovl_diff::TreeBackend::metadata) gives.
    pub fn sync_data(&self, node: Node<'_>) -> io::Result<()> {
        let mut state = self.state();
        let (ino, ..) = self.locate(&state, node)?;
        Ok(state.sync(ino, true)?)
    }

    pub(super) fn sync_node(&self, node: Node<'_>) -> io::Result<()> {
        let mut state = self.state();
        let (ino, ..) = self.locate(&state, node)?;
        match state.inode(ino)?.kind() {
            FileKind::Regular | FileKind::Directory => Ok(state.sync(ino, false)?),
            FileKind::Symlink => Err(rustix::io::Errno::LOOP.into()),
            _ => Err(rustix::io::Errno::INVAL.into()),
        }
    }

    /// Whether the path has changed since it was last synced.
    pub(super) fn path_is_unsynced(&self, node: Node<'_>) -> io::Result<bool> {
        let state = self.state();
        let (ino, ..) = self.locate(&state, node)?;
        Ok(state.is_unsynced(ino)?)
    }
}
