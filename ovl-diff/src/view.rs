//! The merged view of a stack of layers, read directly from their directories: no mount needed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use ovl_layout::XattrNamespace;

use crate::redirect::{Unresolved, Way, has_digest, unresolved};
use crate::tree::{DirHandle, FileHandle, FileKind, Metadata, Node, TreeBackend};

/// Reads stacks of layers as overlayfs merges them.
///
/// A whiteout hides what is below it, a directory merges with the directories below it up to an
/// opaque one, anything else hides what is below. A directory that was renamed on a mount with
/// `redirect_dir=on` merges with the directories that it came from, and a file of a mount with
/// `metacopy=on` has its data where the layers below have it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    tree: &'a dyn TreeBackend,
    xattrs: XattrNamespace,
}

/// One merged directory: the directories that make it up, uppermost first. Without any it is empty.
#[derive(Clone, Debug, Default)]
pub struct ViewDir {
    parts: Vec<DirHandle>,
    /// Of each part, which layer of the stack it is in, from the top.
    layers: Vec<usize>,
    /// The roots of all layers, where absolute redirects begin.
    roots: Arc<[DirHandle]>,
}

impl ViewDir {
    /// The root of a stack of layers, given their `diff` directories, uppermost first.
    #[must_use]
    pub fn new(parts: Vec<DirHandle>) -> Self {
        Self {
            layers: (0..parts.len()).collect(),
            roots: parts.clone().into(),
            parts,
        }
    }

    /// The directories, uppermost first.
    #[must_use]
    pub fn parts(&self) -> &[DirHandle] {
        &self.parts
    }

    /// Whether nothing makes it up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The parts in the `above` uppermost layers.
    pub(crate) fn parts_above(&self, above: usize) -> &[DirHandle] {
        &self.parts[..self.split(above)]
    }

    /// The same directory without the `above` uppermost layers, in a stack that lacks them.
    pub(crate) fn below(&self, above: usize, stack: &Self) -> Self {
        let at = self.split(above);
        Self {
            parts: self.parts[at..].to_vec(),
            layers: self.layers[at..]
                .iter()
                .map(|layer| layer - above)
                .collect(),
            roots: stack.roots.clone(),
        }
    }

    /// Whether nothing of it is below the `above` uppermost layers.
    pub(crate) fn is_above(&self, above: usize) -> bool {
        self.split(above) == self.parts.len()
    }

    fn split(&self, above: usize) -> usize {
        self.layers.partition_point(|&layer| layer < above)
    }
}

/// What a name stands for in a merged directory.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing: absent, or hidden by a whiteout.
    Nothing,
    /// A directory; the metadata is that of its uppermost part.
    Directory(ViewDir, Metadata),
    /// Anything else, and the directory that holds it.
    Object(DirHandle, Metadata),
}

impl Found {
    /// The metadata of what was found.
    #[must_use]
    pub fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Nothing => None,
            Self::Directory(_, metadata) | Self::Object(_, metadata) => Some(metadata),
        }
    }

    /// What was found, as the subject of a step.
    pub(crate) fn node<'f>(&'f self, name: &'f OsStr) -> Option<Node<'f>> {
        match self {
            Self::Nothing => None,
            // Of its uppermost part.
            Self::Directory(dir, _) => dir.parts.first().map(Node::Dir),
            Self::Object(dir, _) => Some(Node::Entry(dir, name)),
        }
    }

    /// Whether anything was found.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.metadata().is_some()
    }
}

/// What the private attributes of one layer's object say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// A directory hides what is below it.
    pub(crate) opaque: bool,
    /// What is below has another name.
    pub(crate) redirect: Option<Vec<u8>>,
    /// A file has its data in a layer below.
    pub(crate) metacopy: Option<Vec<u8>>,
}

/// What was found, and how.
pub(crate) struct Look {
    pub(crate) found: Found,
    /// The layer of its uppermost part, from the top.
    pub(crate) layer: usize,
    /// The uppermost layer that says that what is below has another name.
    pub(crate) moved: Option<usize>,
}

/// What one layer has on the way to a name.
enum Seen {
    Nothing,
    /// A whiteout, or what cannot be gone through: nothing further down shows.
    End,
    Directory(DirHandle, Metadata),
    Object(DirHandle, OsString, Metadata),
}

impl<'a> View<'a> {
    /// A reader of layers whose private attributes are in `xattrs`.
    #[must_use]
    pub fn new(tree: &'a dyn TreeBackend, xattrs: XattrNamespace) -> Self {
        Self { tree, xattrs }
    }

    /// The backend.
    #[must_use]
    pub fn tree(&self) -> &'a dyn TreeBackend {
        self.tree
    }

    /// The namespace of overlay's private attributes.
    #[must_use]
    pub fn xattrs(&self) -> XattrNamespace {
        self.xattrs
    }

    /// What `name` stands for in `dir`.
    ///
    /// # Errors
    /// Any error of the backend but `ENOENT`; [`io::ErrorKind::Unsupported`] with an [`Unresolved`]
    /// for a directory that merges with others in a way that leads nowhere.
    pub fn lookup(&self, dir: &ViewDir, name: &OsStr) -> io::Result<Found> {
        self.look(dir, name).map(|look| look.found)
    }

    /// The same, and how it was found.
    pub(crate) fn look(&self, dir: &ViewDir, name: &OsStr) -> io::Result<Look> {
        let mut way = Way::new(name);
        let mut top: Option<(usize, Metadata)> = None;
        let mut merged = ViewDir {
            roots: dir.roots.clone(),
            ..ViewDir::default()
        };
        let mut moved = None;
        // The last directory names others, of which none was seen yet.
        let mut dangling = false;
        let mut places = Places::new(dir);
        while let Some((layer, base)) = places.next(&way) {
            let taken = way.redirects();
            match self.walk(base, &mut way, dir.roots.len() - layer)? {
                Seen::Nothing => {}
                Seen::End => break,
                Seen::Object(_, _, metadata) => match top {
                    Some(_) => break,
                    // The way is still the plain name.
                    None => {
                        return Ok(Look {
                            found: Found::Object(base.clone(), metadata),
                            layer,
                            moved,
                        });
                    }
                },
                Seen::Directory(handle, metadata) => {
                    top.get_or_insert((layer, metadata));
                    merged.parts.push(handle);
                    merged.layers.push(layer);
                    dangling = way.leads_elsewhere();
                }
            }
            if way.redirects() != taken {
                moved = moved.or(Some(layer));
            }
            if way.ends() {
                break;
            }
        }
        if dangling {
            return Err(unresolved(self.xattrs.redirect(), Unresolved::Nowhere));
        }
        let (layer, found) = match top {
            None => (0, Found::Nothing),
            Some((layer, metadata)) => (layer, Found::Directory(merged, metadata)),
        };
        Ok(Look {
            found,
            layer,
            moved,
        })
    }

    /// Opens the contents of the regular file that `name` stands for in `dir`, in whatever layer
    /// and under whatever name they are.
    ///
    /// # Errors
    /// Any error of the backend, `ENOENT` too; [`io::ErrorKind::Unsupported`] with an
    /// [`Unresolved`] for a file whose data is not where its attributes say, or is not certain.
    pub fn open_file(&self, dir: &ViewDir, name: &OsStr) -> io::Result<FileHandle> {
        let mut way = Way::new(name);
        // Of the file that shows, once it is known to have its data elsewhere.
        let mut shown: Option<Metadata> = None;
        let mut places = Places::new(dir);
        while let Some((layer, base)) = places.next(&way) {
            let (at, name, metadata) = match self.walk(base, &mut way, dir.roots.len() - layer)? {
                Seen::Nothing if way.ends() => break,
                Seen::Nothing => continue,
                Seen::End | Seen::Directory(..) => break,
                Seen::Object(at, name, metadata) => (at, name, metadata),
            };
            if shown.is_some() && metadata.kind != FileKind::Regular {
                break;
            }
            let file = self.tree.open_file(&at, &name)?;
            let marks = self.marks(Node::File(&file))?;
            let Some(metacopy) = marks.metacopy else {
                return match shown {
                    Some(shown) if shown.size != metadata.size => {
                        let (expected, found) = (shown.size, metadata.size);
                        let reason = Unresolved::Size { expected, found };
                        Err(unresolved(self.xattrs.metacopy(), reason))
                    }
                    _ => Ok(file),
                };
            };
            let digest = has_digest(&metacopy)
                .map_err(|reason| unresolved(self.xattrs.metacopy(), reason))?;
            if digest {
                return Err(unresolved(self.xattrs.metacopy(), Unresolved::Digest));
            }
            shown.get_or_insert(metadata);
            if let Some(redirect) = &marks.redirect {
                way.redirect_last(redirect)
                    .map_err(|reason| unresolved(self.xattrs.redirect(), reason))?;
            }
            // By which of its names it was copied up is not written down.
            if metadata.nlink > 1 && !way.is_absolute() {
                return Err(unresolved(self.xattrs.metacopy(), Unresolved::HardLinked));
            }
        }
        match shown {
            Some(_) => Err(unresolved(self.xattrs.metacopy(), Unresolved::Nowhere)),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// Goes one layer's way to a name, and says where the layers below go on. `left` is how many
    /// layers there are from this one down.
    fn walk(&self, base: &DirHandle, way: &mut Way, left: usize) -> io::Result<Seen> {
        let mut at = base.clone();
        way.start();
        loop {
            let (name, last) = way.step();
            let Some(metadata) = self.entry(&at, &name)? else {
                return Ok(Seen::Nothing);
            };
            if self.is_whiteout(&at, &name, &metadata)? {
                return Ok(Seen::End);
            }
            if !metadata.is_dir() {
                return Ok(match last {
                    true => Seen::Object(at, name, metadata),
                    false => Seen::End,
                });
            }
            at = self.tree.open_dir(&at, &name)?;
            let marks = self.marks(Node::Dir(&at))?;
            if marks.opaque {
                way.end();
            } else if let Some(redirect) = &marks.redirect {
                // Below the lowest layer there is nothing that could be named.
                let taken = match left {
                    0 | 1 => Err(Unresolved::Nowhere),
                    _ => way.redirect(redirect),
                };
                taken.map_err(|reason| unresolved(self.xattrs.redirect(), reason))?;
            }
            if last {
                return Ok(Seen::Directory(at, metadata));
            }
        }
    }

    /// Whether two directories consist of the same parts.
    pub(crate) fn is_same(&self, one: &ViewDir, other: &ViewDir) -> io::Result<bool> {
        if one.parts.len() != other.parts.len() {
            return Ok(false);
        }
        for (one, other) in one.parts.iter().zip(&other.parts) {
            let (one, other) = (
                self.tree.metadata(Node::Dir(one))?,
                self.tree.metadata(Node::Dir(other))?,
            );
            if (one.dev, one.ino) != (other.dev, other.ino) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Goes down from `root` by plain names; links are not followed.
    ///
    /// # Errors
    /// The same as [`lookup`](Self::lookup).
    pub fn descend<'p>(
        &self,
        root: &ViewDir,
        path: impl IntoIterator<Item = &'p OsStr>,
    ) -> io::Result<Option<ViewDir>> {
        let mut dir = root.clone();
        for name in path {
            if dir.is_empty() {
                return Ok(None);
            }
            match self.lookup(&dir, name)? {
                Found::Directory(below, _) => dir = below,
                Found::Nothing | Found::Object(..) => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// The visible names of `dir`, in byte order.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn names(&self, dir: &ViewDir) -> io::Result<BTreeSet<OsString>> {
        let mut visible = BTreeSet::new();
        let mut hidden: BTreeSet<OsString> = BTreeSet::new();
        for part in &dir.parts {
            let mut whiteouts = Vec::new();
            let xattr_whiteouts = self.opaque_value(part)?.as_deref() == Some(b"x");
            for entry in self.tree.read_dir(part)? {
                if hidden.contains(&entry.name) || visible.contains(&entry.name) {
                    continue;
                }
                // The rest needs no second look.
                let suspect = match entry.kind {
                    FileKind::CharDevice => true,
                    FileKind::Regular => xattr_whiteouts,
                    _ => false,
                };
                if suspect {
                    let Some(metadata) = self.entry(part, &entry.name)? else {
                        continue;
                    };
                    if self.is_whiteout(part, &entry.name, &metadata)? {
                        whiteouts.push(entry.name);
                        continue;
                    }
                }
                visible.insert(entry.name);
            }
            hidden.extend(whiteouts);
        }
        Ok(visible)
    }

    /// The metadata of a name in one layer's directory, `None` when it is absent.
    pub(crate) fn entry(&self, dir: &DirHandle, name: &OsStr) -> io::Result<Option<Metadata>> {
        match self.tree.metadata(Node::Entry(dir, name)) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an object of one layer is a whiteout, in either of the kernel's two forms.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn is_whiteout(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        metadata: &Metadata,
    ) -> io::Result<bool> {
        if metadata.is_whiteout_device() {
            return Ok(true);
        }
        if metadata.kind != FileKind::Regular || metadata.size != 0 {
            return Ok(false);
        }
        let attribute = OsStr::new(self.xattrs.whiteout());
        Ok(self
            .tree
            .xattr(Node::Entry(dir, name), attribute)?
            .is_some())
    }

    /// Whether a directory of one layer hides what is below it.
    ///
    /// # Errors
    /// Any error of the backend.
    pub fn is_opaque(&self, dir: &DirHandle) -> io::Result<bool> {
        Ok(self.opaque_value(dir)?.as_deref() == Some(b"y"))
    }

    /// Whether a directory of one layer merges with others than those of its name.
    pub(crate) fn is_renamed(&self, dir: &DirHandle) -> io::Result<bool> {
        let attribute = OsStr::new(self.xattrs.redirect());
        Ok(self.tree.xattr(Node::Dir(dir), attribute)?.is_some())
    }

    /// What the attributes of one layer's object say about it.
    pub(crate) fn marks(&self, node: Node<'_>) -> io::Result<Marks> {
        self.marks_among(node, &self.tree.list_xattrs(node)?)
    }

    /// The same, when the names of its attributes are known.
    pub(crate) fn marks_among(&self, node: Node<'_>, names: &[OsString]) -> io::Result<Marks> {
        let mut marks = Marks::default();
        for name in names {
            if name == self.xattrs.opaque() {
                marks.opaque = self.tree.xattr(node, name)?.as_deref() == Some(b"y");
            } else if name == self.xattrs.redirect() {
                marks.redirect = self.tree.xattr(node, name)?;
            } else if name == self.xattrs.metacopy() {
                marks.metacopy = self.tree.xattr(node, name)?;
            }
        }
        Ok(marks)
    }

    fn opaque_value(&self, dir: &DirHandle) -> io::Result<Option<Vec<u8>>> {
        self.tree
            .xattr(Node::Dir(dir), OsStr::new(self.xattrs.opaque()))
    }
}

/// The directories in which to look for a name, from the top.
struct Places<'d> {
    dir: &'d ViewDir,
    next: usize,
    at_roots: bool,
    layer: usize,
}

impl<'d> Places<'d> {
    fn new(dir: &'d ViewDir) -> Self {
        Self {
            dir,
            next: 0,
            at_roots: false,
            layer: 0,
        }
    }

    fn next(&mut self, way: &Way) -> Option<(usize, &'d DirHandle)> {
        if way.is_absolute() && !self.at_roots {
            // Goes on in the layer below the one that said so.
            (self.at_roots, self.next) = (true, self.layer + 1);
        }
        let place = match self.at_roots {
            true => self.dir.roots.get(self.next).map(|root| (self.next, root)),
            false => {
                let layer = self.dir.layers.get(self.next).copied();
                layer.zip(self.dir.parts.get(self.next))
            }
        };
        self.next += 1;
        self.layer = place.map_or(self.layer, |(layer, _)| layer);
        place
    }
}
