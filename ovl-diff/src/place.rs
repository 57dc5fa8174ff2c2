//! Where apply stands in the tree it builds, and what the layers below have there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use ovl_layout::IdMaps;

use crate::copy::{Private, clear_attributes, copy_attributes, drop_inherited};
use crate::error::{Context as _, TreeError};
use crate::implied::Implied;
use crate::remove::remove_tree;
use crate::tree::{
    DeviceNumber, DirHandle, FileKind, Metadata, Node, NodeKind, Timestamp, TreeBackend,
};
use crate::view::{Found, View, ViewDir};
use crate::xattrs::DEFAULT_ACL;

/// The open directories from the layer's root to the current one.
///
/// A directory that no entry has named yet is made only when something is put into it. The time of
/// a directory is set when it is left, since everything put into it changes the time.
pub(crate) struct Position<'a> {
    view: View<'a>,
    frames: Vec<Frame>,
    path: PathBuf,
    /// Who owns implied directories that stand over nothing, where that is not who makes them.
    owner: Option<(u32, u32)>,
    implied: Implied,
    clamped_times: u64,
}

struct Frame {
    name: OsString,
    upper: Option<DirHandle>,
    below: ViewDir,
    /// The attributes that an implied directory takes from the layers below.
    below_metadata: Option<Metadata>,
    /// What stands in the way of an implied directory: a whiteout of this archive.
    over_whiteout: bool,
    mtime: Option<Timestamp>,
    touched: bool,
    /// What is made in it gets an access control list that nobody asked for.
    inherits: bool,
    /// The owner that a new object in it has, once one was made.
    owner_of_new: Option<(u32, u32)>,
    /// Something other than whiteouts was put into it.
    filled: bool,
}

/// Whether a directory was there before.
pub(crate) enum Entered {
    Existing,
    Created,
}

/// Why a path component cannot be entered.
pub(crate) enum EnterError {
    NotADirectory,
    Tree(TreeError),
}

impl From<TreeError> for EnterError {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl<'a> Position<'a> {
    pub(crate) fn new(
        view: View<'a>,
        upper: &DirHandle,
        lowers: &[DirHandle],
        id_maps: &IdMaps,
    ) -> Result<Self, TreeError> {
        let owner = (id_maps.uids.root(), id_maps.gids.root());
        let path = PathBuf::new();
        let metadata = view
            .tree()
            .metadata(Node::Dir(upper))
            .on("look at", &path)?;
        let root = Frame {
            name: OsString::new(),
            upper: Some(upper.clone()),
            below: ViewDir::new(lowers.to_vec()),
            below_metadata: None,
            over_whiteout: false,
            mtime: Some(metadata.mtime),
            touched: true,
            inherits: has_default_acl(view, upper).on("look at", &path)?,
            owner_of_new: None,
            filled: true,
        };
        Ok(Self {
            view,
            frames: vec![root],
            path,
            owner: (!id_maps.is_identity()).then_some(owner),
            implied: Implied::default(),
            clamped_times: 0,
        })
    }

    pub(crate) fn view(&self) -> View<'a> {
        self.view
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn is_root(&self) -> bool {
        self.frames.len() == 1
    }

    /// Directories whose time the file system could not hold.
    pub(crate) fn clamped_times(&self) -> u64 {
        self.clamped_times
    }

    /// What the layers below have in the current directory.
    pub(crate) fn below(&self) -> &ViewDir {
        &self.frames[self.frames.len() - 1].below
    }

    /// The current directory of the layer, if it has one yet.
    pub(crate) fn upper_if_any(&self) -> Option<DirHandle> {
        self.frames[self.frames.len() - 1].upper.clone()
    }

    /// The current directory's contents are about to change or have changed.
    pub(crate) fn touch(&mut self) {
        let top = self.frames.len() - 1;
        self.frames[top].touched = true;
    }

    /// What is made in the current directory inherits its default access control list, which has
    /// to be taken back.
    pub(crate) fn inherits(&self) -> bool {
        self.frames[self.frames.len() - 1].inherits
    }

    /// The owner that a new object in the current directory has: the first one tells.
    pub(crate) fn owner_of_new(
        &mut self,
        new: Node<'_>,
        path: &Path,
    ) -> Result<(u32, u32), TreeError> {
        let top = self.frames.len() - 1;
        owner_of_new(self.view, &mut self.frames[top], new, path)
    }

    /// The same for the current directory itself, when it is new.
    pub(crate) fn owner_of_new_directory(
        &mut self,
        new: Node<'_>,
    ) -> Result<(u32, u32), TreeError> {
        let parent = self.frames.len().saturating_sub(2);
        owner_of_new(self.view, &mut self.frames[parent], new, &self.path)
    }

    /// The current directory has the attributes of its entry now, and this time in the end.
    pub(crate) fn dressed(
        &mut self,
        mtime: Timestamp,
        acl_may_differ: bool,
    ) -> Result<(), TreeError> {
        let (view, top) = (self.view, self.frames.len() - 1);
        let frame = &mut self.frames[top];
        frame.mtime = Some(mtime);
        frame.touched = true;
        frame.owner_of_new = None;
        if acl_may_differ && let Some(dir) = &frame.upper {
            frame.inherits = has_default_acl(view, dir).on("look at", &self.path)?;
        }
        Ok(())
    }

    /// Leaves what is not on the way to `path` and says how many of its components are entered.
    pub(crate) fn keep_common(&mut self, path: &[&OsStr]) -> Result<usize, TreeError> {
        let entered = self.frames[1..].iter();
        let kept = entered
            .zip(path)
            .take_while(|(frame, name)| frame.name == **name)
            .count();
        self.leave_to(kept + 1)?;
        Ok(kept)
    }

    pub(crate) fn leave_to_root(&mut self) -> Result<(), TreeError> {
        self.leave_to(1)
    }

    pub(crate) fn leave(&mut self) -> Result<(), TreeError> {
        self.leave_to(self.frames.len() - 1)
    }

    /// Leaves the root too: the tree is complete.
    pub(crate) fn leave_all(&mut self) -> Result<(), TreeError> {
        self.leave_to(1)?;
        self.finish(0)
    }

    fn leave_to(&mut self, len: usize) -> Result<(), TreeError> {
        while self.frames.len() > len {
            self.finish(self.frames.len() - 1)?;
            self.frames.pop();
            self.path.pop();
        }
        Ok(())
    }

    fn finish(&mut self, index: usize) -> Result<(), TreeError> {
        let frame = &self.frames[index];
        if let (Some(dir), Some(mtime), true) = (&frame.upper, frame.mtime, frame.touched) {
            let kept = set_time(self.view.tree(), Node::Dir(dir), mtime)
                .on("set the time of", &self.path)?;
            self.clamped_times += u64::from(!kept);
        }
        Ok(())
    }

    /// Goes into the directory `name`, or gives the text of the link that has that name.
    pub(crate) fn enter(&mut self, name: &OsStr) -> Result<Option<OsString>, EnterError> {
        let (view, path) = (self.view, self.path_of(name));
        let mut over_whiteout = false;
        if let Some(dir) = self.upper_if_any()
            && let Some(metadata) = view.entry(&dir, name).on("look at", &path)?
        {
            match metadata.kind {
                FileKind::Directory => {
                    self.push_existing(&dir, name, &metadata)?;
                    return Ok(None);
                }
                FileKind::Symlink => {
                    return Ok(Some(view.tree().read_link(&dir, name).on("read", &path)?));
                }
                _ if metadata.is_whiteout_device() => over_whiteout = true,
                _ => return Err(EnterError::NotADirectory),
            }
        }
        let found = view.lookup(self.below(), name).on("look at", &path)?;
        let (below, below_metadata) = match found {
            // Only what is put here from now on is to be seen.
            _ if over_whiteout => (ViewDir::default(), None),
            Found::Nothing => (ViewDir::default(), None),
            Found::Directory(below, metadata) => (below, Some(metadata)),
            Found::Object(dir, metadata) if metadata.kind == FileKind::Symlink => {
                return Ok(Some(view.tree().read_link(&dir, name).on("read", &path)?));
            }
            Found::Object(..) => return Err(EnterError::NotADirectory),
        };
        let mtime = below_metadata.map(|metadata| metadata.mtime);
        let name = name.to_owned();
        let (upper, touched) = (None, false);
        self.push(Frame {
            name,
            upper,
            below,
            below_metadata,
            over_whiteout,
            mtime,
            touched,
            inherits: false,
            owner_of_new: None,
            filled: false,
        });
        Ok(None)
    }

    /// Goes into the directory `name` that an entry asks for, which replaces anything else there.
    pub(crate) fn enter_directory(&mut self, name: &OsStr) -> Result<Entered, TreeError> {
        let (view, path) = (self.view, self.path_of(name));
        let parent = self.upper()?;
        self.implied.named(&path);
        let mut replaced = false;
        loop {
            match view.tree().create_dir(&parent, name, 0o700) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !replaced => {}
                Err(error) => return Err(TreeError::new("create", &path, error)),
            }
            let metadata = view
                .tree()
                .metadata(Node::Entry(&parent, name))
                .on("look at", &path)?;
            if metadata.is_dir() {
                self.push_existing(&parent, name, &metadata)?;
                return Ok(Entered::Existing);
            }
            view.tree().unlink(&parent, name).on("replace", &path)?;
            replaced = true;
        }
        let upper = view.tree().open_dir(&parent, name).on("open", &path)?;
        if self.inherits() {
            drop_inherited(view.tree(), Node::Dir(&upper)).on("change", &path)?;
        }
        let below = match self.lookup_below(name)? {
            // What was replaced, a whiteout or a file, had hidden the directory below.
            Found::Directory(..) if replaced => {
                make_opaque(view, &upper, &path)?;
                ViewDir::default()
            }
            Found::Directory(below, _) => below,
            Found::Nothing | Found::Object(..) => ViewDir::default(),
        };
        self.touch();
        self.push(Frame {
            name: name.to_owned(),
            upper: Some(upper),
            below,
            below_metadata: None,
            over_whiteout: false,
            mtime: None,
            touched: true,
            inherits: false,
            owner_of_new: None,
            filled: false,
        });
        Ok(Entered::Created)
    }

    /// The current directory of the layer, made now where it was only implied, to put something
    /// into it.
    pub(crate) fn upper(&mut self) -> Result<DirHandle, TreeError> {
        let dir = self.upper_for_whiteout()?;
        if !self.implied.is_empty() {
            for (frame, path) in self.frames.iter_mut().rev().zip(self.path.ancestors()) {
                if frame.filled {
                    break;
                }
                frame.filled = true;
                self.implied.filled(path);
            }
        }
        Ok(dir)
    }

    /// As [`upper`](Self::upper), to put a whiteout into it.
    pub(crate) fn upper_for_whiteout(&mut self) -> Result<DirHandle, TreeError> {
        let first = self.frames.iter().position(|frame| frame.upper.is_none());
        for index in first.unwrap_or(self.frames.len())..self.frames.len() {
            self.make(index)?;
        }
        // `make` has filled every frame.
        self.upper_if_any().ok_or_else(|| {
            TreeError::new(
                "create",
                &self.path,
                io::Error::from(io::ErrorKind::NotFound),
            )
        })
    }

    fn make(&mut self, index: usize) -> Result<(), TreeError> {
        let path: PathBuf = self.frames[1..=index]
            .iter()
            .map(|frame| &*frame.name)
            .collect();
        let (tree, frame) = (self.view.tree(), &self.frames[index]);
        let Some(parent) = self.frames[index - 1].upper.clone() else {
            return Ok(());
        };
        if frame.over_whiteout {
            tree.unlink(&parent, &frame.name).on("replace", &path)?;
        }
        tree.create_dir(&parent, &frame.name, 0o700)
            .on("create", &path)?;
        let dir = tree.open_dir(&parent, &frame.name).on("open", &path)?;
        if self.frames[index - 1].inherits {
            drop_inherited(tree, Node::Dir(&dir)).on("change", &path)?;
        }
        match (&frame.below_metadata, frame.below.parts().first()) {
            (Some(metadata), Some(below)) => {
                let (from, to) = (Node::Dir(below), Node::Dir(&dir));
                copy_attributes(self.view, from, metadata, to, Private::Drop)
                    .on("copy the attributes of", &path)?;
            }
            _ => {
                if let Some((uid, gid)) = self.owner {
                    tree.set_owner(Node::Dir(&dir), uid, gid)
                        .on("set the owner of", &path)?;
                }
                tree.set_mode(Node::Dir(&dir), 0o755)
                    .on("set the mode of", &path)?;
            }
        }
        let hidden = frame.over_whiteout;
        if hidden && matches!(self.lookup_in(index - 1, &path)?, Found::Directory(..)) {
            make_opaque(self.view, &dir, &path)?;
        }
        let inherits = has_default_acl(self.view, &dir).on("look at", &path)?;
        if self.frames[index].below_metadata.is_some() {
            self.implied.made(path);
        }
        let frame = &mut self.frames[index];
        frame.upper = Some(dir);
        frame.touched = true;
        frame.inherits = inherits;
        self.frames[index - 1].touched = true;
        Ok(())
    }

    /// Hides everything below the current directory.
    pub(crate) fn cut(&mut self) -> Result<(), TreeError> {
        let dir = self.upper()?;
        if self.is_root() {
            // The kernel ignores the attribute on a layer's root: the caller cuts the chain.
            purge(self.view, &dir, &self.path)?;
        } else if !self.below().is_empty() {
            make_opaque(self.view, &dir, &self.path)?;
        }
        // The directory itself is still the one below.
        let path = self.path.clone();
        let hidden = self.implied.take_tree(&path);
        self.plain(&dir, &path, hidden.iter().filter(|hidden| **hidden != path))?;
        if hidden.first() == Some(&path) {
            self.implied.made(path.clone());
            self.implied.filled(&path);
        }
        let top = self.frames.len() - 1;
        self.frames[top].below = ViewDir::default();
        self.frames[top].touched = true;
        Ok(())
    }

    /// Hides what the layers below have at the directory `name`, which this layer has too.
    pub(crate) fn hide_below(&mut self, dir: &DirHandle, name: &OsStr) -> Result<(), TreeError> {
        let (view, path) = (self.view, self.path_of(name));
        if self.implied.holds_only_whiteouts(&path) {
            // Nothing of it is left: the order of markers does not matter.
            self.implied.take_tree(&path);
            remove_tree(view.tree(), dir, name)?;
            let kind = NodeKind::CharDevice(DeviceNumber::default());
            view.tree()
                .create_node(dir, name, kind, 0)
                .on("create the whiteout", &path)?;
            self.touch();
            return Ok(());
        }
        let inner = view.tree().open_dir(dir, name).on("open", &path)?;
        make_opaque(view, &inner, &path)?;
        let hidden = self.implied.take_tree(&path);
        self.plain(&inner, &path, hidden.iter())
    }

    /// Gives directories at or below `dir` the attributes of implied ones over nothing, as if the
    /// marker had come first.
    fn plain<'p>(
        &self,
        dir: &DirHandle,
        path: &Path,
        hidden: impl Iterator<Item = &'p PathBuf>,
    ) -> Result<(), TreeError> {
        let tree = self.view.tree();
        'hidden: for hidden in hidden {
            let mut found = dir.clone();
            for name in hidden.strip_prefix(path).into_iter().flatten() {
                found = match tree.open_dir(&found, name) {
                    Ok(inner) => inner,
                    // A later entry has replaced it.
                    Err(error) if is_gone(&error) => continue 'hidden,
                    Err(error) => return Err(TreeError::new("open", hidden, error)),
                };
            }
            let node = Node::Dir(&found);
            clear_attributes(self.view, node).on("remove attributes of", hidden)?;
            let (uid, gid) = self.owner.unwrap_or_default();
            let metadata = tree.metadata(node).on("look at", hidden)?;
            if (metadata.uid, metadata.gid) != (uid, gid) {
                tree.set_owner(node, uid, gid)
                    .on("set the owner of", hidden)?;
            }
            tree.set_mode(node, 0o755).on("set the mode of", hidden)?;
        }
        Ok(())
    }

    fn push_existing(
        &mut self,
        parent: &DirHandle,
        name: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), TreeError> {
        let path = self.path_of(name);
        let upper = self.view.tree().open_dir(parent, name).on("open", &path)?;
        let names = self
            .view
            .tree()
            .list_xattrs(Node::Dir(&upper))
            .on("look at", &path)?;
        let marks = self
            .view
            .marks_among(Node::Dir(&upper), &names)
            .on("look at", &path)?;
        let below = match marks.opaque {
            true => ViewDir::default(),
            false => match self.lookup_below(name)? {
                Found::Directory(below, _) => below,
                Found::Nothing | Found::Object(..) => ViewDir::default(),
            },
        };
        self.push(Frame {
            name: name.to_owned(),
            upper: Some(upper),
            below,
            below_metadata: None,
            over_whiteout: false,
            mtime: Some(metadata.mtime),
            touched: false,
            inherits: names.iter().any(|name| name == DEFAULT_ACL),
            owner_of_new: None,
            filled: false,
        });
        Ok(())
    }

    fn lookup_below(&self, name: &OsStr) -> Result<Found, TreeError> {
        self.view
            .lookup(self.below(), name)
            .on("look at", &self.path_of(name))
    }

    fn lookup_in(&self, index: usize, path: &Path) -> Result<Found, TreeError> {
        let name = path.file_name().unwrap_or_default();
        self.view
            .lookup(&self.frames[index].below, name)
            .on("look at", path)
    }

    fn push(&mut self, frame: Frame) {
        self.path.push(&frame.name);
        self.frames.push(frame);
    }
}

/// Sets a time and says whether the file system can hold it: others it silently replaces by the
/// nearest that it can.
pub(crate) fn set_time(
    tree: &dyn TreeBackend,
    node: Node<'_>,
    mtime: Timestamp,
) -> io::Result<bool> {
    tree.set_mtime(node, mtime)?;
    // All file systems hold these.
    let near = i32::try_from(mtime.secs).is_ok();
    Ok(near || tree.metadata(node)?.mtime == mtime)
}

/// Depends on the caller, and on the directory's setgid bit or the mount options.
fn owner_of_new(
    view: View<'_>,
    parent: &mut Frame,
    new: Node<'_>,
    path: &Path,
) -> Result<(u32, u32), TreeError> {
    if let Some(owner) = parent.owner_of_new {
        return Ok(owner);
    }
    let metadata = view.tree().metadata(new).on("look at", path)?;
    Ok(*parent.owner_of_new.insert((metadata.uid, metadata.gid)))
}

fn has_default_acl(view: View<'_>, dir: &DirHandle) -> io::Result<bool> {
    Ok(view
        .tree()
        .xattr(Node::Dir(dir), OsStr::new(DEFAULT_ACL))?
        .is_some())
}

fn is_gone(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::NotFound || kind == io::ErrorKind::NotADirectory
}

/// Hides everything below `dir`, and drops what only hid parts of it.
pub(crate) fn make_opaque(view: View<'_>, dir: &DirHandle, path: &Path) -> Result<(), TreeError> {
    let attribute = OsStr::new(view.xattrs().opaque());
    view.tree()
        .set_xattr(Node::Dir(dir), attribute, b"y")
        .on("mark as opaque", path)?;
    purge(view, dir, path)
}

/// Drops whiteouts and opaque marks below `dir`: inside an opaque directory they hide nothing, and
/// the kernel lists a whiteout there as a name that cannot be opened.
fn purge(view: View<'_>, dir: &DirHandle, path: &Path) -> Result<(), TreeError> {
    let tree = view.tree();
    let mut pending = vec![(dir.clone(), path.to_owned())];
    while let Some((dir, path)) = pending.pop() {
        let before = tree.metadata(Node::Dir(&dir)).on("look at", &path)?.mtime;
        let mut changed = false;
        for entry in tree.read_dir(&dir).on("list", &path)? {
            let inner_path = path.join(&entry.name);
            if entry.kind == FileKind::Directory {
                let inner = tree.open_dir(&dir, &entry.name).on("open", &inner_path)?;
                if view.is_opaque(&inner).on("look at", &inner_path)? {
                    let attribute = OsStr::new(view.xattrs().opaque());
                    tree.remove_xattr(Node::Dir(&inner), attribute)
                        .on("change", &inner_path)?;
                }
                pending.push((inner, inner_path));
                continue;
            }
            let metadata = tree
                .metadata(Node::Entry(&dir, &entry.name))
                .on("look at", &inner_path)?;
            if view
                .is_whiteout(&dir, &entry.name, &metadata)
                .on("look at", &inner_path)?
            {
                tree.unlink(&dir, &entry.name).on("remove", &inner_path)?;
                changed = true;
            }
        }
        if changed {
            tree.set_mtime(Node::Dir(&dir), before)
                .on("set the time of", &path)?;
        }
    }
    Ok(())
}

/// Takes away whatever has this name.
pub(crate) fn remove_any(view: View<'_>, dir: &DirHandle, name: &OsStr) -> Result<bool, TreeError> {
    let path = Path::new(name);
    match view.entry(dir, name).on("look at", path)? {
        None => Ok(false),
        Some(metadata) if metadata.is_dir() => {
            remove_tree(view.tree(), dir, name)?;
            Ok(true)
        }
        Some(_) => {
            view.tree().unlink(dir, name).on("remove", path)?;
            Ok(true)
        }
    }
}
