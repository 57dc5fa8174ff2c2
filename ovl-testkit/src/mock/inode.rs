//! The inodes of the one file system, and what can be done to them without any mount.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use ovl_diff::{DeviceNumber, FileKind, Metadata, NodeKind, Timestamp};
use ovl_driver::FsType;
use rustix::io::Errno;

use super::State;
use super::data::Data;
use super::disk::OnDisk;
use super::quota::Writer;

pub(super) type Ino = u64;
pub(super) type Result<T> = std::result::Result<T, Errno>;

pub(super) const ROOT: Ino = 1;
/// What changes of contents or owner take away.
pub(super) const CAPABILITY: &str = "security.capability";
const MAX_NAME_LEN: usize = 255;
const MAX_LINKS: u32 = 65_000;

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
    pub(super) xattrs: BTreeMap<OsString, Vec<u8>>,
    pub(super) project: u32,
    pub(super) inherits: bool,
    pub(super) disk: OnDisk,
    pub(super) handles: Handles,
}

/// What has an inode open. A copy of the inode is another one, which nothing has open.
#[derive(Debug, Default)]
pub(super) struct Handles(Arc<()>);

/// Keeps an inode from being freed.
pub(super) struct Held(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Clone for Handles {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Directory(BTreeMap<OsString, Ino>),
    Regular(Data),
    Symlink(OsString),
    Node(NodeKind),
}

impl Inode {
    pub(super) fn directory(mode: u32, clock: i64) -> Self {
        Self::new(Body::Directory(BTreeMap::new()), mode, clock)
    }

    pub(super) fn new(body: Body, mode: u32, clock: i64) -> Self {
        let now = time(clock);
        Self {
            body,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            nlink: 0,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            project: 0,
            inherits: false,
            disk: OnDisk::default(),
            handles: Handles::default(),
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match &self.body {
            Body::Directory(_) => FileKind::Directory,
            Body::Regular(_) => FileKind::Regular,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Node(NodeKind::Fifo) => FileKind::Fifo,
            Body::Node(NodeKind::CharDevice(_)) => FileKind::CharDevice,
            Body::Node(NodeKind::BlockDevice(_)) => FileKind::BlockDevice,
        }
    }

    pub(super) fn hold(&self) -> Held {
        Held(Arc::clone(&self.handles.0))
    }

    /// Whether it takes up space: without a name, until the last who has it open closes it.
    pub(super) fn is_charged(&self) -> bool {
        self.nlink > 0 || Arc::strong_count(&self.handles.0) > 1
    }

    pub(super) fn is_whiteout(&self) -> bool {
        matches!(self.body, Body::Node(NodeKind::CharDevice(number)) if number == DeviceNumber::default())
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    pub(super) fn blocks(&self) -> u64 {
        match &self.body {
            Body::Regular(data) => data.blocks(),
            Body::Directory(_) => 8,
            _ => 0,
        }
    }

    /// A write or a change of length by root, who keeps the setuid bit.
    pub(super) fn change_contents(&mut self, now: Timestamp, change: impl FnOnce(&mut Data)) {
        let Body::Regular(contents) = &mut self.body else {
            return;
        };
        change(contents);
        (self.mtime, self.ctime) = (now, now);
        self.xattrs.remove(OsStr::new(CAPABILITY));
    }

    pub(super) fn metadata(&self, ino: Ino, dev: u32) -> Metadata {
        let rdev = match self.body {
            Body::Node(NodeKind::CharDevice(number) | NodeKind::BlockDevice(number)) => number,
            _ => DeviceNumber::default(),
        };
        let size = match &self.body {
            Body::Regular(data) => data.len(),
            Body::Symlink(target) => target.len() as u64,
            Body::Directory(_) => 4096,
            Body::Node(_) => 0,
        };
        Metadata {
            kind: self.kind(),
            mode: if self.kind() == FileKind::Symlink {
                0o777
            } else {
                self.mode
            },
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink.max(1),
            size,
            blocks: self.blocks(),
            ino,
            dev: DeviceNumber {
                major: 0,
                minor: dev,
            },
            rdev,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

/// Time goes on with every change; the steps are odd, so that no time is a whole second by chance.
fn time(clock: i64) -> Timestamp {
    let nanos = u32::try_from((clock % 97) * 10_234_567).unwrap_or(0);
    Timestamp {
        secs: 1_600_000_000 + clock / 97,
        nanos,
    }
}

pub(super) fn check_name(name: &OsStr) -> Result<()> {
    let bytes = name.as_encoded_bytes();
    if bytes.len() > MAX_NAME_LEN {
        return Err(Errno::NAMETOOLONG);
    }
    let bad = bytes.is_empty()
        || bytes == b"."
        || bytes == b".."
        || bytes.contains(&b'/')
        || bytes.contains(&0);
    if bad { Err(Errno::INVAL) } else { Ok(()) }
}

impl State {
    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        let inode = self.inodes.get_mut(&ino).ok_or(Errno::STALE)?;
        inode.disk.touched = self.clock;
        Ok(inode)
    }

    /// What the clock shows: it stands still for a while where it is coarse.
    fn now(&self) -> i64 {
        self.clock - self.clock % self.clock_step
    }

    pub(super) fn tick(&mut self) -> Timestamp {
        self.clock += 1;
        time(self.now())
    }

    pub(super) fn entries(&self, dir: Ino) -> Result<&BTreeMap<OsString, Ino>> {
        match &self.inode(dir)?.body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    pub(super) fn child(&self, dir: Ino, name: &OsStr) -> Result<Option<Ino>> {
        check_name(name)?;
        Ok(self.entries(dir)?.get(name).copied())
    }

    pub(super) fn entries_mut(&mut self, dir: Ino) -> Result<&mut BTreeMap<OsString, Ino>> {
        let now = self.tick();
        let inode = self.inode_mut(dir)?;
        (inode.mtime, inode.ctime) = (now, now);
        match &mut inode.body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Puts a new inode under a name that must be free.
    pub(super) fn add(&mut self, dir: Ino, name: &OsStr, body: Body, mode: u32) -> Result<Ino> {
        self.add_by(Writer::Caller, dir, (dir, name), body, mode)
    }

    /// The same for somebody, who makes it in another directory and then moves it.
    pub(super) fn add_by(
        &mut self,
        writer: Writer,
        born: Ino,
        (dir, name): (Ino, &OsStr),
        body: Body,
        mode: u32,
    ) -> Result<Ino> {
        if self.child(dir, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let inode = self.make(writer, born, dir, body, mode)?;
        self.put(inode, dir, name)
    }

    /// Makes an inode in one directory that shall go to another.
    pub(super) fn make(
        &mut self,
        writer: Writer,
        born: Ino,
        dir: Ino,
        body: Body,
        mode: u32,
    ) -> Result<Inode> {
        self.tick();
        let mut inode = Inode::new(body, mode, self.now());
        inode.nlink = 1;
        let parent = self.inode(dir)?;
        if parent.nlink == 0 && dir != ROOT {
            return Err(Errno::NOENT);
        }
        if parent.mode & 0o2000 != 0 {
            inode.gid = parent.gid;
        }
        let birthplace = self.inode(born)?;
        if birthplace.inherits {
            inode.project = birthplace.project;
            inode.inherits = inode.is_dir();
        }
        self.charge(writer, inode.project, 1, inode.blocks() * 512)?;
        self.refuse_project(&inode, dir)?;
        Ok(inode)
    }

    /// Gives a new inode its name, which must be free.
    pub(super) fn put(&mut self, mut inode: Inode, dir: Ino, name: &OsStr) -> Result<Ino> {
        let ino = self.next_ino;
        self.next_ino += 1;
        inode.settle_new(self.clock);
        self.inodes.insert(ino, inode);
        self.set_names(&[(dir, name, Some(ino))])?;
        Ok(ino)
    }

    /// Gives an inode one more name.
    pub(super) fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Result<()> {
        if self.inode(ino)?.is_dir() {
            return Err(Errno::PERM);
        }
        if self.child(dir, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.refuse_foreign_project(ino, dir)?;
        if self.inode(ino)?.nlink >= MAX_LINKS {
            return Err(Errno::MLINK);
        }
        self.set_names(&[(dir, name, Some(ino))])?;
        let now = self.tick();
        let inode = self.inode_mut(ino)?;
        inode.nlink += 1;
        inode.ctime = now;
        Ok(())
    }

    /// Takes a name away; the inode stays for those who have it open.
    pub(super) fn unlink(&mut self, dir: Ino, name: &OsStr) -> Result<()> {
        let ino = self.child(dir, name)?.ok_or(Errno::NOENT)?;
        if self.inode(ino)?.is_dir() {
            return Err(Errno::ISDIR);
        }
        self.set_names(&[(dir, name, None)])?;
        self.drop_link(ino)
    }

    pub(super) fn rmdir(&mut self, dir: Ino, name: &OsStr) -> Result<()> {
        let ino = self.child(dir, name)?.ok_or(Errno::NOENT)?;
        if !self.entries(ino)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        if self.is_mount_point(ino) {
            return Err(Errno::BUSY);
        }
        // What is mounted there elsewhere goes with it.
        self.drop_mounts(|mount| mount.point == ino);
        self.set_names(&[(dir, name, None)])?;
        self.drop_link(ino)
    }

    fn drop_link(&mut self, ino: Ino) -> Result<()> {
        let now = self.tick();
        let inode = self.inode_mut(ino)?;
        inode.nlink -= 1;
        inode.ctime = now;
        Ok(())
    }

    /// Moves a name, replacing what the kernel allows to be replaced.
    pub(super) fn rename(
        &mut self,
        (from_dir, from): (Ino, &OsStr),
        (to_dir, to): (Ino, &OsStr),
    ) -> Result<()> {
        let ino = self.child(from_dir, from)?.ok_or(Errno::NOENT)?;
        self.refuse_foreign_project(ino, to_dir)?;
        if self.is_below(to_dir, ino) {
            return Err(Errno::INVAL);
        }
        let replaced = self.child(to_dir, to)?;
        if let Some(target) = replaced {
            if target == ino {
                return Ok(());
            }
            if self.is_below(from_dir, target) {
                return Err(Errno::NOTEMPTY);
            }
            match (self.inode(ino)?.is_dir(), self.inode(target)?.is_dir()) {
                (true, true) if !self.entries(target)?.is_empty() => return Err(self.occupied()),
                (true, true) if self.is_mount_point(target) => return Err(Errno::BUSY),
                (true, true) | (false, false) => {}
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
            }
        }
        self.set_names(&[(from_dir, from, None), (to_dir, to, Some(ino))])?;
        if let Some(target) = replaced {
            self.drop_link(target)?;
        }
        let now = self.tick();
        if let Some(moved) = self.inodes.get_mut(&ino) {
            moved.ctime = now;
        }
        Ok(())
    }

    /// What a directory with something in it is called when another is renamed onto it.
    pub(super) fn occupied(&self) -> Errno {
        match self.fs_type {
            FsType::XFS => Errno::EXIST,
            _ => Errno::NOTEMPTY,
        }
    }

    pub(super) fn exchange(
        &mut self,
        (from_dir, from): (Ino, &OsStr),
        (to_dir, to): (Ino, &OsStr),
    ) -> Result<()> {
        let one = self.child(from_dir, from)?.ok_or(Errno::NOENT)?;
        let other = self.child(to_dir, to)?.ok_or(Errno::NOENT)?;
        if self.is_below(to_dir, one) || self.is_below(from_dir, other) {
            return Err(Errno::INVAL);
        }
        if one == other {
            return Ok(());
        }
        self.refuse_foreign_project(one, to_dir)?;
        self.refuse_foreign_project(other, from_dir)?;
        self.set_names(&[(from_dir, from, Some(other)), (to_dir, to, Some(one))])?;
        if self.fs_type == FsType::XFS && from_dir != to_dir {
            // Its parent is part of a directory there.
            let now = self.tick();
            for ino in [one, other] {
                let moved = self.inode_mut(ino)?;
                if moved.is_dir() {
                    moved.mtime = now;
                }
            }
        }
        Ok(())
    }

    /// Whether `dir` is `above` or somewhere below it.
    fn is_below(&self, dir: Ino, above: Ino) -> bool {
        if dir == above {
            return true;
        }
        let Ok(entries) = self.entries(above) else {
            return false;
        };
        entries.values().any(|&ino| self.is_below(dir, ino))
    }

    /// Quota projects are borders: nothing is linked or moved into another one.
    pub(super) fn refuse_foreign_project(&self, ino: Ino, dir: Ino) -> Result<()> {
        self.refuse_project(self.inode(ino)?, dir)
    }

    fn refuse_project(&self, inode: &Inode, dir: Ino) -> Result<()> {
        let dir = self.inode(dir)?;
        match dir.inherits && dir.project != inode.project {
            true => Err(Errno::XDEV),
            false => Ok(()),
        }
    }
}
