//! Reading a layer. Nothing on disk is trusted: what does not agree is damage, never a mount.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

use ovl_diff::{DirHandle, FileKind, Node};
use ovl_layout::{
    LayerId, LayerRecord, LinkId, LinkIdError, LowerChain, RecordError, names, parse_link_target,
};
use rustix::io::Errno;

use super::Overlay2;
use super::known::{Moment, Seen};
use crate::error::Error;
use crate::files;
use crate::system::{Lock, LockKind};

/// What a layer's small files say, once they agree.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) id: LayerId,
    pub(super) dir: DirHandle,
    pub(super) link: LinkId,
    pub(super) chain: LowerChain,
    pub(super) committed: bool,
    /// Our record; none for a layer that another program wrote or rewrote.
    pub(super) record: Option<LayerRecord>,
}

/// What a layer is read for.
#[derive(Clone, Copy)]
enum Role<'a> {
    /// Itself.
    Top,
    /// What stands on it.
    Below(Rest<'a>),
}

/// What is below a layer by the chain of one above it, which was read before.
#[derive(Clone, Copy)]
struct Rest<'a> {
    links: &'a [LinkId],
    /// What its `lower` file says then.
    text: &'a str,
}

impl<'a> Rest<'a> {
    /// Of the layer at a place of a chain, which says `text` as a whole.
    fn of(chain: &'a LowerChain, text: &'a str, at: usize) -> Self {
        let (before, links) = (LowerChain::encoded_len(at + 1), &chain.links()[at + 1..]);
        let text = text.get(before + 1..).unwrap_or_default();
        Self { links, text }
    }
}

/// What a layer's small files say.
struct Said {
    link: LinkId,
    /// None for that of the rest that it was read with: what a stack of n layers says takes
    /// n * n / 2 entries.
    chain: Option<LowerChain>,
    committed: bool,
    record: Option<LayerRecord>,
}

impl Said {
    fn layer(self, id: &LayerId, dir: DirHandle) -> Layer {
        let Self {
            link,
            chain,
            committed,
            record,
        } = self;
        Layer {
            id: id.clone(),
            dir,
            link,
            chain: chain.unwrap_or_default(),
            committed,
            record,
        }
    }
}

impl<'a> Role<'a> {
    fn links(self) -> &'a [LinkId] {
        match self {
            Self::Top => &[],
            Self::Below(rest) => rest.links,
        }
    }

    fn expects(self, lower: &[u8]) -> bool {
        match self {
            Self::Top => false,
            Self::Below(rest) => !rest.links.is_empty() && rest.text.as_bytes() == lower,
        }
    }
}

impl Layer {
    pub(super) fn root_opaque(&self) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.root_opaque)
    }
}

/// The contents of a layer and of all layers below it.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    /// The layer's own `diff`.
    pub(super) upper: DirHandle,
    /// The `diff` directories below, uppermost first.
    pub(super) lowers: Vec<DirHandle>,
    /// Their ids.
    pub(super) ids: Vec<LayerId>,
    /// The lowest of all hides what it stands on by its record.
    pub(super) hides: bool,
}

/// The layers below a layer, once they agree with it and with each other.
#[derive(Clone, Debug)]
pub(super) struct Below {
    /// Their ids, uppermost first.
    pub(super) ids: Vec<LayerId>,
    /// Whether this program wrote every one of them, the layer itself included.
    pub(super) recorded: bool,
    /// Those that were mounted volatile, and the boots in which that was.
    pub(super) volatile: Vec<(LayerId, String)>,
    /// How many were not opened just now, but remembered.
    pub(super) remembered: usize,
}

impl Below {
    fn of(layer: &Layer) -> Self {
        Self {
            ids: Vec::with_capacity(layer.chain.depth()),
            recorded: layer.record.is_some(),
            volatile: Vec::new(),
            remembered: 0,
        }
    }

    fn push(&mut self, lower: Lower) {
        self.recorded &= lower.recorded;
        self.volatile
            .extend(lower.volatile.map(|boot| (lower.id.clone(), boot)));
        self.ids.push(lower.id);
    }
}

/// Whether it is seen to that layers have contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Their `diff` directories are opened.
    Opened,
    /// The mount that follows opens them, and says of which layer that failed.
    LeftToMount,
}

/// What a mount needs to know of one layer below.
pub(super) struct Lower {
    pub(super) id: LayerId,
    /// Whether this program wrote it.
    pub(super) recorded: bool,
    /// The boot in which it was mounted volatile.
    pub(super) volatile: Option<String>,
}

/// A layer below that was read just now.
struct Read {
    dir: DirHandle,
    /// Whether it hides all below it.
    root_opaque: bool,
}

impl Overlay2 {
    /// Reads a layer's small files.
    pub(super) fn layer(&self, id: &LayerId) -> Result<Layer, Error> {
        let (dir, said) = self.read_layer(id, Role::Top)?;
        Ok(said.layer(id, dir))
    }

    /// The same of a layer that the caller has locked.
    pub(super) fn locked_layer(&self, id: &LayerId, lock: &Lock) -> Result<Layer, Error> {
        if let Some(dir) = lock.dir()
            && let Ok(said) = self.read_files(id, dir, Role::Top)
            && said.record.is_some()
        {
            return Ok(said.layer(id, dir.clone()));
        }
        // Another program's, which knows nothing of the lock.
        self.layer(id)
    }

    fn read_layer(&self, id: &LayerId, role: Role<'_>) -> Result<(DirHandle, Said), Error> {
        loop {
            let dir = self.layer_dir(id)?;
            let result = self.read_files(id, &dir, role);
            // Files that are missing may be those of a layer that is being taken away.
            let doubtful = match &result {
                Ok(said) => said.record.is_none(),
                Err(_) => true,
            };
            if !doubtful || self.is_named(id, &dir)? {
                return result.map(|said| (dir, said));
            }
        }
    }

    /// Whether a layer still is the one whose directory was opened.
    pub(super) fn is_named(&self, id: &LayerId, dir: &DirHandle) -> Result<bool, Error> {
        let look = |node| match self.kernel.tree().metadata(node) {
            Ok(found) => Ok(Some((found.dev, found.ino))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look at", self.layout.layer(id).dir(), error)),
        };
        Ok(look(Node::Entry(&self.home, id.as_ref()))? == look(Node::Dir(dir))?)
    }

    /// The directory of a layer that the caller has locked.
    pub(super) fn locked_dir(&self, id: &LayerId, lock: &Lock) -> Result<DirHandle, Error> {
        match lock.dir() {
            Some(dir) => Ok(dir.clone()),
            None => self.layer_dir(id),
        }
    }

    pub(super) fn layer_dir(&self, id: &LayerId) -> Result<DirHandle, Error> {
        let path = || self.layout.layer(id).dir().to_owned();
        match self.kernel.tree().open_dir(&self.home, id.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let home = self.layout.home().to_owned();
                Err(Error::LayerNotFound {
                    id: id.clone(),
                    home,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(Error::damaged(id, path(), "not a directory"))
            }
            result => result.map_err(|error| Error::io("open", path(), error)),
        }
    }

    fn read_files(&self, id: &LayerId, dir: &DirHandle, role: Role<'_>) -> Result<Said, Error> {
        // Hundreds of layers are read for one mount, and paths are for errors.
        let (tree, path) = (self.kernel.tree(), || {
            self.layout.layer(id).dir().to_owned()
        });
        let read = |name: &str| {
            files::read(tree, dir, name).map_err(|error| unreadable(id, path().join(name), error))
        };
        let damaged = |name: &str, problem: &dyn ToString| {
            Error::damaged(id, path().join(name), problem.to_string())
        };
        let link =
            read(names::LINK)?.ok_or_else(|| damaged(names::LINK, &"the file is missing"))?;
        let link = LinkId::parse_file(&link).map_err(|error| match error {
            LinkIdError::Length { len: 0, .. } => damaged(names::LINK, &"the file is empty"),
            error => damaged(names::LINK, &error),
        })?;
        let chain = match read(names::LOWER)? {
            None => Some(LowerChain::default()),
            // Made of a chain in which no link stands twice.
            Some(contents) if role.expects(&contents) => None,
            Some(contents) => Some(
                LowerChain::parse_file(&contents)
                    .map_err(|error| damaged(names::LOWER, &with_source(&error)))?,
            ),
        };
        let links = chain.as_ref().map_or(role.links(), LowerChain::links);
        if chain.is_some() && links.contains(&link) {
            return Err(damaged(names::LOWER, &STANDS_ON_ITSELF));
        }
        let record = match read(names::RECORD)? {
            None => None,
            Some(contents) => Some(LayerRecord::parse_file(&contents).map_err(
                |error| match error {
                    RecordError::Newer { .. } => Error::Unsupported {
                        what: "this layer",
                        reason: format!("{}: {error}", path().join(names::RECORD).display()),
                    },
                    error => damaged(names::RECORD, &error),
                },
            )?),
        };
        // Another link id: another program wrote the layer anew, and the record is void.
        let record = record.filter(|record| record.link == link);
        if let Some(record) = &record
            && record.parent.as_ref() == Some(id)
        {
            return Err(damaged(names::RECORD, &STANDS_ON_ITSELF));
        }
        if let Some(record) = &record
            && record.depth != links.len()
        {
            let problem = format!(
                "it names {} layers, {} were below the layer when it was made",
                links.len(),
                record.depth
            );
            return Err(damaged(names::LOWER, &problem));
        }
        let committed = match role {
            // Of no interest, and counted by whoever has hundreds of them.
            Role::Below(_) => true,
            Role::Top => files::exists(tree, dir, names::COMMITTED)
                .map_err(|error| Error::io("look at", path(), error))?,
        };
        Ok(Said {
            link,
            chain,
            committed,
            record,
        })
    }

    /// Opens a layer's `diff`.
    pub(super) fn diff_dir(&self, layer: &Layer) -> Result<DirHandle, Error> {
        self.diff_in(&layer.id, &layer.dir)
    }

    fn diff_in(&self, id: &LayerId, dir: &DirHandle) -> Result<DirHandle, Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(names::DIFF));
        tree.open_dir(dir, name).map_err(|error| {
            let path = self.layout.layer(id).diff().to_owned();
            match contents_problem(&error) {
                Some(problem) => Error::damaged(id, path, problem),
                None => Error::io("open", path, error),
            }
        })
    }

    /// The layer that a link names; the layer must name the link too.
    pub(super) fn resolve(&self, wanted_by: &LayerId, link: LinkId) -> Result<LayerId, Error> {
        let (tree, name) = (self.kernel.tree(), OsStr::new(link.as_str()));
        let damaged = |problem: String| Error::damaged(wanted_by, self.layout.link(link), problem);
        let target = tree
            .read_link(&self.links, name)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    damaged(format!("the link is missing, and {wanted_by} stands on it"))
                }
                io::ErrorKind::InvalidInput => damaged("not a symbolic link".to_owned()),
                _ => Error::io("read", self.layout.link(link), error),
            })?;
        parse_link_target(target.as_bytes()).map_err(|error| damaged(with_source(&error)))
    }

    /// Opens everything that a layer shows, checking that links and layers agree.
    pub(super) fn stack(&self, layer: &Layer) -> Result<Stack, Error> {
        self.unless_gone(layer, || {
            let depth = layer.chain.depth();
            let mut stack = Stack {
                upper: self.diff_dir(layer)?,
                lowers: Vec::with_capacity(depth),
                ids: Vec::with_capacity(depth),
                hides: layer.root_opaque(),
            };
            let text = layer.chain.to_string();
            for (at, &link) in layer.chain.links().iter().enumerate() {
                let id = self.resolve(&layer.id, link)?;
                let (lower, read) = self.lower(layer, &text, at, id)?;
                stack.lowers.push(self.diff_in(&lower.id, &read.dir)?);
                stack.hides = read.root_opaque;
                stack.ids.push(lower.id);
            }
            Ok(stack)
        })
    }

    /// What a mount needs to know of the layers below. Those that have not changed since this store
    /// found them in order are not read again.
    pub(super) fn below(&self, layer: &Layer, contents: Contents) -> Result<Below, Error> {
        self.unless_gone(layer, || {
            if contents == Contents::Opened {
                self.diff_dir(layer)?;
            }
            let mut below = Below::of(layer);
            let (chain, moment) = (layer.chain.links(), self.moment(layer));
            let known: Vec<_> = (0..chain.len())
                .map(|at| moment.and_then(|moment| self.known_lower(chain, at, moment, contents)))
                .collect();
            let unknown: Vec<usize> = (0..chain.len()).filter(|&at| known[at].is_none()).collect();
            let text = match unknown[..] {
                [] => String::new(),
                _ => layer.chain.to_string(),
            };
            let found = in_threads(&unknown, |at| {
                self.find_lower(layer, &text, at, moment, contents)
            });
            let mut found = found
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?
                .into_iter();
            below.remembered = chain.len() - unknown.len();
            for (at, known) in known.into_iter().enumerate() {
                if let Some(lower) = known {
                    below.push(lower);
                } else if let Some((lower, seen)) = found.next() {
                    // Only now: one that is in order may stand on one that is not.
                    if let Some(seen) = seen {
                        self.remember_lower(chain, at, seen, &lower, contents);
                    }
                    below.push(lower);
                }
            }
            Ok(below)
        })
    }

    /// Reads the layer at a place of another one's chain, and gives how it was before.
    fn find_lower(
        &self,
        layer: &Layer,
        text: &str,
        at: usize,
        moment: Option<Moment>,
        contents: Contents,
    ) -> Result<(Lower, Option<Seen>), Error> {
        let id = self.resolve(&layer.id, layer.chain.links()[at])?;
        let seen = moment.and_then(|moment| self.see_lower(&id, moment));
        let (lower, read) = self.lower(layer, text, at, id)?;
        if contents == Contents::Opened {
            self.diff_in(&lower.id, &read.dir)?;
        }
        Ok((lower, seen))
    }

    fn unless_gone<T>(
        &self,
        layer: &Layer,
        look: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let result = look();
        if result.is_err() && !self.is_named(&layer.id, &layer.dir)? {
            // Not damaged: taken away or replaced since it was opened.
            self.layer_dir(&layer.id)?;
            return Err(Error::InFlight {
                id: layer.id.clone(),
            });
        }
        result
    }

    /// Reads the layer at a place of another one's chain, of which `text` is the file.
    fn lower(
        &self,
        layer: &Layer,
        text: &str,
        at: usize,
        id: LayerId,
    ) -> Result<(Lower, Read), Error> {
        let link = layer.chain.links()[at];
        // It was the parent's when the layer was made, and no chain ever changes.
        let known = Rest::of(&layer.chain, text, at);
        let (dir, below) =
            self.read_layer(&id, Role::Below(known))
                .map_err(|error| match error {
                    Error::LayerNotFound { .. } => Error::damaged(
                        &layer.id,
                        self.layout.link(link),
                        format!("the link points to the layer {id}, which does not exist"),
                    ),
                    error => error,
                })?;
        if below.link != link {
            let file = self.layout.link(link);
            let problem = format!("the link points to {id}, whose own link is {}", below.link);
            return Err(Error::damaged(&layer.id, file, problem));
        }
        let chain = below.chain.as_ref();
        if let Some(chain) = chain.filter(|chain| chain.links() != known.links) {
            let file = self.layout.layer(&layer.id).dir().join(names::LOWER);
            let problem = format!(
                "it names {} layers below {id}, which itself names {}",
                known.links.len(),
                chain.depth()
            );
            return Err(Error::damaged(&layer.id, file, problem));
        }
        let record = below.record.as_ref();
        let root_opaque = record.is_some_and(|record| record.root_opaque);
        let lower = Lower {
            id,
            recorded: record.is_some(),
            volatile: below.record.and_then(|record| record.volatile),
        };
        Ok((lower, Read { dir, root_opaque }))
    }

    /// The layer's parent: by its record, or by the first link of its chain.
    pub(super) fn parent_of(&self, layer: &Layer) -> Result<Option<LayerId>, Error> {
        if let Some(record) = &layer.record {
            return Ok(record.parent.clone());
        }
        layer
            .chain
            .parent()
            .map(|link| self.resolve(&layer.id, link))
            .transpose()
    }

    /// Locks a layer. Held for moments only, never over an archive or a removal.
    pub(super) fn lock_layer(&self, id: &LayerId, kind: LockKind) -> Result<Lock, Error> {
        let path = self.layout.layer(id).dir().to_owned();
        let missing = || Error::LayerNotFound {
            id: id.clone(),
            home: self.layout.home().to_owned(),
        };
        loop {
            let lock = self
                .kernel
                .system()
                .lock(&self.home, Some(id.as_ref()), kind, true);
            let lock = match lock {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    return Err(Error::damaged(id, path, "not a directory"));
                }
                result => result.map_err(|error| Error::io("lock", &path, error))?,
            };
            let Some(lock) = lock else { continue };
            // Somebody may have removed or replaced the layer while this waited.
            match self
                .kernel
                .tree()
                .metadata(Node::Entry(&self.home, id.as_ref()))
            {
                Ok(found) if found.kind == FileKind::Directory && found.ino == lock.ino() => {
                    return Ok(lock);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                Err(error) => return Err(Error::io("look at", &path, error)),
                Ok(_) => {}
            }
        }
    }
}

/// Fewer layers are read sooner than a thread starts.
const WORTH_A_THREAD: usize = 16;
/// More gain nothing: the file system takes its locks.
const MAX_THREADS: usize = 4;

/// Looks for each, in threads where there are many and cores for that. Nothing is left out before
/// the first error.
fn in_threads<T: Send>(
    wanted: &[usize],
    find: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Vec<Result<T, Error>> {
    let find_all = |part: &[usize]| {
        let mut found = Vec::with_capacity(part.len());
        for &at in part {
            found.push(find(at));
            if found.last().is_some_and(Result::is_err) {
                break;
            }
        }
        found
    };
    let threads = match wanted.len() / WORTH_A_THREAD {
        few @ 0..2 => few.max(1),
        many => many.min(MAX_THREADS).min(cores()),
    };
    let mut parts = wanted.chunks(wanted.len().div_ceil(threads).max(1));
    let own = parts.next().unwrap_or_default();
    thread::scope(|scope| {
        let helpers: Vec<_> = parts
            .map(|part| {
                let thread = thread::Builder::new().name("ovl-layers".to_owned());
                (part, thread.spawn_scoped(scope, || find_all(part)).ok())
            })
            .collect();
        let mut found = find_all(own);
        for (part, helper) in helpers {
            if found.last().is_some_and(Result::is_err) {
                break;
            }
            found.extend(match helper.map(thread::ScopedJoinHandle::join) {
                Some(Ok(part)) => part,
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                // No thread to be had.
                None => find_all(part),
            });
        }
        found
    })
}

/// Asking takes as long as reading many a layer.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

pub(super) const STANDS_ON_ITSELF: &str = "the layer stands on itself";

pub(super) const MOUNTED_OVER: &str = "another file system is mounted there";

/// Why a layer has no contents, when that is not the system's fault.
pub(super) fn contents_problem(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => Some("the directory is missing"),
        Some(Errno::NOTDIR | Errno::LOOP) => Some("not a directory"),
        Some(Errno::XDEV) => Some(MOUNTED_OVER),
        _ => None,
    }
}

/// Whether there is nothing of a name that a layer could be.
pub(super) fn is_no_directory(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

pub(super) fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {source}"),
    }
}

/// A small file that is no file, or too large to be one of the store's, is damage and no I/O error.
fn unreadable(id: &LayerId, file: PathBuf, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Error::damaged(id, file, error),
        _ if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
            Error::damaged(id, file, "a symbolic link")
        }
        _ => Error::io("read", file, error),
    }
}
