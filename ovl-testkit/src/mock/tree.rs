//! Steps on trees, plain and merged.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ovl_diff::{
    DeviceNumber, DirEntry, DirHandle, FileHandle, FileKind, Metadata, Node, NodeKind, RenameMode,
    Timestamp, TreeBackend,
};
use ovl_driver::FsType;
use rustix::io::Errno;

use super::data::Data;
use super::inode::{Body, CAPABILITY, Held, Ino, Result, check_name};
use super::mounts::{Kind, Mount, Use};
use super::overlay::{Entry, Overlay, Private};
use super::quota::Writer;
use super::xattrs::{shown_name, stored_name};
use super::{MockKernel, State};

const MAX_TARGET_LEN: usize = 4095;
/// No inode's number: the root of a merged view, where something is mounted on it.
const MERGED_ROOT: Ino = 0;

/// An open directory. Holding the mount is what keeps it busy.
pub(super) struct MockDir {
    pub(super) mount: Arc<Use>,
    pub(super) at: At,
    /// Of one that is open.
    pub(super) _held: Option<Held>,
}

/// Where on its mount a directory is.
#[derive(Clone)]
pub(super) enum At {
    Plain(Ino),
    Merged(Vec<OsString>),
}

pub(super) struct MockFile {
    pub(super) mount: Arc<Use>,
    pub(super) ino: Ino,
    /// What holds the contents.
    pub(super) data: Ino,
    pub(super) writable: bool,
    _held: Held,
}

impl MockFile {
    pub(super) fn open(
        state: &State,
        mount: &Arc<Use>,
        (ino, data): (Ino, Ino),
        writable: bool,
    ) -> Result<FileHandle> {
        Ok(FileHandle::new(Self {
            mount: Arc::clone(mount),
            ino,
            data,
            writable,
            _held: state.inode(ino)?.hold(),
        }))
    }

    fn writer(&self) -> Writer {
        match self.mount.kind {
            Kind::Plain(_) => Writer::Caller,
            Kind::Overlay(_) => Writer::Overlay,
        }
    }
}

fn dir(handle: &DirHandle) -> io::Result<&MockDir> {
    handle.inner()
}

impl MockDir {
    /// The directory's inode; of a merged one, that of its uppermost part.
    pub(super) fn ino(&self, state: &State) -> Result<Ino> {
        match (&self.at, &self.mount.kind) {
            (At::Plain(ino), _) => Ok(*ino),
            (At::Merged(path), Kind::Overlay(overlay)) => {
                state.overlay_dir(overlay, path)?.top().ok_or(Errno::NOENT)
            }
            (At::Merged(_), Kind::Plain(_)) => Err(Errno::STALE),
        }
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.mount.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    fn same_mount(&self, other: &Self) -> Result<()> {
        if self.mount.id == other.mount.id {
            Ok(())
        } else {
            Err(Errno::XDEV)
        }
    }

    pub(super) fn overlay(&self) -> Option<(&Overlay, &[OsString])> {
        match (&self.mount.kind, &self.at) {
            (Kind::Overlay(overlay), At::Merged(path)) => Some((overlay, path)),
            _ => None,
        }
    }

    /// The directory, if it is not in a merged view.
    pub(super) fn plain_or(&self, otherwise: Errno) -> Result<Ino> {
        match self.at {
            At::Plain(ino) => Ok(ino),
            At::Merged(_) => Err(otherwise),
        }
    }

    /// Opens it.
    pub(super) fn open(self, state: &State) -> Result<DirHandle> {
        let _held = Some(state.inode(self.ino(state)?)?.hold());
        Ok(DirHandle::new(Self { _held, ..self }))
    }

    pub(super) fn mount_id(&self) -> u64 {
        self.mount.id
    }

    /// What something that is mounted here has for its point. None in a merged view below its root.
    pub(super) fn point(&self) -> Option<Ino> {
        match &self.at {
            At::Plain(ino) => Some(*ino),
            At::Merged(path) => path.is_empty().then_some(MERGED_ROOT),
        }
    }

    /// What is mounted where this is the root.
    pub(super) fn root_kind(&self) -> Result<Kind> {
        match &self.at {
            At::Merged(path) if path.is_empty() => Ok(self.mount.kind.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn lookup(&self, state: &State, name: &OsStr) -> Result<Option<Ino>> {
        match self.overlay() {
            None => state.child(self.plain_or(Errno::STALE)?, name),
            Some((overlay, path)) => {
                let merged = state.overlay_dir(overlay, path)?;
                let found = state.overlay_lookup(overlay, &merged, name)?;
                Ok(found.and_then(|entry| match entry {
                    Entry::Directory(inner) => inner.top(),
                    Entry::Object(object) => Some(object.ino),
                }))
            }
        }
    }

    /// The inode that holds the contents of a file.
    fn data(&self, state: &State, name: &OsStr, ino: Ino) -> Result<Ino> {
        let Some((overlay, path)) = self.overlay() else {
            return Ok(ino);
        };
        let merged = state.overlay_dir(overlay, path)?;
        Ok(match state.overlay_lookup(overlay, &merged, name)? {
            Some(Entry::Object(object)) => object.data,
            _ => ino,
        })
    }

    pub(super) fn enter(&self, name: &OsStr, ino: Ino) -> Self {
        let at = match &self.at {
            At::Plain(_) => At::Plain(ino),
            At::Merged(path) => At::Merged([&**path, &[name.to_owned()]].concat()),
        };
        Self {
            mount: Arc::clone(&self.mount),
            at,
            _held: None,
        }
    }

    /// The root of what is mounted on a name, which is what the name stands for then.
    fn covering(&self, state: &State, name: &OsStr) -> Result<Option<Self>> {
        let At::Plain(dir) = self.at else {
            return Ok(None);
        };
        let Some(ino) = state.child(dir, name)? else {
            return Ok(None);
        };
        let inner = self.enter(name, ino);
        let is_covered = state.covering(&inner).is_some();
        Ok(is_covered.then(|| state.covered(inner, self.mount.process())))
    }

    pub(super) fn root_of(mount: &Arc<Mount>, process: u32) -> Self {
        let at = match &mount.kind {
            Kind::Plain(root) => At::Plain(*root),
            Kind::Overlay(_) => At::Merged(Vec::new()),
        };
        Self {
            mount: Use::new(mount, process),
            at,
            _held: None,
        }
    }

    fn add(&self, state: &mut State, name: &OsStr, body: Body, mode: u32) -> Result<Ino> {
        check_name(name)?;
        if self.lookup(state, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.writable()?;
        match self.overlay() {
            None => state.add(self.plain_or(Errno::STALE)?, name, body, mode),
            Some((overlay, path)) => state.overlay_add(overlay, path, name, body, mode),
        }
    }

    fn dev(&self) -> u32 {
        match self.mount.kind {
            Kind::Plain(_) => 1,
            Kind::Overlay(_) => u32::try_from(self.mount.id).unwrap_or(u32::MAX) + 100,
        }
    }
}

impl MockKernel {
    /// The subject of a step that only looks.
    pub(super) fn locate(
        &self,
        state: &State,
        node: Node<'_>,
    ) -> io::Result<(Ino, u32, Option<Private>)> {
        let private = |mount: &Mount| match &mount.kind {
            Kind::Overlay(overlay) => Some(overlay.private()),
            Kind::Plain(_) => None,
        };
        Ok(match node {
            Node::File(file) => {
                let file: &MockFile = file.inner()?;
                let dev = MockDir {
                    mount: Arc::clone(&file.mount),
                    at: At::Plain(file.ino),
                    _held: None,
                }
                .dev();
                (file.ino, dev, private(&file.mount))
            }
            Node::Dir(handle) => {
                let found = dir(handle)?;
                (found.ino(state)?, found.dev(), private(&found.mount))
            }
            Node::Entry(handle, name) => {
                let found = dir(handle)?;
                if let Some(root) = found.covering(state, name)? {
                    return Ok((root.ino(state)?, root.dev(), private(&root.mount)));
                }
                let ino = found.lookup(state, name)?.ok_or(Errno::NOENT)?;
                (ino, found.dev(), private(&found.mount))
            }
        })
    }

    /// The subject of a step that changes it, copied up where it must be.
    fn locate_mut(&self, state: &mut State, node: Node<'_>) -> io::Result<(Ino, Option<Private>)> {
        let (ino, _, private) = self.locate(state, node)?;
        let covering = match node {
            Node::Entry(handle, name) => dir(handle)?.covering(state, name)?,
            _ => None,
        };
        let (found, name) = match node {
            Node::File(file) => {
                let file: &MockFile = file.inner()?;
                return match file.mount.read_only {
                    true => Err(Errno::ROFS.into()),
                    false => Ok((ino, private)),
                };
            }
            Node::Dir(handle) => (dir(handle)?, None),
            Node::Entry(handle, name) => match &covering {
                Some(root) => (root, None),
                None => (dir(handle)?, Some(name)),
            },
        };
        found.writable()?;
        let Some((overlay, path)) = found.overlay() else {
            return Ok((ino, private));
        };
        let ino = match name {
            None => state.copy_up_dir(overlay, path)?,
            Some(name) => state.copy_up(overlay, path, name)?,
        };
        Ok((ino, private))
    }

    /// Whether an attribute of that name can be changed at all.
    fn may_have(&self, state: &State, node: Node<'_>, name: &OsStr) -> io::Result<()> {
        let covering = match node {
            Node::Entry(handle, name) => dir(handle)?.covering(state, name)?,
            _ => None,
        };
        let (ino, ..) = self.locate(state, node)?;
        match (node, &covering) {
            (_, Some(root)) => root.writable()?,
            (Node::Dir(handle) | Node::Entry(handle, _), None) => dir(handle)?.writable()?,
            (Node::File(_), None) => {}
        }
        let kind = state.inode(ino)?.kind();
        let is_user = name.as_encoded_bytes().starts_with(b"user.");
        match is_user && !matches!(kind, FileKind::Regular | FileKind::Directory) {
            true => Err(Errno::PERM.into()),
            false => Ok(()),
        }
    }

    fn keeps(&self, name: &OsStr) -> Result<()> {
        let is_user = name.as_encoded_bytes().starts_with(b"user.");
        match is_user && !self.profile().user_xattrs {
            true => Err(Errno::OPNOTSUPP),
            false => Ok(()),
        }
    }

    fn change(
        &self,
        node: Node<'_>,
        change: impl FnOnce(&mut super::inode::Inode) -> Result<()>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let (ino, _) = self.locate_mut(&mut state, node)?;
        let now = state.tick();
        let inode = state.inode_mut(ino)?;
        change(inode)?;
        inode.ctime = now;
        Ok(())
    }

    fn owned(&self, ranges: &[Range<u64>], id: u32) -> Result<()> {
        let mapped = ranges.iter().any(|range| range.contains(&u64::from(id)));
        if mapped { Ok(()) } else { Err(Errno::INVAL) }
    }
}

impl TreeBackend for MockKernel {
    fn open_root(&self, path: &Path) -> io::Result<DirHandle> {
        if !path.is_absolute() {
            return Err(Errno::INVAL.into());
        }
        let state = self.state();
        let found = state.walk(path, self.process.pid)?;
        Ok(found.open(&state)?)
    }

    fn open_dir(&self, handle: &DirHandle, name: &OsStr) -> io::Result<DirHandle> {
        let (state, here) = (self.state(), dir(handle)?);
        let ino = here.lookup(&state, name)?.ok_or(Errno::NOENT)?;
        if !state.inode(ino)?.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let inner = here.enter(name, ino);
        if state.covering(&inner).is_some() {
            return Err(Errno::XDEV.into());
        }
        Ok(inner.open(&state)?)
    }

    fn read_dir(&self, handle: &DirHandle) -> io::Result<Vec<DirEntry>> {
        let (state, here) = (self.state(), dir(handle)?);
        let names = match here.overlay() {
            None => state.entries(here.plain_or(Errno::STALE)?)?.clone(),
            Some((overlay, path)) => state.overlay_list(overlay, path)?,
        };
        let mut entries = Vec::with_capacity(names.len());
        // Backwards, so that nobody relies on an order.
        for (name, ino) in names.into_iter().rev() {
            entries.push(DirEntry {
                kind: state.inode(ino)?.kind(),
                name,
                ino,
            });
        }
        Ok(entries)
    }

    fn metadata(&self, node: Node<'_>) -> io::Result<Metadata> {
        let state = self.state();
        let (ino, dev, _) = self.locate(&state, node)?;
        Ok(state.inode(ino)?.metadata(ino, dev))
    }

    fn create_dir(&self, handle: &DirHandle, name: &OsStr, mode: u32) -> io::Result<()> {
        let body = Body::Directory(BTreeMap::new());
        dir(handle)?.add(&mut self.state(), name, body, mode)?;
        Ok(())
    }

    fn create_file(&self, handle: &DirHandle, name: &OsStr, mode: u32) -> io::Result<FileHandle> {
        let (mut state, here) = (self.state(), dir(handle)?);
        let ino = here.add(&mut state, name, Body::Regular(Data::default()), mode)?;
        Ok(MockFile::open(&state, &here.mount, (ino, ino), true)?)
    }

    fn open_file(&self, handle: &DirHandle, name: &OsStr) -> io::Result<FileHandle> {
        let (state, here) = (self.state(), dir(handle)?);
        let ino = here.lookup(&state, name)?.ok_or(Errno::NOENT)?;
        match state.inode(ino)?.kind() {
            FileKind::Regular => {}
            FileKind::Symlink => return Err(Errno::LOOP.into()),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a regular file",
                ));
            }
        }
        let data = here.data(&state, name, ino)?;
        Ok(MockFile::open(&state, &here.mount, (ino, data), false)?)
    }

    fn read_at(&self, file: &FileHandle, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file: &MockFile = file.inner()?;
        match &self.state().inode(file.data)?.body {
            Body::Regular(data) => Ok(data.read(offset, buffer)),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn write_at(&self, file: &FileHandle, offset: u64, data: &[u8]) -> io::Result<()> {
        let file: &MockFile = file.inner()?;
        if !file.writable {
            return Err(Errno::BADF.into());
        }
        if data.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let now = state.tick();
        let inode = state.inode(file.ino)?;
        let Body::Regular(contents) = &inode.body else {
            return Err(Errno::INVAL.into());
        };
        let place = (offset, data.len());
        let fits = state.fitting(file.writer(), inode.project, contents, place);
        let (clock, full) = (state.clock, state.full);
        // Time and capabilities change even where nothing fits.
        let inode = state.inode_mut(file.ino)?;
        inode.change_contents(now, |contents| contents.write(offset, &data[..fits]));
        inode.note_write(clock);
        match fits == data.len() {
            true => Ok(()),
            false => Err(full.into()),
        }
    }

    fn set_len(&self, file: &FileHandle, len: u64) -> io::Result<()> {
        let file: &MockFile = file.inner()?;
        if !file.writable {
            return Err(Errno::INVAL.into());
        }
        let mut state = self.state();
        let now = state.tick();
        let clock = state.clock;
        let inode = state.inode_mut(file.ino)?;
        inode.change_contents(now, |contents| contents.set_len(len));
        inode.note_write(clock);
        Ok(())
    }

    fn next_extent(&self, file: &FileHandle, offset: u64) -> io::Result<Option<Range<u64>>> {
        let file: &MockFile = file.inner()?;
        match &self.state().inode(file.data)?.body {
            Body::Regular(data) => Ok(data.next_extent(offset)),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn share_data(&self, from: &FileHandle, to: &FileHandle) -> io::Result<()> {
        let (from, to): (&MockFile, &MockFile) = (from.inner()?, to.inner()?);
        let is_plain = |file: &MockFile| matches!(file.mount.kind, Kind::Plain(_));
        if self.profile().fs_type != FsType::XFS || !is_plain(from) || !is_plain(to) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no data is shared here",
            ));
        }
        let mut state = self.state();
        let Body::Regular(shared) = state.inode(from.data)?.body.clone() else {
            return Err(Errno::INVAL.into());
        };
        // Each of those that share it is charged for it.
        let project = state.inode(to.ino)?.project;
        state.charge(to.writer(), project, 0, shared.blocks() * 512)?;
        let now = state.tick();
        let clock = state.clock;
        let inode = state.inode_mut(to.ino)?;
        inode.change_contents(now, |contents| *contents = shared);
        inode.note_write(clock);
        Ok(())
    }

    fn create_symlink(&self, handle: &DirHandle, name: &OsStr, target: &OsStr) -> io::Result<()> {
        match target.len() {
            0 => return Err(Errno::NOENT.into()),
            1..=MAX_TARGET_LEN => {}
            _ => return Err(Errno::NAMETOOLONG.into()),
        }
        dir(handle)?.add(
            &mut self.state(),
            name,
            Body::Symlink(target.to_owned()),
            0o777,
        )?;
        Ok(())
    }

    fn read_link(&self, handle: &DirHandle, name: &OsStr) -> io::Result<OsString> {
        let (state, here) = (self.state(), dir(handle)?);
        let ino = here.lookup(&state, name)?.ok_or(Errno::NOENT)?;
        match &state.inode(ino)?.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn create_node(
        &self,
        handle: &DirHandle,
        name: &OsStr,
        kind: NodeKind,
        mode: u32,
    ) -> io::Result<()> {
        let whiteout = kind == NodeKind::CharDevice(DeviceNumber::default());
        if self.profile().identity.user_namespace && kind != NodeKind::Fifo && !whiteout {
            return Err(Errno::PERM.into());
        }
        dir(handle)?.add(&mut self.state(), name, Body::Node(kind), mode)?;
        Ok(())
    }

    fn hard_link(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
    ) -> io::Result<()> {
        let (source, target) = (dir(from_dir)?, dir(to_dir)?);
        let mut state = self.state();
        source.lookup(&state, from)?.ok_or(Errno::NOENT)?;
        if target.lookup(&state, to)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        target.writable()?;
        source.same_mount(target)?;
        match (source.overlay(), target.overlay()) {
            (Some((overlay, from_path)), Some((_, path))) => {
                state.overlay_link(overlay, (from_path, from), (path, to))?;
            }
            _ => {
                let ino = state
                    .child(source.plain_or(Errno::STALE)?, from)?
                    .ok_or(Errno::NOENT)?;
                state.link(ino, target.plain_or(Errno::STALE)?, to)?;
            }
        }
        Ok(())
    }

    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()> {
        let (source, target) = (dir(from_dir)?, dir(to_dir)?);
        source.same_mount(target)?;
        target.writable()?;
        check_name(from)?;
        check_name(to)?;
        let mut state = self.state();
        let moved = source.lookup(&state, from)?.ok_or(Errno::NOENT)?;
        let there = target.lookup(&state, to)?;
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST.into()),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT.into()),
            _ => {}
        }
        if [Some(moved), there]
            .into_iter()
            .flatten()
            .any(|ino| state.is_mount_point(ino))
        {
            return Err(Errno::BUSY.into());
        }
        match (source.overlay(), target.overlay()) {
            (Some((overlay, from_path)), Some((_, path))) => {
                let (one, other) = ((from_path, from), (path, to));
                match mode {
                    RenameMode::Exchange => state.overlay_exchange(overlay, one, other)?,
                    RenameMode::Replace | RenameMode::NoReplace => {
                        state.overlay_rename(overlay, one, other)?;
                    }
                }
            }
            _ => {
                let (from, to) = (
                    (source.plain_or(Errno::STALE)?, from),
                    (target.plain_or(Errno::STALE)?, to),
                );
                match mode {
                    RenameMode::Exchange => state.exchange(from, to)?,
                    RenameMode::Replace | RenameMode::NoReplace => state.rename(from, to)?,
                }
            }
        }
        Ok(())
    }

    fn unlink(&self, handle: &DirHandle, name: &OsStr) -> io::Result<()> {
        let here = dir(handle)?;
        here.writable()?;
        let mut state = self.state();
        match here.overlay() {
            None => state.unlink(here.plain_or(Errno::STALE)?, name)?,
            Some((overlay, path)) => state.overlay_unlink(overlay, path, name)?,
        }
        Ok(())
    }

    fn remove_dir(&self, handle: &DirHandle, name: &OsStr) -> io::Result<()> {
        let here = dir(handle)?;
        here.writable()?;
        let mut state = self.state();
        match here.overlay() {
            None => state.rmdir(here.plain_or(Errno::STALE)?, name)?,
            Some((overlay, path)) => state.overlay_rmdir(overlay, path, name)?,
        }
        Ok(())
    }

    fn set_owner(&self, node: Node<'_>, uid: u32, gid: u32) -> io::Result<()> {
        self.owned(&self.profile().identity.uids, uid)?;
        self.owned(&self.profile().identity.gids, gid)?;
        self.change(node, |inode| {
            (inode.uid, inode.gid) = (uid, gid);
            if !inode.is_dir() {
                // Setgid without execute permission marks mandatory locking and stays.
                inode.mode &= if inode.mode & 0o010 == 0 {
                    !0o4000
                } else {
                    !0o6000
                };
                inode.xattrs.remove(OsStr::new(CAPABILITY));
            }
            Ok(())
        })
    }

    fn set_mode(&self, node: Node<'_>, mode: u32) -> io::Result<()> {
        if self.metadata(node)?.kind == FileKind::Symlink {
            return Err(Errno::OPNOTSUPP.into());
        }
        self.change(node, |inode| {
            inode.mode = mode & 0o7777;
            Ok(())
        })
    }

    fn set_mtime(&self, node: Node<'_>, mtime: Timestamp) -> io::Result<()> {
        if mtime.nanos >= 1_000_000_000 {
            return Err(Errno::INVAL.into());
        }
        self.change(node, |inode| {
            inode.mtime = mtime;
            Ok(())
        })
    }

    fn list_xattrs(&self, node: Node<'_>) -> io::Result<Vec<OsString>> {
        let state = self.state();
        let (ino, _, private) = self.locate(&state, node)?;
        let names = state.inode(ino)?.xattrs.keys();
        let rootless = self.profile().identity.user_namespace;
        Ok(names
            .filter(|name| !(rootless && name.as_encoded_bytes().starts_with(b"trusted.")))
            .filter_map(|name| shown_name(private, name))
            .collect())
    }

    fn xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        let (ino, _, private) = self.locate(&state, node)?;
        let rootless = self.profile().identity.user_namespace;
        if rootless && name.as_encoded_bytes().starts_with(b"trusted.") {
            return Ok(None);
        }
        Ok(state
            .inode(ino)?
            .xattrs
            .get(&stored_name(private, name)?)
            .cloned())
    }

    fn set_xattr(&self, node: Node<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        let bytes = name.as_encoded_bytes();
        let known = [
            &b"user."[..],
            b"trusted.",
            b"security.",
            b"system.posix_acl_",
        ];
        if !known
            .iter()
            .any(|prefix| bytes.len() > prefix.len() && bytes.starts_with(prefix))
        {
            return Err(Errno::OPNOTSUPP.into());
        }
        if bytes.len() > 255 {
            return Err(Errno::RANGE.into());
        }
        if value.len() > 65536 {
            return Err(Errno::TOOBIG.into());
        }
        if self.profile().identity.user_namespace && bytes.starts_with(b"trusted.") {
            return Err(Errno::PERM.into());
        }
        let mut state = self.state();
        self.may_have(&state, node, name)?;
        // A merged view copies the file up before its file system is asked.
        let (ino, private) = self.locate_mut(&mut state, node)?;
        self.keeps(name)?;
        let stored = stored_name(private, name)?;
        let now = state.tick();
        let inode = state.inode_mut(ino)?;
        inode.ctime = now;
        inode.xattrs.insert(stored, value.to_vec());
        Ok(())
    }

    fn remove_xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<()> {
        self.may_have(&self.state(), node, name)?;
        self.keeps(name)?;
        self.xattr(node, name)?.ok_or(Errno::NODATA)?;
        let mut state = self.state();
        let (ino, private) = self.locate_mut(&mut state, node)?;
        state
            .inode_mut(ino)?
            .xattrs
            .remove(&stored_name(private, name)?);
        Ok(())
    }

    fn unprotect(&self, node: Node<'_>) -> io::Result<bool> {
        // Its file system has no such flags, as tmpfs before Linux 6.6.
        self.metadata(node).map(|_| false)
    }

    fn start_writeback(&self, file: &FileHandle) -> io::Result<()> {
        self.metadata(Node::File(file)).map(|_| ())
    }

    fn sync(&self, node: Node<'_>) -> io::Result<()> {
        self.sync_node(node)
    }
}
