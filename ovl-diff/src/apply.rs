//! Builds a layer's directory from an archive.

mod dress;
mod files;
mod links;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use ovl_layout::{IdMaps, XattrNamespace};

use self::dress::Dress;
use self::files::{Batch, Failure, Files, Job, NewFile, PIECES, SMALL};
use crate::archive::{
    ArchiveEntry, ArchiveReader, ArchiveSummary, BadArchive, BadReason, EntryKind, ReadLimits,
};
use crate::error::{ApplyError, Context as _, TreeError};
use crate::handles::FewHandles;
use crate::place::{EnterError, Entered, Position, remove_any};
use crate::remove::remove_tree;
use crate::tree::{DeviceNumber, DirHandle, FileHandle, FileKind, Node, NodeKind, TreeBackend};
use crate::view::{Found, View};
use crate::whiteout::{EntryName, MAX_NAME_LEN, aufs_links, classify, is_aufs_links};
use crate::workers::with_workers;

/// Symbolic links that one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// Components that one path may have.
const MAX_COMPONENTS: usize = 4096;
/// Longest text of a symbolic link, in bytes: `PATH_MAX` less the NUL.
const MAX_TARGET_LEN: usize = 4095;
/// A block of zero bytes of this length becomes a hole.
const HOLE_LEN: usize = 4096;

/// How an archive is applied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ApplyOptions {
    /// Where overlay's private attributes are kept.
    pub xattrs: XattrNamespace,
    /// What the archive may cost.
    pub limits: ReadLimits,
    /// Whose owners stand on disk for the owners in the archive.
    pub id_maps: IdMaps,
    /// User ids that can own a file here; none means all. They are ids on disk.
    pub uids: Option<Vec<Range<u64>>>,
    /// Group ids that can own a file here; none means all. They are ids on disk.
    pub gids: Option<Vec<Range<u64>>>,
    /// Gives what nobody here can own to the container's root instead of refusing it.
    pub squash: bool,
    /// Leaves device nodes out that this user cannot make instead of refusing them.
    pub skip_devices: bool,
    /// Begins to write each file to disk when it is whole, for a [`sync_layer`](crate::sync_layer)
    /// that follows.
    pub start_writeback: bool,
    /// Threads that complete files, the calling one included; none means one for each core, at
    /// most 8. The result is the same with any number, the first error too.
    pub parallelism: Option<NonZeroUsize>,
}

impl ApplyOptions {
    /// Everything allowed that root may do.
    #[must_use]
    pub fn new(xattrs: XattrNamespace) -> Self {
        let limits = ReadLimits::default();
        Self {
            xattrs,
            limits,
            id_maps: IdMaps::default(),
            uids: None,
            gids: None,
            squash: false,
            skip_devices: false,
            start_writeback: false,
            parallelism: None,
        }
    }
}

/// What applying an archive has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ApplySummary {
    /// What reading has found: digest, sizes, entries, warnings.
    pub archive: ArchiveSummary,
    /// Bytes of file contents.
    pub payload: u64,
    /// The archive hides everything below it: the layer must have no `lower` file.
    pub root_opaque: bool,
    /// Entries given to root, as owner or in an attribute, because nobody here can own them.
    pub squashed: u64,
    /// Devices left out.
    pub skipped_devices: u64,
    /// Hard links that became copies, because the file has as many names as the file system allows
    /// or lies in another quota project.
    pub copied_links: u64,
    /// Times that the file system could not hold and has replaced by the nearest that it can; a diff
    /// gives those.
    pub clamped_times: u64,
    /// Attributes left out: SELinux labels, XFS's own form of access control lists, and `user.*` on
    /// what cannot have any.
    pub skipped_xattrs: u64,
}

/// How far an apply is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Entries done.
    pub entries: u64,
    /// Bytes of the input taken, compressed as it is.
    pub input_bytes: u64,
}

/// Applies a layer archive, plain or compressed with gzip or zstd, to `upper`, an empty directory.
///
/// `lowers` are the `diff` directories of the layers below, uppermost first. What the archive only
/// implies is taken from them: the attributes of parents that have no entry, links that lead to
/// where a file really goes, files that are only linked to. Nothing outside `upper` is changed, and
/// the lower layers are only read.
///
/// The semantics are those of the OCI image specification: whiteouts and opaque markers hide what
/// is below, never what the same archive brings, in whatever order they come. A parent that neither
/// the archive nor a layer below has is made with mode 0755 and the time of the call.
///
/// # Errors
///
/// [`ApplyError::Archive`] for an archive that is damaged, over the limits, or tries to leave the
/// layer; [`ApplyError::Tree`] when the file system refuses a step. `upper` is useless then.
///
/// # References
///
/// OCI image-spec, "Image Layer Filesystem Changeset".
#[doc(alias = "ApplyDiff")]
pub fn apply(
    tree: &dyn TreeBackend,
    input: impl Read,
    upper: &DirHandle,
    lowers: &[DirHandle],
    options: &ApplyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<ApplySummary, ApplyError> {
    let tree = &FewHandles::new(tree, 1 + lowers.len());
    let failure = Failure::default();
    let result = with_workers(
        options.parallelism,
        &|batch: Batch| failure.run(tree, batch),
        |workers| {
            let mut files = Files::new(workers, &failure);
            let result = apply_with(tree, input, (upper, lowers), options, progress, &mut files);
            files.wait();
            result
        },
    );
    // A file of which the rest is done later comes earlier in the archive than what comes to light
    // meanwhile.
    let clamped_times = failure.clamped_times();
    match failure.take() {
        Some(error) => Err(error),
        None => result.map(|summary| ApplySummary {
            clamped_times: summary.clamped_times + clamped_times,
            ..summary
        }),
    }
}

fn apply_with(
    tree: &dyn TreeBackend,
    input: impl Read,
    (upper, lowers): (&DirHandle, &[DirHandle]),
    options: &ApplyOptions,
    progress: &mut dyn FnMut(Progress),
    files: &mut Files<'_>,
) -> Result<ApplySummary, ApplyError> {
    let mut reader = ArchiveReader::new(input, options.limits);
    let view = View::new(tree, options.xattrs);
    let position = Position::new(view, upper, lowers, &options.id_maps)?;
    let mut applier = Applier {
        tree,
        options,
        position,
        files,
        payload: 0,
        root_opaque: false,
        squashed: 0,
        squashes: false,
        skipped_devices: 0,
        copied_links: 0,
        clamped_times: 0,
        skipped_xattrs: 0,
        has_aufs_links: false,
    };
    let mut entries = 0;
    // After a failure the rest makes no difference.
    while !applier.files.have_failed()
        && let Some(entry) = reader.next_entry()?
    {
        applier.entry(entry, &mut reader)?;
        entries += 1;
        progress(Progress {
            entries,
            input_bytes: reader.input_bytes(),
        });
    }
    applier.remove_aufs_links(upper)?;
    applier.position.leave_all()?;
    Ok(ApplySummary {
        payload: applier.payload,
        root_opaque: applier.root_opaque,
        squashed: applier.squashed,
        skipped_devices: applier.skipped_devices,
        copied_links: applier.copied_links,
        clamped_times: applier.clamped_times + applier.position.clamped_times(),
        skipped_xattrs: applier.skipped_xattrs,
        archive: reader.finish()?,
    })
}

struct Applier<'a, 'f> {
    tree: &'a dyn TreeBackend,
    options: &'a ApplyOptions,
    position: Position<'a>,
    files: &'a mut Files<'f>,
    payload: u64,
    root_opaque: bool,
    squashed: u64,
    /// Whether the current entry has an id that was given to root.
    squashes: bool,
    skipped_devices: u64,
    copied_links: u64,
    clamped_times: u64,
    skipped_xattrs: u64,
    /// Whether files stand in AUFS's directory only to be linked to.
    has_aufs_links: bool,
}

/// A regular file that has a name, and what else it is to get.
struct Begun {
    handle: FileHandle,
    path: PathBuf,
    dress: Dress,
}

/// Why an entry could not be done.
enum Stop {
    Bad(BadReason),
    Tree(TreeError),
}

impl From<TreeError> for Stop {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl Stop {
    /// The same, as the failure of an entry.
    fn of(self, entry: &ArchiveEntry) -> ApplyError {
        match self {
            Self::Bad(reason) => BadArchive::new(entry, reason).into(),
            Self::Tree(error) => error.into(),
        }
    }
}

impl Applier<'_, '_> {
    fn entry<R: Read>(
        &mut self,
        entry: ArchiveEntry,
        reader: &mut ArchiveReader<R>,
    ) -> Result<(), ApplyError> {
        match self.begin(&entry) {
            Ok(None) => Ok(()),
            Ok(Some(begun)) => self.fill(entry, begun, reader),
            Err(stop) => Err(stop.of(&entry)),
        }
    }

    /// Does all that the entry says, except for the contents and attributes of a regular file.
    fn begin(&mut self, entry: &ArchiveEntry) -> Result<Option<Begun>, Stop> {
        let refuse = |reason| Err(Stop::Bad(reason));
        let path = components(&entry.path).map_err(Stop::Bad)?;
        let Some((&name, parents)) = path.split_last() else {
            return self.root(entry).map(|()| None);
        };
        let mut aufs = false;
        for parent in parents {
            match classify(parent) {
                EntryName::Plain => {}
                EntryName::AufsMetadata => aufs = true,
                EntryName::Whiteout(_) | EntryName::Opaque | EntryName::Nonsense => {
                    return refuse(BadReason::BadWhiteout);
                }
            }
        }
        let kind = classify(name);
        if aufs {
            // No entry can have a name in there, so what is linked later can wait in it.
            let is_linked = kind == EntryName::Plain && entry.kind == EntryKind::Regular;
            if !is_linked || !is_aufs_links(parents) {
                return Ok(None);
            }
            self.has_aufs_links = true;
        }
        let is_marker = match &entry.kind {
            EntryKind::Regular => entry.size == 0,
            // AUFS layers link all their markers together.
            EntryKind::HardLink { target } => {
                let last = target
                    .rsplit(|&byte| byte == b'/')
                    .next()
                    .unwrap_or_default();
                classify(OsStr::from_bytes(last)) != EntryName::Plain
            }
            _ => false,
        };
        match kind {
            EntryName::Plain => return self.place(entry, parents, name),
            EntryName::AufsMetadata => {}
            EntryName::Nonsense => return refuse(BadReason::BadWhiteout),
            _ if !is_marker => return refuse(BadReason::BadWhiteout),
            EntryName::Whiteout(hidden) => {
                self.resolve(parents)?;
                self.whiteout(hidden)?;
            }
            EntryName::Opaque => {
                self.resolve(parents)?;
                self.opaque()?;
            }
        }
        Ok(None)
    }

    /// Reads the contents of a regular file, and writes them now or has it done by some thread.
    fn fill<R: Read>(
        &mut self,
        entry: ArchiveEntry,
        begun: Begun,
        reader: &mut ArchiveReader<R>,
    ) -> Result<(), ApplyError> {
        let Begun {
            handle,
            path,
            dress,
        } = begun;
        let size = entry.size;
        let start_writeback = self.options.start_writeback;
        let file = NewFile {
            entry,
            handle,
            path,
            dress,
            start_writeback,
        };
        self.payload += size;
        let mut pieces = Vec::new();
        while size <= SMALL && pieces.len() < PIECES {
            match reader.next_piece()? {
                Some(piece) => pieces.push(piece),
                None => {
                    self.files.submit(Job { file, pieces });
                    return Ok(());
                }
            }
        }
        let (mut pieces, mut end) = (pieces.into_iter(), 0);
        while let Some((offset, piece)) = match pieces.next() {
            Some(piece) => Some(piece),
            None => reader.next_piece()?,
        } {
            end = file.write(self.tree, offset, &piece)?.unwrap_or(end);
        }
        let finished = file.finish(self.tree, end);
        let kept = finished.map_err(|stop| stop.of(&file.entry))?;
        self.clamped_times += u64::from(!kept);
        Ok(())
    }

    /// Those names of them that the archive links stay.
    fn remove_aufs_links(&mut self, upper: &DirHandle) -> Result<(), TreeError> {
        if !self.has_aufs_links {
            return Ok(());
        }
        self.position.leave_to_root()?;
        self.position.touch();
        remove_tree(self.tree, upper, aufs_links())
    }

    /// Makes the directory at `path` current, following links inside the layer.
    fn resolve(&mut self, path: &[&OsStr]) -> Result<(), Stop> {
        let kept = self.position.keep_common(path)?;
        let mut pending: Vec<OsString> = path[kept..]
            .iter()
            .rev()
            .map(|&name| name.to_owned())
            .collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            // Only the text of a link can hold it: entry names with it are refused.
            if name == ".." {
                if self.position.is_root() {
                    return Err(Stop::Bad(BadReason::LinkEscape));
                }
                self.position.leave()?;
                continue;
            }
            if name.len() > MAX_NAME_LEN {
                return Err(Stop::Bad(BadReason::NameTooLong));
            }
            let Some(target) = self.position.enter(&name).map_err(|error| match error {
                EnterError::NotADirectory => Stop::Bad(BadReason::NotADirectory),
                EnterError::Tree(error) => Stop::Tree(error),
            })?
            else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Stop::Bad(BadReason::TooManyLinks));
            }
            let target = target.into_vec();
            if target.starts_with(b"/") {
                self.position.leave_to_root()?;
            }
            let parts = target.split(|&byte| byte == b'/').rev();
            let parts = parts.filter(|part| !part.is_empty() && *part != b".");
            for part in parts.map(OsStr::from_bytes) {
                // Nothing in a layer has such a name, whatever leads to it.
                if classify(part) != EntryName::Plain {
                    return Err(Stop::Bad(BadReason::BadWhiteout));
                }
                pending.push(part.to_owned());
            }
            if pending.len() > MAX_COMPONENTS {
                return Err(Stop::Bad(BadReason::PathTooDeep));
            }
        }
        Ok(())
    }

    /// `./`: the attributes of the layer's root.
    fn root(&mut self, entry: &ArchiveEntry) -> Result<(), Stop> {
        if entry.kind != EntryKind::Directory {
            return Err(Stop::Bad(BadReason::RootNotDirectory));
        }
        self.position.leave_to_root()?;
        self.dress_directory(entry, true)
    }

    fn place(
        &mut self,
        entry: &ArchiveEntry,
        parents: &[&OsStr],
        name: &OsStr,
    ) -> Result<Option<Begun>, Stop> {
        if let EntryKind::HardLink { target } = &entry.kind {
            return self.hard_link(target, parents, name).map(|()| None);
        }
        self.resolve(parents)?;
        if entry.kind == EntryKind::Directory {
            return self.directory(entry, name).map(|()| None);
        }
        if let EntryKind::CharDevice(number) = entry.kind
            && number == DeviceNumber::default()
        {
            return Err(Stop::Bad(BadReason::WhiteoutDevice));
        }
        let dir = self.position.upper()?;
        let mut begun = None;
        match &entry.kind {
            EntryKind::Regular => begun = Some(self.regular(entry, &dir, name)?),
            EntryKind::Symlink { target } => {
                let bad = target.is_empty() || target.len() > MAX_TARGET_LEN;
                if bad {
                    return Err(Stop::Bad(BadReason::BadLinkTarget));
                }
                let (len, target) = (target.len(), OsStr::from_bytes(target));
                let path = self.position.path_of(name);
                match self.create(&dir, name, |tree| tree.create_symlink(&dir, name, target))? {
                    Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                        return Err(Stop::Bad(BadReason::LinkTargetTooLong { len }));
                    }
                    result => result.on("create the link", &path)?,
                }
                self.dress(entry, Node::Entry(&dir, name), FileKind::Symlink, &path)?;
            }
            EntryKind::Fifo => self.node(entry, NodeKind::Fifo, &dir, name)?,
            EntryKind::CharDevice(number) => {
                self.node(entry, NodeKind::CharDevice(*number), &dir, name)?;
            }
            EntryKind::BlockDevice(number) => {
                self.node(entry, NodeKind::BlockDevice(*number), &dir, name)?;
            }
            EntryKind::Directory | EntryKind::HardLink { .. } => {}
        }
        self.position.touch();
        Ok(begun)
    }

    /// Creates an object in place of what this archive has put at `name` before: the later entry
    /// wins. Names are seldom taken, so that is found out by trying.
    fn create<T>(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        create: impl Fn(&dyn TreeBackend) -> io::Result<T>,
    ) -> Result<io::Result<T>, TreeError> {
        match create(self.tree) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_any(self.position.view(), dir, name)
                    .map_err(|error| error.below(self.position.path()))?;
                Ok(create(self.tree))
            }
            result => Ok(result),
        }
    }

    fn directory(&mut self, entry: &ArchiveEntry, name: &OsStr) -> Result<(), Stop> {
        let existed = match self.position.enter_directory(name)? {
            Entered::Existing => true,
            Entered::Created => false,
        };
        self.dress_directory(entry, existed)
    }

    fn regular(
        &mut self,
        entry: &ArchiveEntry,
        dir: &DirHandle,
        name: &OsStr,
    ) -> Result<Begun, Stop> {
        let path = self.position.path_of(name);
        let handle = self
            .create(dir, name, |tree| tree.create_file(dir, name, 0o600))?
            .on("create", &path)?;
        let node = Node::File(&handle);
        let dress = self.dress_of_new(entry, node, FileKind::Regular, &path)?;
        Ok(Begun {
            handle,
            path,
            dress,
        })
    }

    fn node(
        &mut self,
        entry: &ArchiveEntry,
        kind: NodeKind,
        dir: &DirHandle,
        name: &OsStr,
    ) -> Result<(), Stop> {
        let path = self.position.path_of(name);
        match self.create(dir, name, |tree| tree.create_node(dir, name, kind, 0o600))? {
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && kind != NodeKind::Fifo =>
            {
                if !self.options.skip_devices {
                    return Err(Stop::Bad(BadReason::DeviceRefused));
                }
                self.skipped_devices += 1;
                return Ok(());
            }
            Err(error)
                if error.kind() == io::ErrorKind::InvalidInput
                    && let NodeKind::CharDevice(number) | NodeKind::BlockDevice(number) = kind =>
            {
                let DeviceNumber { major, minor } = number;
                return Err(Stop::Bad(BadReason::DeviceTooLarge { major, minor }));
            }
            result => result.on("create", &path)?,
        }
        // The owner rule does not depend on the kind; only the mode of a link cannot be set.
        self.dress(entry, Node::Entry(dir, name), FileKind::Fifo, &path)
    }

    /// Hides what the layers below have at `name`, and nothing that this archive has put there.
    fn whiteout(&mut self, name: &OsStr) -> Result<(), TreeError> {
        let path = self.position.path_of(name);
        let view = self.position.view();
        let below = view
            .lookup(self.position.below(), name)
            .on("look at", &path)?;
        if !below.exists() {
            return Ok(());
        }
        let existing = match self.position.upper_if_any() {
            Some(dir) => view.entry(&dir, name).on("look at", &path)?,
            None => None,
        };
        let dir = self.position.upper_for_whiteout()?;
        match existing {
            None => {
                let kind = NodeKind::CharDevice(DeviceNumber::default());
                self.tree
                    .create_node(&dir, name, kind, 0)
                    .on("create the whiteout", &path)?;
                self.position.touch();
            }
            Some(metadata) if metadata.is_dir() && matches!(below, Found::Directory(..)) => {
                self.position.hide_below(&dir, name)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Hides everything that the layers below have in the current directory.
    fn opaque(&mut self) -> Result<(), TreeError> {
        if self.position.is_root() {
            self.root_opaque = true;
        }
        self.position.cut()
    }
}

/// The parts of a file's contents at `offset` that are to be written: whole blocks of zeros are left
/// out.
fn data_runs(chunk: &[u8], offset: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    while start < chunk.len() {
        let into_block = usize::try_from((offset + start as u64) % HOLE_LEN as u64).unwrap_or(0);
        let end = (start + HOLE_LEN - into_block).min(chunk.len());
        let is_hole = end - start == HOLE_LEN && chunk[start..end].iter().all(|&byte| byte == 0);
        match runs.last_mut() {
            _ if is_hole => {}
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
        start = end;
    }
    runs
}

/// The plain names of a path as an archive writes it; leading slashes mean the layer's root.
fn components(path: &[u8]) -> Result<Vec<&OsStr>, BadReason> {
    let mut names = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(BadReason::PathEscape),
            _ => {
                let name = OsStr::from_bytes(part);
                let bare = match classify(name) {
                    EntryName::Whiteout(hidden) => hidden,
                    _ => name,
                };
                if bare.len() > MAX_NAME_LEN {
                    return Err(BadReason::NameTooLong);
                }
                names.push(name);
            }
        }
    }
    if names.len() > MAX_COMPONENTS {
        return Err(BadReason::PathTooDeep);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_of_zeros_are_holes_wherever_a_read_begins() {
        let mut chunk = vec![0; 4 * HOLE_LEN];
        assert_eq!(data_runs(&chunk, 0), []);
        chunk[HOLE_LEN + 1] = 1;
        let second = HOLE_LEN..2 * HOLE_LEN;
        assert_eq!(data_runs(&chunk, 0), std::slice::from_ref(&second));
        // The parts of blocks at both ends are written: the rest of them may be data.
        let shifted = data_runs(&chunk, 7);
        assert_eq!(
            shifted,
            [0..2 * HOLE_LEN - 7, 4 * HOLE_LEN - 7..4 * HOLE_LEN]
        );
        let dense = vec![1; 3 * HOLE_LEN + 5];
        assert_eq!(data_runs(&dense, 3).len(), 1);
    }
}
