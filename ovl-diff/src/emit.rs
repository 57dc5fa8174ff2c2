//! Turns objects of a tree into members of an archive.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::slice;

use ovl_layout::IdMaps;

use crate::error::{Context as _, DiffError, TreeError};
use crate::ids::{IdKind, IdPlace, Untranslated, plain_capability, translate_xattr};
use crate::output::Output;
use crate::tree::{
    DeviceNumber, DirHandle, FileHandle, FileKind, Metadata, Node, Timestamp, TreeBackend,
};
use crate::view::{View, ViewDir};
use crate::whiteout::{is_reserved, opaque_name, whiteout_name};
use crate::write::{ArchiveWriter, Dialect, Member, MemberKind};
use crate::xattrs::exported_name;

/// How a layer is written as an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiffOptions {
    /// Whose owners on disk stand for the owners in the archive.
    pub id_maps: IdMaps,
    /// What of the objects is written.
    pub policy: DiffPolicy,
    /// Later times of modification become this one: two builds give the same archive then. `None`
    /// leaves all as they are.
    pub clamp_mtime: Option<Timestamp>,
    /// Threads that read small files, the calling one included; none means one for each core, at
    /// most 8. The archive is the same with any number, the first error too.
    pub parallelism: Option<NonZeroUsize>,
}

/// What of a layer's objects an archive says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiffPolicy {
    /// Everything that applying it can bring back: times to the nanosecond, `user.*` and
    /// `trusted.*` attributes other than overlayfs's own, capabilities, POSIX access control lists,
    /// and the root as `./` when it differs. Whiteouts and opaque marks have no owner and no time.
    #[default]
    All,
    /// What Docker 24 and later write, to the byte: whole seconds, `security.capability` alone of
    /// the attributes (on hard links too), no root, holes as zeros, whiteouts with owner and time of
    /// the device that stands for them, opaque marks with owner and permissions of their directory,
    /// headers as Go's `archive/tar` fills them. Older versions of Docker also write the kind of an
    /// object into its mode, and the names that owners have on the host.
    ///
    /// It is no copy of Docker's defects. Unlike Docker's, the archive
    /// - has no whiteout and no opaque mark where nothing below is hidden;
    /// - has a whiteout for what a left-out socket hides;
    /// - has no link name in the headers of whiteouts that share an inode;
    /// - has the same form against any base: Docker compares merged trees where it is not the
    ///   parent, and gives whiteouts the current time and mode 0 then;
    /// - knows whiteouts in the form of attributes, redirected directories and metacopy files;
    /// - is refused where Docker leaves out an object that it cannot read, or whose owner has no id
    ///   in the container.
    Docker,
}

impl DiffOptions {
    /// Owners as they are on disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whose owners on disk stand for the owners in the archive.
    #[must_use]
    pub fn id_maps(self, id_maps: IdMaps) -> Self {
        Self { id_maps, ..self }
    }

    /// Sets what of the objects is written.
    #[must_use]
    pub fn policy(self, policy: DiffPolicy) -> Self {
        Self { policy, ..self }
    }

    /// Sets how many threads read small files.
    #[must_use]
    pub fn parallelism(self, parallelism: Option<NonZeroUsize>) -> Self {
        Self {
            parallelism,
            ..self
        }
    }

    /// Sets what later times of modification become.
    #[must_use]
    pub fn clamp_mtime(self, clamp_mtime: Option<Timestamp>) -> Self {
        Self {
            clamp_mtime,
            ..self
        }
    }
}

/// What a diff has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiffSummary {
    /// Members written.
    pub entries: u64,
    /// Bytes of file contents, headers and padding not counted.
    pub payload: u64,
    /// Sockets left out: an archive cannot hold them.
    pub skipped_sockets: u64,
}

/// Writes members and remembers which inodes it has written.
pub(crate) struct Emitter<'a, W: Write> {
    view: View<'a>,
    options: &'a DiffOptions,
    writer: ArchiveWriter<'a, W>,
    links: HashMap<Inode, PathBuf>,
    /// Inodes of the layers below with names that were written, and how many of their names were
    /// not.
    partly: HashMap<Inode, u32>,
    summary: DiffSummary,
}

/// Which inode of which file system.
pub(crate) type Inode = (DeviceNumber, u64);

impl<'a, W: Write> Emitter<'a, W> {
    pub(crate) fn new(view: View<'a>, options: &'a DiffOptions, output: Output<'a, W>) -> Self {
        let dialect = match options.policy {
            DiffPolicy::All => Dialect::Plain,
            DiffPolicy::Docker => Dialect::Go,
        };
        let writer = ArchiveWriter::new(output, dialect);
        Self {
            view,
            options,
            writer,
            links: HashMap::new(),
            partly: HashMap::new(),
            summary: DiffSummary::default(),
        }
    }

    /// Ends the archive, or breaks it off so that nobody takes it for a whole one.
    pub(crate) fn end(self, result: Result<(), DiffError>) -> Result<DiffSummary, DiffError> {
        match result {
            Ok(()) => {
                self.writer
                    .finish()
                    .map_err(|source| DiffError::Write { source })?;
                Ok(self.summary)
            }
            Err(error) => {
                self.writer.abort();
                Err(error)
            }
        }
    }

    /// The layer's root, as `./`.
    pub(crate) fn root(&mut self, dir: &DirHandle, metadata: &Metadata) -> Result<(), DiffError> {
        match self.options.policy {
            DiffPolicy::All => self.directory(dir, Path::new("."), metadata),
            DiffPolicy::Docker => Ok(()),
        }
    }

    /// A directory without what is in it.
    pub(crate) fn directory(
        &mut self,
        dir: &DirHandle,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), DiffError> {
        refuse_reserved(path.file_name(), path)?;
        let (xattrs, _) = read_xattrs(self.view, Node::Dir(dir), path)?;
        self.member(path, MemberKind::Directory, metadata, xattrs, io::empty())
    }

    /// A socket is left out. What it hides below would show again.
    pub(crate) fn socket(
        &mut self,
        parent: &Path,
        name: &OsStr,
        hides: bool,
    ) -> Result<(), DiffError> {
        self.summary.skipped_sockets += 1;
        if hides {
            self.whiteout(parent, name, None)
        } else {
            Ok(())
        }
    }

    /// Any object but a directory, a socket or a whiteout: what `name` stands for in `merged`, in
    /// the part `dir` of it.
    pub(crate) fn object(
        &mut self,
        merged: &ViewDir,
        dir: &DirHandle,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), DiffError> {
        refuse_reserved(Some(name), path)?;
        let (tree, node) = (self.view.tree(), Node::Entry(dir, name));
        if metadata.nlink > 1 {
            if let Some(first) = self.links.get(&(metadata.dev, metadata.ino)) {
                let target = first.clone();
                let kind = MemberKind::HardLink {
                    target: target.as_os_str().as_bytes(),
                };
                let xattrs = match self.options.policy {
                    DiffPolicy::All => Vec::new(),
                    DiffPolicy::Docker => read_xattrs(self.view, node, path)?.0,
                };
                return self.member(path, kind, metadata, xattrs, io::empty());
            }
            self.links
                .insert((metadata.dev, metadata.ino), path.to_owned());
        }
        match metadata.kind {
            FileKind::Regular => self.regular(merged, dir, name, path, metadata),
            FileKind::Symlink => {
                let (xattrs, _) = read_xattrs(self.view, node, path)?;
                let target = tree.read_link(dir, name).on("read", path)?;
                refuse_changed(self.view, node, metadata, path)?;
                let kind = MemberKind::Symlink {
                    target: target.as_bytes(),
                };
                let metadata = Metadata {
                    mode: 0o777,
                    ..*metadata
                };
                self.member(path, kind, &metadata, xattrs, io::empty())
            }
            kind => {
                let (xattrs, _) = read_xattrs(self.view, node, path)?;
                let kind = match kind {
                    FileKind::CharDevice => MemberKind::CharDevice(metadata.rdev),
                    FileKind::BlockDevice => MemberKind::BlockDevice(metadata.rdev),
                    _ => MemberKind::Fifo,
                };
                self.member(path, kind, metadata, xattrs, io::empty())
            }
        }
    }

    /// A regular file that was read before.
    pub(crate) fn small(
        &mut self,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
        file: &mut SmallFile,
    ) -> Result<(), DiffError> {
        refuse_reserved(Some(name), path)?;
        let size = metadata.size;
        let kind = MemberKind::Regular { size };
        let xattrs = std::mem::take(&mut file.xattrs);
        self.member(path, kind, metadata, xattrs, &*file.contents)?;
        self.summary.payload += size;
        Ok(())
    }

    fn regular(
        &mut self,
        merged: &ViewDir,
        dir: &DirHandle,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), DiffError> {
        let tree = self.view.tree();
        let file = tree.open_file(dir, name).on("open", path)?;
        let changed = || DiffError::Changed {
            path: path.to_owned(),
        };
        let (xattrs, marks) = read_xattrs(self.view, Node::File(&file), path)?;
        let size = metadata.size;
        let data = match marks.metacopy {
            None => None,
            Some(_) => {
                let data = self.view.open_file(merged, name).on("open", path)?;
                let metadata = tree.metadata(Node::File(&data)).on("look at", path)?;
                Some((data, metadata))
            }
        };
        let (data_file, data_metadata) = match &data {
            None => (&file, metadata),
            Some((file, metadata)) => (file, metadata),
        };
        // Docker writes holes as the zeros that they read as.
        let whole_file = data_metadata.is_dense() || self.options.policy == DiffPolicy::Docker;
        let runs = match whole_file {
            true => None,
            false => sparse_runs(tree, data_file, size).on("read", path)?,
        };
        let whole = 0..size;
        let mut contents = Contents {
            tree,
            file: data_file,
            runs: runs.as_deref().unwrap_or(slice::from_ref(&whole)).iter(),
            offset: 0,
            end: 0,
            data: 0..if data_metadata.is_dense() { size } else { 0 },
            error: None,
        };
        let kind = match &runs {
            None => MemberKind::Regular { size },
            Some(runs) => MemberKind::Sparse { size, runs },
        };
        let result = self.member(path, kind, metadata, xattrs, &mut contents);
        if let Some(source) = contents.error.take() {
            return Err(match source.kind() {
                io::ErrorKind::UnexpectedEof => changed(),
                _ => TreeError::new("read", path, source).into(),
            });
        }
        result?;
        // The same file, all the time since its entry was looked at.
        refuse_changed(self.view, Node::File(&file), metadata, path)?;
        if let Some((data, metadata)) = &data {
            refuse_changed(self.view, Node::File(data), metadata, path)?;
        }
        self.summary.payload += size;
        Ok(())
    }

    /// What says that `name` in the directory `parent` is gone, of which `whiteout` is what the
    /// layer has there. Nothing of it means anything, so it has no owner and no time of its own;
    /// Docker writes them nevertheless, and as they are on disk.
    pub(crate) fn whiteout(
        &mut self,
        parent: &Path,
        name: &OsStr,
        whiteout: Option<&Metadata>,
    ) -> Result<(), DiffError> {
        // The whiteout of `.wh..opq` would be the mark of an opaque directory.
        refuse_reserved(Some(name), &parent.join(name))?;
        let (owner, mtime) = match (self.options.policy, whiteout) {
            (DiffPolicy::Docker, Some(of)) => ((of.uid, of.gid), of.mtime),
            _ => ((0, 0), Timestamp::default()),
        };
        self.marker(&parent.join(whiteout_name(name)), 0o600, owner, mtime)
    }

    /// What says that nothing below the directory `parent` shows.
    pub(crate) fn opaque(&mut self, parent: &Path, metadata: &Metadata) -> Result<(), DiffError> {
        let (mode, owner) = match self.options.policy {
            DiffPolicy::All => (0o600, (0, 0)),
            DiffPolicy::Docker => {
                let id = |kind, id| self.container_id(parent, IdPlace::Owner, kind, id);
                let uid = id(IdKind::User, metadata.uid)?;
                (
                    metadata.mode & 0o777,
                    (uid, id(IdKind::Group, metadata.gid)?),
                )
            }
        };
        self.marker(
            &parent.join(opaque_name()),
            mode,
            owner,
            Timestamp::default(),
        )
    }

    fn marker(
        &mut self,
        path: &Path,
        mode: u32,
        (uid, gid): (u32, u32),
        mtime: Timestamp,
    ) -> Result<(), DiffError> {
        let path = path.as_os_str().as_bytes();
        let (kind, mtime) = (MemberKind::Regular { size: 0 }, self.archive_time(mtime));
        let xattrs = Vec::new();
        let member = Member {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        };
        self.append(&member, io::empty())
    }

    /// A file of the layers below, which may have names that are not written.
    pub(crate) fn remember_names(&mut self, metadata: &Metadata) {
        let inode = (metadata.dev, metadata.ino);
        let left = self.partly.entry(inode).or_insert(metadata.nlink);
        *left = left.saturating_sub(1);
    }

    /// Inodes of the layers below of which some names were written and others not, if they have any
    /// others.
    pub(crate) fn take_partly_written(&mut self) -> HashMap<Inode, u32> {
        let mut partly = std::mem::take(&mut self.partly);
        partly.retain(|_, left| *left > 0);
        partly
    }

    fn archive_time(&self, mtime: Timestamp) -> Timestamp {
        let mtime = self
            .options
            .clamp_mtime
            .map_or(mtime, |last| mtime.min(last));
        match self.options.policy {
            DiffPolicy::All => mtime,
            DiffPolicy::Docker => Timestamp { nanos: 0, ..mtime },
        }
    }

    fn member(
        &mut self,
        path: &Path,
        kind: MemberKind<'_>,
        metadata: &Metadata,
        xattrs: Xattrs,
        contents: impl Read,
    ) -> Result<(), DiffError> {
        let &Metadata {
            mode,
            uid,
            gid,
            mtime,
            ..
        } = metadata;
        let uid = self.container_id(path, IdPlace::Owner, IdKind::User, uid)?;
        let gid = self.container_id(path, IdPlace::Owner, IdKind::Group, gid)?;
        let xattrs = self.container_xattrs(path, xattrs)?;
        let mtime = self.archive_time(mtime);
        let path = path.as_os_str().as_bytes();
        self.append(
            &Member {
                path,
                kind,
                mode,
                uid,
                gid,
                mtime,
                xattrs,
            },
            contents,
        )
    }

    /// The attributes with the ids that they have inside a container.
    fn container_xattrs(&self, path: &Path, mut xattrs: Xattrs) -> Result<Xattrs, DiffError> {
        if self.options.policy == DiffPolicy::Docker {
            xattrs.retain(|(name, _)| name == b"security.capability");
        }
        let translated = xattrs.into_iter().map(|(name, value)| {
            let container_id = |place, kind, id| self.container_id(path, place, kind, id);
            let value = match self.options.id_maps.is_identity() {
                true => value,
                false => match translate_xattr(&name, &value, container_id) {
                    Ok(value) => value.into_owned(),
                    Err(Untranslated::Id(error)) => return Err(error),
                    Err(Untranslated::Malformed) => {
                        let source = io::Error::from(io::ErrorKind::InvalidData);
                        return Err(TreeError::new("read attributes of", path, source).into());
                    }
                },
            };
            let value = plain_capability(&name, value);
            Ok((name, value))
        });
        translated.collect()
    }

    /// The id inside a container of one on disk.
    fn container_id(
        &self,
        path: &Path,
        place: IdPlace,
        kind: IdKind,
        id: u32,
    ) -> Result<u32, DiffError> {
        let map = kind.map(&self.options.id_maps);
        map.to_container(id).ok_or_else(|| {
            let (path, map) = (path.to_owned(), map.clone());
            DiffError::NoContainerId {
                path,
                place,
                kind,
                id,
                map,
            }
        })
    }

    fn append(&mut self, member: &Member<'_>, contents: impl Read) -> Result<(), DiffError> {
        self.summary.entries += 1;
        self.writer
            .append(member, contents)
            .map_err(|source| DiffError::Write { source })
    }
}

/// Everything about a small file that its metadata does not say.
pub(crate) struct SmallFile {
    xattrs: Xattrs,
    /// As many bytes as it has, and maybe more.
    contents: Vec<u8>,
}

impl SmallFile {
    pub(crate) fn into_memory(self) -> Vec<u8> {
        self.contents
    }
}

/// Reads a small file into `contents`, `None` when its data is in a layer below.
pub(crate) fn read_small(
    view: View<'_>,
    dir: &DirHandle,
    name: &OsStr,
    path: &Path,
    metadata: &Metadata,
    mut contents: Vec<u8>,
) -> Result<Option<SmallFile>, DiffError> {
    let tree = view.tree();
    let file = tree.open_file(dir, name).on("open", path)?;
    let (xattrs, marks) = read_xattrs(view, Node::File(&file), path)?;
    if marks.metacopy.is_some() {
        return Ok(None);
    }
    let size = usize::try_from(metadata.size).unwrap_or(0);
    contents.resize(contents.len().max(size), 0);
    let mut filled = 0;
    while filled < size {
        let read = tree.read_at(&file, filled as u64, &mut contents[filled..size]);
        match read.on("read", path)? {
            0 => {
                return Err(DiffError::Changed {
                    path: path.to_owned(),
                });
            }
            len => filled += len,
        }
    }
    // The same file, all the time since its entry was looked at.
    refuse_changed(view, Node::File(&file), metadata, path)?;
    Ok(Some(SmallFile { xattrs, contents }))
}

fn refuse_reserved(name: Option<&OsStr>, path: &Path) -> Result<(), DiffError> {
    match name {
        Some(name) if is_reserved(name) => Err(DiffError::ReservedName {
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The attributes that an archive carries, sorted by name.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Fails when an object is another one, or not the same any more, since `before` was looked up.
pub(crate) fn refuse_changed(
    view: View<'_>,
    node: Node<'_>,
    before: &Metadata,
    path: &Path,
) -> Result<(), DiffError> {
    let after = match view.tree().metadata(node) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result.on("look at", path)?),
    };
    let identity = |of: &Metadata| (of.dev, of.ino, of.size, of.mtime, of.ctime);
    match after {
        Some(after) if identity(&after) == identity(before) => Ok(()),
        _ => Err(DiffError::Changed {
            path: path.to_owned(),
        }),
    }
}

/// The attributes that an archive carries, and what the private ones say.
pub(crate) fn read_xattrs(
    view: View<'_>,
    node: Node<'_>,
    path: &Path,
) -> Result<(Xattrs, crate::view::Marks), DiffError> {
    let tree = view.tree();
    let stored = tree.list_xattrs(node).on("read attributes of", path)?;
    let marks = view
        .marks_among(node, &stored)
        .on("read attributes of", path)?;
    let mut found = Vec::new();
    for stored in stored {
        if let Some(name) = exported_name(view.xattrs(), &stored)
            && let Some(value) = tree.xattr(node, &stored).on("read attributes of", path)?
        {
            found.push((name, value));
        }
    }
    found.sort();
    Ok((found, marks))
}

/// Shorter holes are written as the zeros that they read as, which cost next to nothing once
/// compressed and which every reader understands.
const MIN_HOLE: u64 = 1 << 20;
/// Holes begin and end at multiples of this, or at the end of the file: where exactly they are
/// depends on the block size of the file system, the archive must not.
const HOLE_ALIGNMENT: u64 = 64 << 10;
/// Docker's reader takes maps of at most 1 MiB; a run is at most 40 bytes in it.
const MAX_RUNS: usize = 16 << 10;

/// What of a file of `size` bytes is written: all but its large holes. `None` when it has none.
fn sparse_runs(
    tree: &dyn TreeBackend,
    file: &FileHandle,
    size: u64,
) -> io::Result<Option<Vec<Range<u64>>>> {
    let mut runs = Vec::new();
    let (mut start, mut offset, mut sparse) = (0, 0, false);
    while offset < size && runs.len() < MAX_RUNS - 1 {
        let next = tree.next_extent(file, offset)?.unwrap_or(size..size);
        let hole_start = offset.next_multiple_of(HOLE_ALIGNMENT);
        let hole_end = match next.start.min(size) {
            end if end == size => size,
            end => end - end % HOLE_ALIGNMENT,
        };
        if hole_end.saturating_sub(hole_start) >= MIN_HOLE {
            if start < hole_start {
                runs.push(start..hole_start);
            }
            (start, sparse) = (hole_end, true);
        }
        // An extent is not empty, whatever a backend says.
        offset = next.end.max(offset + 1);
    }
    if start < size {
        runs.push(start..size);
    }
    Ok(sparse.then_some(runs))
}

/// Those runs of a file's contents that are written; the small holes in them are not read. Errors
/// are kept apart from those of the output.
struct Contents<'a> {
    tree: &'a dyn TreeBackend,
    file: &'a FileHandle,
    /// Those after the current one.
    runs: slice::Iter<'a, Range<u64>>,
    offset: u64,
    /// Where the current run ends.
    end: u64,
    /// The extent of data that ends after `offset`, once it is known.
    data: Range<u64>,
    error: Option<io::Error>,
}

impl Contents<'_> {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.offset == self.end {
            let Some(run) = self.runs.next() else {
                return Ok(0);
            };
            (self.offset, self.end) = (run.start, run.end);
        }
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let want = left.min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        if self.offset >= self.data.end {
            let rest = self.end..self.end;
            let next = self.tree.next_extent(self.file, self.offset)?;
            self.data = next.unwrap_or(rest);
        }
        if self.offset < self.data.start {
            let hole = self.data.start.min(self.end) - self.offset;
            let len = want.min(usize::try_from(hole).unwrap_or(want));
            buffer[..len].fill(0);
            return Ok(len);
        }
        let extent = usize::try_from(self.data.end - self.offset).unwrap_or(want);
        match self
            .tree
            .read_at(self.file, self.offset, &mut buffer[..want.min(extent)])?
        {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            len => Ok(len),
        }
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next(buffer) {
            Ok(len) => {
                self.offset += len as u64;
                Ok(len)
            }
            Err(error) => {
                let kind = error.kind();
                self.error = Some(error);
                Err(io::Error::from(kind))
            }
        }
    }
}
