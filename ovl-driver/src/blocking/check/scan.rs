//! Everything that a home's small files say, read once and believed nowhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use ovl_diff::{DirHandle, FileKind, Node, TreeBackend};
use ovl_layout::{LayerId, LayerRecord, LinkId, LowerChain, RecordError, names, parse_link_target};

use rustix::io::Errno;

use crate::blocking::Overlay2;
use crate::blocking::layer::{contents_problem, with_source};
use crate::error::Error;
use crate::files;
use crate::system::LockKind;

/// A file's meaning, or why it has none.
#[derive(Clone, Debug)]
pub(super) enum Part<T> {
    Missing,
    Bad(String),
    /// Only a newer program can read it.
    Newer(String),
    Good(T),
}

impl<T> Part<T> {
    pub(super) fn good(&self) -> Option<&T> {
        match self {
            Self::Good(value) => Some(value),
            _ => None,
        }
    }

    /// What is wrong, in words.
    pub(super) fn problem(&self) -> String {
        match self {
            Self::Missing => "the file is missing".to_owned(),
            Self::Bad(problem) | Self::Newer(problem) => problem.clone(),
            Self::Good(_) => String::new(),
        }
    }
}

/// A layer's directory. It is not kept open: a home may have more layers than a process can have
/// descriptors.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) names: BTreeSet<OsString>,
    pub(super) link: Part<LinkId>,
    pub(super) lower: Part<LowerChain>,
    /// Whether `lower` ends with a newline.
    pub(super) newline: bool,
    pub(super) record: Part<LayerRecord>,
    pub(super) committed: bool,
    /// Why the contents cannot be opened.
    pub(super) contents: Option<String>,
    /// Nothing is in the contents, or they are missing. Only known of a directory that is no layer.
    pub(super) empty: bool,
    pub(super) volatile: bool,
    /// Of the directory and the small files.
    pub(super) writable: Vec<(&'static str, u32)>,
    /// Others may enter the layer's directory.
    pub(super) enterable: bool,
}

impl Seen {
    /// Our record, unless another program has written the layer anew.
    pub(super) fn valid_record(&self) -> Option<&LayerRecord> {
        let record = self.record.good()?;
        match &self.link {
            Part::Good(link) if *link != record.link => None,
            _ => Some(record),
        }
    }

    /// Nothing of what makes a directory a layer.
    pub(super) fn is_half(&self) -> bool {
        matches!(self.link, Part::Missing) && matches!(self.record, Part::Missing)
    }

    /// Nothing that no layer store knows.
    pub(super) fn holds_only_a_layer(&self) -> bool {
        self.names.iter().all(|name| files::is_of_layer(name))
    }

    /// What was begun as a layer and has nothing that anybody could miss. With contents it may be
    /// one that has lost its small files, and people must decide.
    pub(super) fn is_worthless(&self) -> bool {
        let lost = [names::LOWER, names::COMMITTED];
        let lost = lost
            .iter()
            .any(|name| self.names.contains(OsStr::new(name)));
        self.is_half() && self.holds_only_a_layer() && !lost && self.empty
    }
}

/// A whole home.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) layers: BTreeMap<LayerId, Seen>,
    /// The entries of `l/`.
    pub(super) links: BTreeMap<OsString, Part<LayerId>>,
    /// Names in the home that are no layers, except those that belong there.
    pub(super) others: BTreeMap<OsString, FileKind>,
    /// Links of layers that are being built right now.
    pub(super) in_flight: HashSet<OsString>,
    /// Staging directories without an owner.
    pub(super) staging: BTreeSet<OsString>,
    pub(super) trash: BTreeSet<OsString>,
    pub(super) holds: BTreeSet<OsString>,
    pub(super) own_others: BTreeSet<OsString>,
    /// The layers whose `link` files have a link.
    owners: HashMap<LinkId, Vec<LayerId>>,
    /// The links under `l/` that lead to a layer.
    leading: HashMap<LayerId, Vec<LinkId>>,
    /// The links that a `lower` file names.
    pub(super) chained: HashSet<LinkId>,
    /// The layers to which their parents lead back.
    pub(super) circular: HashSet<LayerId>,
}

impl Scan {
    fn index(&mut self) {
        for (id, seen) in &self.layers {
            if let Some(link) = seen.link.good() {
                self.owners.entry(*link).or_default().push(id.clone());
            }
            let chain = seen.lower.good().into_iter();
            self.chained
                .extend(chain.flat_map(LowerChain::links).copied());
        }
        for (name, target) in &self.links {
            if let (Some(id), Ok(link)) =
                (target.good(), LinkId::parse_file(name.as_encoded_bytes()))
            {
                self.leading.entry(id.clone()).or_default().push(link);
            }
        }
        self.circular = self.find_circular();
    }

    fn find_circular(&self) -> HashSet<LayerId> {
        let (mut circular, mut seen) = (HashSet::new(), HashSet::new());
        for first in self.layers.keys() {
            let (mut way, mut next) = (Vec::new(), Some(first));
            while let Some(id) = next
                && seen.insert(id)
            {
                way.push(id);
                next = self.parent(id);
            }
            // It ends at none, at one of an earlier way, or at one of its own.
            if let Some(at) = way.iter().position(|id| Some(*id) == next) {
                circular.extend(way[at..].iter().map(|id| (*id).clone()));
            }
        }
        circular
    }

    /// Where a circle of parents can be opened: a layer that its child in the circle hides, and that
    /// child.
    pub(super) fn opening(&self, id: &LayerId) -> Option<(&LayerId, &LayerId)> {
        let (mut child, mut seen) = (self.layers.get_key_value(id)?.0, HashSet::new());
        while seen.insert(child) {
            let parent = self.parent(child)?;
            let record = self.layers[child].valid_record();
            if record.is_some_and(|record| record.root_opaque) {
                return Some((parent, child));
            }
            child = parent;
        }
        None
    }

    /// The layer whose `link` file has this link.
    pub(super) fn owner(&self, link: LinkId) -> Option<&LayerId> {
        let owners = self.owners.get(&link)?;
        // Of two, the one that the link leads to.
        let led = self.links.get(OsStr::new(link.as_str()));
        let led = led.and_then(Part::good);
        led.filter(|id| owners.contains(id)).or(owners.first())
    }

    /// The links under `l/` that lead to a layer.
    pub(super) fn leading_to(&self, id: &LayerId) -> &[LinkId] {
        self.leading.get(id).map_or(&[], Vec::as_slice)
    }

    /// The chain that our record and the parent's chain give: none where the record contradicts itself.
    pub(super) fn recorded_chain(&self, id: &LayerId) -> Option<LowerChain> {
        let record = self.layers.get(id)?.valid_record()?;
        if record.parent.as_ref() == Some(id) {
            return None;
        }
        if record.depth == 0 {
            return Some(LowerChain::default());
        }
        let parent = self.layers.get(record.parent.as_ref()?)?;
        let (link, below) = (parent.link.good()?, self.trusted_chain(parent)?);
        let chain = LowerChain::for_child(*link, &below, record.depth).ok()?;
        (chain.depth() == record.depth).then_some(chain)
    }

    /// The chain of a layer whose files agree.
    pub(super) fn trusted_chain(&self, seen: &Seen) -> Option<LowerChain> {
        let chain = match &seen.lower {
            Part::Missing => LowerChain::default(),
            Part::Good(chain) => chain.clone(),
            Part::Bad(_) | Part::Newer(_) => return None,
        };
        let recorded = seen.valid_record().map(|record| record.depth);
        recorded
            .is_none_or(|depth| depth == chain.depth())
            .then_some(chain)
    }

    /// What a layer stands on, by its record or its chain.
    pub(super) fn parent(&self, id: &LayerId) -> Option<&LayerId> {
        let seen = self.layers.get(id)?;
        if let Some(record) = seen.valid_record() {
            return record.parent.as_ref();
        }
        let link = seen.lower.good()?.parent()?;
        self.owner(link)
    }
}

impl Overlay2 {
    /// Reads the home. In this order: what is published while this runs is seen at the latest
    /// where it ends up.
    pub(super) fn scan_home(&self) -> Result<Scan, Error> {
        let tree = self.kernel.tree();
        let mut scan = Scan::default();
        let listed = |dir: &DirHandle, path: &Path| {
            tree.read_dir(dir)
                .map_err(|error| Error::io("list", path, error))
        };
        for entry in listed(&self.links, &self.layout.link_dir())? {
            let target = match tree.read_link(&self.links, &entry.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => Part::Bad("not a symbolic link".to_owned()),
                Ok(target) => match parse_link_target(target.as_encoded_bytes()) {
                    Ok(id) => Part::Good(id),
                    Err(error) => Part::Bad(with_source(&error)),
                },
            };
            scan.links.insert(entry.name, target);
        }
        if let Some(own) = self.own_dirs_if_any()? {
            let path = self.layout.store_dir();
            for entry in listed(&own.staging, &path.join(names::STAGING))? {
                let kind = LockKind::Shared;
                let system = self.kernel.system();
                match system.lock(&own.staging, Some(&entry.name), kind, false) {
                    Ok(None) => {
                        scan.in_flight.insert(entry.name);
                    }
                    Ok(Some(_)) => {
                        scan.staging.insert(entry.name);
                    }
                    // Published or dropped meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Only directories are made there.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                        scan.staging.insert(entry.name);
                    }
                    Err(error) => {
                        let path = path.join(names::STAGING).join(&entry.name);
                        return Err(Error::io("lock", path, error));
                    }
                }
            }
            let names = |dir, name| {
                let entries = listed(dir, &path.join(name))?.into_iter();
                Ok::<_, Error>(entries.map(|entry| entry.name).collect())
            };
            scan.trash = names(&own.trash, names::TRASH)?;
            scan.holds = names(&own.holds, names::HOLDS)?;
            let store = tree
                .open_dir(&self.home, names::STORE_DIR.as_ref())
                .map_err(|error| Error::io("open", &path, error))?;
            scan.own_others = names(&store, "")?;
            let known = [
                names::SETTINGS,
                names::STAGING,
                names::TRASH,
                names::HOLDS,
                names::CHILDREN,
            ];
            for name in known {
                scan.own_others.remove(OsStr::new(name));
            }
        }
        for entry in listed(&self.home, self.home())? {
            let id = LayerId::from_file_name(&entry.name);
            let belongs = [
                names::LINK_DIR,
                names::BACKING_DEVICE,
                names::STORE_DIR,
                "lost+found",
            ];
            match id {
                Ok(id) if entry.kind == FileKind::Directory => {
                    if let Some(seen) = self.look_at(&id)? {
                        scan.layers.insert(id, seen);
                    }
                }
                _ if belongs.iter().any(|name| entry.name == *name) => {}
                _ => {
                    scan.others.insert(entry.name, entry.kind);
                }
            }
        }
        scan.index();
        Ok(scan)
    }

    /// Reads one layer's directory; `None` when it has gone meanwhile.
    fn look_at(&self, id: &LayerId) -> Result<Option<Seen>, Error> {
        let (tree, path) = (self.kernel.tree(), self.layout.layer(id).dir().to_owned());
        loop {
            let dir = files::open_dir(tree, &self.home, id.as_str());
            let Some(dir) = dir.map_err(|error| Error::io("read", &path, error))? else {
                return Ok(None);
            };
            let seen = self.look_into(id, &dir);
            // Else what is missing was taken away with the whole layer.
            if self.is_named(id, &dir)? {
                return seen.map(Some);
            }
        }
    }

    pub(super) fn look_into(&self, id: &LayerId, dir: &DirHandle) -> Result<Seen, Error> {
        let tree = self.kernel.tree();
        let path = self.layout.layer(id).dir().to_owned();
        let failed = |error| Error::io("read", &path, error);
        let entries = tree.read_dir(dir).map_err(failed)?;
        let names: BTreeSet<OsString> = entries.into_iter().map(|entry| entry.name).collect();
        let diff = tree.open_dir(dir, OsStr::new(names::DIFF));
        let contents = match &diff {
            Ok(_) => None,
            Err(error) => contents_problem(error).map(str::to_owned),
        };
        let diff = match diff {
            Err(error) if contents.is_none() => {
                return Err(Error::io("open", path.join(names::DIFF), error));
            }
            diff => diff,
        };
        let mut seen = Seen {
            link: part(tree, dir, (&path, names::LINK), |bytes| {
                LinkId::parse_file(bytes).map_err(|error| Part::Bad(with_source(&error)))
            })?,
            lower: part(tree, dir, (&path, names::LOWER), |bytes| {
                LowerChain::parse_file(bytes).map_err(|error| Part::Bad(with_source(&error)))
            })?,
            record: part(tree, dir, (&path, names::RECORD), |bytes| {
                LayerRecord::parse_file(bytes).map_err(|error| match error {
                    RecordError::Newer { .. } => Part::Newer(error.to_string()),
                    error => Part::Bad(error.to_string()),
                })
            })?,
            newline: false,
            committed: names.contains(OsStr::new(names::COMMITTED)),
            contents,
            empty: false,
            volatile: match self.is_volatile(dir) {
                // Not known: the kernel closes its directory to all but root. A mount does not take
                // that for no.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
                result => {
                    result.map_err(|error| Error::io("read", path.join(names::WORK), error))?
                }
            },
            writable: Vec::new(),
            enterable: false,
            names,
        };
        if seen.is_half() {
            seen.empty = match &diff {
                Ok(diff) => tree.read_dir(diff).is_ok_and(|list| list.is_empty()),
                // What is mounted there is not nothing.
                Err(error) => error.kind() != io::ErrorKind::CrossesDevices,
            };
        }
        if seen.lower.good().is_some() {
            let bytes = files::read(tree, dir, names::LOWER).map_err(failed)?;
            seen.newline = bytes.is_some_and(|bytes| bytes.ends_with(b"\n"));
        }
        for name in ["", names::LINK, names::LOWER, names::RECORD] {
            let node = match name {
                "" => Node::Dir(dir),
                name => Node::Entry(dir, OsStr::new(name)),
            };
            match tree.metadata(node) {
                Ok(found) if found.kind != FileKind::Symlink => {
                    if found.mode & 0o022 != 0 {
                        seen.writable.push((name, found.mode & 0o7777));
                    }
                    seen.enterable |= found.mode & 0o001 != 0;
                }
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// Reads a small file. Only what the system refuses is an error: what the file is or holds is not.
fn part<T>(
    tree: &dyn TreeBackend,
    dir: &DirHandle,
    (path, name): (&Path, &str),
    parse: impl FnOnce(&[u8]) -> Result<T, Part<T>>,
) -> Result<Part<T>, Error> {
    Ok(match files::read(tree, dir, name) {
        Ok(None) => Part::Missing,
        Ok(Some(bytes)) if bytes.is_empty() => Part::Bad("the file is empty".to_owned()),
        Ok(Some(bytes)) => parse(&bytes).map_or_else(|bad| bad, Part::Good),
        Err(error) if is_of_the_file(&error) => Part::Bad(error.to_string()),
        Err(error) => return Err(Error::io("read", path.join(name), error)),
    })
}

/// Whether an error says something of the file, and not of the process that reads it.
fn is_of_the_file(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::InvalidInput, io::ErrorKind::InvalidData];
    kinds.contains(&error.kind())
        || matches!(
            Errno::from_io_error(error),
            Some(Errno::LOOP | Errno::IO | Errno::ISDIR | Errno::NXIO)
        )
}
