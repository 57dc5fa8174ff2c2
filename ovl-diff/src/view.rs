//! The merged view of a stack of layers, read directly from their directories: no mount needed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;

use ovl_layout::XattrNamespace;

use crate::tree::{DirHandle, FileKind, Metadata, Node, TreeBackend};

/// Reads stacks of layers as overlayfs merges them.
///
/// A whiteout hides what is below it, a directory merges with the directories below it up to an
/// opaque one, anything else hides what is below.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    tree: &'a dyn TreeBackend,
    xattrs: XattrNamespace,
}

/// One merged directory: the directories that make it up, uppermost first. Without any it is empty.
#[derive(Clone, Debug, Default)]
pub struct ViewDir {
    parts: Vec<DirHandle>,
}

impl ViewDir {
    /// The root of a stack of layers, given their `diff` directories, uppermost first.
    #[must_use]
    pub fn new(parts: Vec<DirHandle>) -> Self {
        Self { parts }
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
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// A directory hides what is below it.
    pub(crate) opaque: bool,
    /// This attribute says that contents are in another place of the layers below.
    pub(crate) elsewhere: Option<&'static str>,
}

/// The error for an object whose contents are not where its name is.
pub(crate) fn elsewhere(attribute: &'static str) -> io::Error {
    let message = format!(
        "the attribute {attribute} says that its contents are elsewhere; \
         mount layers with redirect_dir=nofollow and metacopy=off"
    );
    io::Error::new(io::ErrorKind::Unsupported, message)
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
    /// Any error of the backend but `ENOENT`; [`io::ErrorKind::Unsupported`] for a directory whose
    /// contents are elsewhere, since it was renamed on a mount with `redirect_dir=on`.
    pub fn lookup(&self, dir: &ViewDir, name: &OsStr) -> io::Result<Found> {
        let mut merged: Option<Metadata> = None;
        let mut parts = Vec::new();
        for part in &dir.parts {
            let Some(metadata) = self.entry(part, name)? else {
                continue;
            };
            if self.is_whiteout(part, name, &metadata)? {
                break;
            }
            if !metadata.is_dir() {
                if merged.is_none() {
                    return Ok(Found::Object(part.clone(), metadata));
                }
                break;
            }
            let handle = self.tree.open_dir(part, name)?;
            let marks = self.marks(Node::Dir(&handle))?;
            if let Some(attribute) = marks.elsewhere {
                return Err(elsewhere(attribute));
            }
            merged.get_or_insert(metadata);
            parts.push(handle);
            if marks.opaque {
                break;
            }
        }
        Ok(merged.map_or(Found::Nothing, |metadata| {
            Found::Directory(ViewDir { parts }, metadata)
        }))
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
                marks.elsewhere = Some(self.xattrs.redirect());
            } else if name == self.xattrs.metacopy() {
                marks.elsewhere = Some(self.xattrs.metacopy());
            }
        }
        Ok(marks)
    }

    fn opaque_value(&self, dir: &DirHandle) -> io::Result<Option<Vec<u8>>> {
        self.tree
            .xattr(Node::Dir(dir), OsStr::new(self.xattrs.opaque()))
    }
}
