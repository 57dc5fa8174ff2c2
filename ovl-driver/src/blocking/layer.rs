//! Reading a layer. Nothing on disk is trusted: what does not agree is damage, never a mount.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ovl_diff::{DirHandle, FileKind, Node};
use ovl_layout::{
    LayerId, LayerRecord, LinkId, LinkIdError, LowerChain, RecordError, names, parse_link_target,
};
use rustix::io::Errno;

use super::Overlay2;
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
}

impl Below {
    fn of(layer: &Layer) -> Self {
        Self {
            ids: Vec::with_capacity(layer.chain.depth()),
            recorded: layer.record.is_some(),
            volatile: Vec::new(),
        }
    }

    fn push(&mut self, lower: Layer) {
        self.recorded &= lower.record.is_some();
        let noted = lower.record.and_then(|record| record.volatile);
        self.volatile
            .extend(noted.map(|boot| (lower.id.clone(), boot)));
        self.ids.push(lower.id);
    }
}

impl Overlay2 {
    /// Reads a layer's small files.
    pub(super) fn layer(&self, id: &LayerId) -> Result<Layer, Error> {
        self.layer_above(id, &[])
    }

    /// The same of a layer that should stand on `known`: links of a chain that was read before.
    fn layer_above(&self, id: &LayerId, known: &[LinkId]) -> Result<Layer, Error> {
        loop {
            let dir = self.layer_dir(id)?;
            let result = self.layer_in(id, &dir, known);
            // Files that are missing may be those of a layer that is being taken away.
            let doubtful = match &result {
                Ok(layer) => layer.record.is_none(),
                Err(_) => true,
            };
            if !doubtful || self.is_named(id, &dir)? {
                return result;
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

    pub(super) fn layer_dir(&self, id: &LayerId) -> Result<DirHandle, Error> {
        let (tree, paths) = (self.kernel.tree(), self.layout.layer(id));
        match tree.open_dir(&self.home, id.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let home = self.layout.home().to_owned();
                Err(Error::LayerNotFound {
                    id: id.clone(),
                    home,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::damaged(
                id,
                paths.dir().to_owned(),
                "not a directory",
            )),
            result => result.map_err(|error| Error::io("open", paths.dir(), error)),
        }
    }

    fn layer_in(&self, id: &LayerId, dir: &DirHandle, known: &[LinkId]) -> Result<Layer, Error> {
        let (tree, paths) = (self.kernel.tree(), self.layout.layer(id));
        let read = |name: &str| {
            files::read(tree, dir, name)
                .map_err(|error| unreadable(id, paths.dir().join(name), error))
        };
        let damaged = |name: &str, problem: &dyn ToString| {
            Error::damaged(id, paths.dir().join(name), problem.to_string())
        };
        let link =
            read(names::LINK)?.ok_or_else(|| damaged(names::LINK, &"the file is missing"))?;
        let link = LinkId::parse_file(&link).map_err(|error| match error {
            LinkIdError::Length { len: 0, .. } => damaged(names::LINK, &"the file is empty"),
            error => damaged(names::LINK, &error),
        })?;
        let chain = match read(names::LOWER)? {
            None => LowerChain::default(),
            Some(contents) => LowerChain::parse_known(&contents, known)
                .map_err(|error| damaged(names::LOWER, &with_source(&error)))?,
        };
        if chain.links().contains(&link) {
            return Err(damaged(names::LOWER, &"the layer stands on itself"));
        }
        let record = match read(names::RECORD)? {
            None => None,
            Some(contents) => Some(LayerRecord::parse_file(&contents).map_err(
                |error| match error {
                    RecordError::Newer { .. } => Error::Unsupported {
                        what: "this layer",
                        reason: format!("{}: {error}", paths.dir().join(names::RECORD).display()),
                    },
                    error => damaged(names::RECORD, &error),
                },
            )?),
        };
        // Another link id: another program wrote the layer anew, and the record is void.
        let record = record.filter(|record| record.link == link);
        if let Some(record) = &record
            && record.depth != chain.depth()
        {
            let problem = format!(
                "it names {} layers, {} were below the layer when it was made",
                chain.depth(),
                record.depth
            );
            return Err(damaged(names::LOWER, &problem));
        }
        let committed = files::exists(tree, dir, names::COMMITTED)
            .map_err(|error| Error::io("look at", paths.dir(), error))?;
        Ok(Layer {
            id: id.clone(),
            dir: dir.clone(),
            link,
            chain,
            committed,
            record,
        })
    }

    /// Opens a layer's `diff`.
    pub(super) fn diff_dir(&self, layer: &Layer) -> Result<DirHandle, Error> {
        let path = self.layout.layer(&layer.id).diff().to_owned();
        match self
            .kernel
            .tree()
            .open_dir(&layer.dir, OsStr::new(names::DIFF))
        {
            Ok(dir) => Ok(dir),
            Err(error) => {
                let Some(problem) = contents_problem(&error) else {
                    return Err(Error::io("open", path, error));
                };
                Err(Error::damaged(&layer.id, path, problem))
            }
        }
    }

    /// The layer that a link names; the layer must name the link too.
    pub(super) fn resolve(&self, wanted_by: &LayerId, link: LinkId) -> Result<LayerId, Error> {
        let path = self.layout.link(link);
        let damaged = |problem: String| Error::damaged(wanted_by, path.clone(), problem);
        let target = match self
            .kernel
            .tree()
            .read_link(&self.links, OsStr::new(link.as_str()))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(format!(
                    "the link is missing, and {wanted_by} stands on it"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(damaged("not a symbolic link".to_owned()));
            }
            result => result.map_err(|error| Error::io("read", &path, error))?,
        };
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
            };
            for (at, &link) in layer.chain.links().iter().enumerate() {
                let id = self.resolve(&layer.id, link)?;
                let (lower, contents) = self.lower(layer, at, id)?;
                stack.lowers.push(contents);
                stack.ids.push(lower.id);
            }
            Ok(stack)
        })
    }

    /// What a mount needs to know of the layers below. Those that have not changed since this store
    /// found them in order are not read again.
    pub(super) fn below(&self, layer: &Layer) -> Result<Below, Error> {
        self.unless_gone(layer, || {
            self.diff_dir(layer)?;
            let mut below = Below::of(layer);
            let (chain, moment) = (layer.chain.links(), self.moment(layer));
            for (at, &link) in chain.iter().enumerate() {
                let known = moment.and_then(|moment| self.known_lower(chain, at, moment));
                if let Some((id, recorded)) = known {
                    below.recorded &= recorded;
                    below.ids.push(id);
                    continue;
                }
                let id = self.resolve(&layer.id, link)?;
                let seen = moment.and_then(|moment| self.see_lower(&id, moment));
                let (lower, _) = self.lower(layer, at, id)?;
                if let Some(seen) = seen {
                    self.remember_lower(chain, at, seen, &lower);
                }
                below.push(lower);
            }
            Ok(below)
        })
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

    /// Reads and opens the layer at a place of another one's chain.
    fn lower(&self, layer: &Layer, at: usize, id: LayerId) -> Result<(Layer, DirHandle), Error> {
        let link = layer.chain.links()[at];
        // It was the parent's when the layer was made, and no chain ever changes.
        let known = &layer.chain.links()[at + 1..];
        let below = self.layer_above(&id, known).map_err(|error| match error {
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
        if below.chain.links() != known {
            let file = self.layout.layer(&layer.id).dir().join(names::LOWER);
            let problem = format!(
                "it names {} layers below {id}, which itself names {}",
                known.len(),
                below.chain.depth()
            );
            return Err(Error::damaged(&layer.id, file, problem));
        }
        let contents = self.diff_dir(&below)?;
        Ok((below, contents))
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

/// Why a layer has no contents, when that is not the system's fault.
pub(super) fn contents_problem(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => Some("the directory is missing"),
        Some(Errno::NOTDIR | Errno::LOOP) => Some("not a directory"),
        Some(Errno::XDEV) => Some("another file system is mounted there"),
        _ => None,
    }
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
