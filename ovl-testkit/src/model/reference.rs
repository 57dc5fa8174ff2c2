//! What the store must hold and answer: the one definition of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ovl_driver::ProcessId;
use rustix::io::Errno;
use tar::EntryType;

use super::script::{Archive, Edit, Put};
use crate::archive::ArchiveBuilder;

/// As many layers below one as the home takes.
pub(super) const MAX_DEPTH: usize = 3;
/// What a [`Edit::Fill`] writes.
pub(super) const FILL: u64 = 2;
/// Where symbolic links lead.
pub(super) const TARGET: &str = "nowhere";

/// The name of an [`Error`](ovl_driver::Error)'s variant.
pub(super) type Refusal = &'static str;

/// All layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) layers: BTreeMap<String, Layer>,
    /// Whether limits are kept.
    pub(super) enforced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) parent: Option<String>,
    pub(super) sealed: bool,
    /// What it shows.
    pub(super) tree: Tree,
    pub(super) mount: Option<Mount>,
    /// The limit of its project in MiB, where it has one.
    pub(super) project: Option<Option<u64>>,
}

/// Who holds the layer's mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) noexec: bool,
    pub(super) read_only: bool,
    pub(super) persistent: u64,
    pub(super) processes: BTreeMap<(u32, u64), u64>,
}

/// A tree by path; its root is the empty path.
pub(super) type Tree = BTreeMap<PathBuf, Object>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) colour: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Dir,
    File(Vec<u8>),
    Symlink,
}

impl Object {
    pub(super) fn new(body: Body, mode: u32) -> Self {
        Self {
            body,
            mode,
            uid: 0,
            colour: None,
        }
    }
}

fn key(process: ProcessId) -> (u32, u64) {
    (process.pid, process.start_time)
}

impl Mount {
    fn add(&mut self, process: Option<ProcessId>) {
        match process {
            None => self.persistent += 1,
            Some(process) => *self.processes.entry(key(process)).or_default() += 1,
        }
    }

    fn release(&mut self, process: ProcessId) -> Result<(), Refusal> {
        if let Some(count) = self.processes.get_mut(&key(process)) {
            *count -= 1;
            self.processes.retain(|_, count| *count > 0);
            return Ok(());
        }
        self.persistent = self.persistent.checked_sub(1).ok_or("HeldByProcess")?;
        Ok(())
    }

    fn is_held(&self) -> bool {
        self.persistent > 0 || !self.processes.is_empty()
    }
}

impl Layer {
    fn new(parent: Option<&str>, tree: Tree) -> Self {
        Self {
            parent: parent.map(str::to_owned),
            sealed: false,
            tree,
            mount: None,
            project: None,
        }
    }
}

/// What a layer without a parent shows first.
fn empty() -> Tree {
    Tree::from([(PathBuf::new(), Object::new(Body::Dir, 0o755))])
}

impl Model {
    fn layer(&mut self, id: &str) -> Result<&mut Layer, Refusal> {
        self.layers.get_mut(id).ok_or("LayerNotFound")
    }

    pub(super) fn depth(&self, id: &str) -> usize {
        let parent = self.layers.get(id).and_then(|layer| layer.parent.as_ref());
        parent.map_or(0, |parent| 1 + self.depth(parent))
    }

    pub(super) fn has_children(&self, id: &str) -> bool {
        let mut all = self.layers.values();
        all.any(|layer| layer.parent.as_deref() == Some(id))
    }

    /// What a new layer on this parent shows.
    fn below(&self, parent: Option<&str>) -> Tree {
        let parent = parent.and_then(|parent| self.layers.get(parent));
        parent.map_or_else(empty, |parent| parent.tree.clone())
    }

    fn begin(&mut self, id: &str, parent: Option<&str>) -> Result<Layer, Refusal> {
        if self.layers.contains_key(id) {
            return Err("AlreadyExists");
        }
        if let Some(parent) = parent {
            let layer = self.layer(parent).map_err(|_| "ParentNotFound")?;
            if layer.mount.as_ref().is_some_and(|mount| !mount.read_only) {
                return Err("Mounted");
            }
            if self.depth(parent) == MAX_DEPTH {
                return Err("Depth");
            }
        }
        Ok(Layer::new(parent, self.below(parent)))
    }

    fn publish(&mut self, id: &str, layer: Layer) {
        if let Some(parent) = &layer.parent
            && let Some(parent) = self.layers.get_mut(parent)
        {
            parent.sealed = true;
        }
        self.layers.insert(id.to_owned(), layer);
    }

    pub(super) fn create(&mut self, id: &str, parent: Option<&str>) -> Result<(), Refusal> {
        let layer = self.begin(id, parent)?;
        self.publish(id, layer);
        Ok(())
    }

    pub(super) fn create_writable(
        &mut self,
        id: &str,
        parent: Option<&str>,
        limit: Option<u64>,
    ) -> Result<(), Refusal> {
        let mut layer = self.begin(id, parent)?;
        if limit.is_some() && !self.enforced {
            return Err("Unsupported");
        }
        layer.project = self.enforced.then_some(limit);
        self.publish(id, layer);
        Ok(())
    }

    /// The archive, written so that it fits on what it comes onto, and what that shows then.
    pub(super) fn archive(&self, onto: Option<&str>, archive: &Archive) -> (Vec<u8>, Tree) {
        built(self.below(onto), archive)
    }

    pub(super) fn import(
        &mut self,
        id: &str,
        parent: Option<&str>,
        archive: &Archive,
    ) -> Result<(), Refusal> {
        let mut layer = self.begin(id, parent)?;
        if archive.cut {
            return Err("Apply");
        }
        (_, layer.tree) = self.archive(parent, archive);
        layer.sealed = true;
        self.publish(id, layer);
        Ok(())
    }

    pub(super) fn apply(&mut self, id: &str, archive: &Archive) -> Result<(), Refusal> {
        let layer = self.layer(id)?;
        if layer.mount.is_some() {
            return Err("Mounted");
        }
        if layer.sealed {
            return Err("Sealed");
        }
        if archive.cut {
            return Err("Apply");
        }
        layer.tree = built(layer.tree.clone(), archive).1;
        Ok(())
    }

    /// The layer of this id shows what another one does.
    pub(super) fn copy(
        &mut self,
        from: &str,
        parent: Option<&str>,
        to: &str,
    ) -> Result<(), Refusal> {
        let mut layer = self.begin(to, parent)?;
        layer.tree = self.below(Some(from));
        layer.sealed = true;
        self.publish(to, layer);
        Ok(())
    }

    pub(super) fn mount(
        &mut self,
        id: &str,
        process: Option<ProcessId>,
        noexec: bool,
    ) -> Result<(), Refusal> {
        let layer = self.layer(id)?;
        let mount = layer.mount.get_or_insert(Mount {
            noexec,
            read_only: layer.sealed,
            persistent: 0,
            processes: BTreeMap::new(),
        });
        if mount.noexec != noexec {
            return Err("MountedDifferently");
        }
        mount.add(process);
        Ok(())
    }

    pub(super) fn unmount(&mut self, id: &str, process: ProcessId) -> Result<(), Refusal> {
        let layer = self.layer(id)?;
        let mount = layer.mount.as_mut().ok_or("NotMounted")?;
        mount.release(process)?;
        if !mount.is_held() {
            layer.mount = None;
        }
        Ok(())
    }

    pub(super) fn unmount_all(&mut self) {
        for layer in self.layers.values_mut() {
            layer.mount = None;
        }
    }

    pub(super) fn set_limit(&mut self, id: &str, limit: Option<u64>) -> Result<(), Refusal> {
        let enforced = self.enforced;
        let layer = self.layer(id)?;
        if !enforced {
            return Err("Unsupported");
        }
        match (layer.project, limit) {
            (Some(_), _) => {}
            (None, None) => return Ok(()),
            (None, Some(_)) if layer.sealed => return Err("NotWritable"),
            (None, Some(_)) if layer.mount.is_some() => return Err("Mounted"),
            (None, Some(_)) => {}
        }
        layer.project = Some(limit);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str, force: bool) -> Result<(), Refusal> {
        self.layer(id)?;
        if self.has_children(id) {
            return Err("HasChildren");
        }
        if self.layer(id)?.mount.is_some() && !force {
            return Err("Mounted");
        }
        self.layers.remove(id);
        Ok(())
    }

    /// The process is gone, and its holds with it.
    pub(super) fn end(&mut self, process: ProcessId) {
        for layer in self.layers.values_mut() {
            if let Some(mount) = &mut layer.mount {
                mount.processes.remove(&key(process));
                if !mount.is_held() {
                    layer.mount = None;
                }
            }
        }
    }

    /// Whether one layer is as it is here or there, and no less: what an operation that was cut off
    /// leaves.
    pub(super) fn is_between(&self, before: &Self, after: &Self) -> Result<(), String> {
        let ids = before.layers.keys().chain(after.layers.keys());
        for id in ids.chain(self.layers.keys()) {
            let (was, becomes) = (before.layers.get(id), after.layers.get(id));
            let Some(is) = self.layers.get(id) else {
                if was.is_some() && becomes.is_some() {
                    return Err(format!("{id} is gone"));
                }
                continue;
            };
            let either = [was, becomes];
            let known =
                |test: &dyn Fn(&Layer) -> bool| either.iter().flatten().any(|one| test(one));
            // An open layer that is being read from is sealed before its child is seen.
            let fits = known(&|one| one.parent == is.parent)
                && known(&|one| one.tree == is.tree)
                && known(&|one| one.sealed == is.sealed)
                && known(&|one| one.project == is.project)
                && (known(&|one| one.mount == is.mount)
                    || (is.mount.is_none() && becomes.is_none_or(|one| one.mount.is_none())));
            if !fits {
                return Err(format!(
                    "{id} is {is:#?}\nand was {was:#?}\nor becomes {becomes:#?}"
                ));
            }
            if let Some(parent) = &is.parent
                && !self.layers.get(parent).is_some_and(|parent| parent.sealed)
            {
                return Err(format!("{id} stands on {parent}, which is not sealed"));
            }
        }
        Ok(())
    }

    /// What the model itself must keep to.
    pub(super) fn check(&self) -> Result<(), String> {
        for (id, layer) in &self.layers {
            let parent = layer.parent.as_ref().map(|parent| self.layers.get(parent));
            match parent {
                Some(None) => return Err(format!("the model has {id} without its parent")),
                Some(Some(parent)) if !parent.sealed => {
                    return Err(format!("the model has {id} on an open layer"));
                }
                _ => {}
            }
            if !layer.tree.contains_key(Path::new("")) {
                return Err(format!("the model has {id} without a root"));
            }
        }
        Ok(())
    }
}

fn is_dir(tree: &Tree, path: &Path) -> bool {
    tree.get(path)
        .is_some_and(|object| object.body == Body::Dir)
}

pub(super) fn has_parent(tree: &Tree, path: &Path) -> bool {
    path.parent().is_some_and(|parent| is_dir(tree, parent))
}

fn remove_all(tree: &mut Tree, path: &Path) {
    tree.retain(|one, _| !one.starts_with(path));
}

fn is_empty(tree: &Tree, path: &Path) -> bool {
    !tree.keys().any(|one| one != path && one.starts_with(path))
}

fn built(mut tree: Tree, archive: &Archive) -> (Vec<u8>, Tree) {
    let below = tree.clone();
    let mut builder = ArchiveBuilder::new();
    for path in &archive.hide {
        if tree.contains_key(Path::new(path)) {
            let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
            builder = builder.file(&format!("{dir}/.wh.{name}"), b"");
            remove_all(&mut tree, Path::new(path));
        }
    }
    for path in &archive.opaque {
        if has_parent(&tree, Path::new(path)) {
            builder = builder
                .dir(path, 0o711)
                .file(&format!("{path}/.wh..wh..opq"), b"");
            remove_all(&mut tree, Path::new(path));
            tree.insert(path.into(), Object::new(Body::Dir, 0o711));
        }
    }
    for put in &archive.put {
        let (path, object) = match *put {
            Put::Dir { path, mode } => (path, Object::new(Body::Dir, mode)),
            Put::File { path, contents } => (path, Object::new(Body::File(vec![contents]), 0o644)),
            Put::Symlink { path } => (path, Object::new(Body::Symlink, 0o777)),
        };
        if !has_parent(&tree, Path::new(path)) {
            continue;
        }
        builder = match &object.body {
            Body::Dir => builder.dir(path, object.mode),
            Body::File(contents) => builder.file(path, contents),
            Body::Symlink => builder.symlink(path, TARGET),
        };
        if object.body != Body::Dir || !is_dir(&tree, Path::new(path)) {
            remove_all(&mut tree, Path::new(path));
        }
        tree.insert(path.into(), object);
    }
    if archive.cut {
        builder = builder.entry("cut", EntryType::Regular, 0o644, "", &[7; 2000]);
        let mut bytes = builder.finish();
        bytes.truncate(bytes.len() - 2048);
        return (bytes, below);
    }
    (builder.finish(), tree)
}

/// What a change of a mounted tree must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done, and this is the tree then.
    Done(Tree),
    /// As `Done`, or `EXDEV` and nothing: overlayfs does not rename directories with parts below.
    DoneOrCrosses(Tree),
    /// One of these, and the tree is as it was.
    Refused(&'static [Errno]),
    /// Some error, and the tree is as it was.
    Fails,
    /// Not to be tried.
    Leave,
}

/// What becomes of a writable tree whose project has this limit.
pub(super) fn edited(mut tree: Tree, edit: &Edit, limit: Option<u64>) -> Answer {
    use Answer::{Done, Fails, Leave, Refused};
    let (Edit::MakeDir { path, .. }
    | Edit::MakeFile { path, .. }
    | Edit::MakeSymlink { path }
    | Edit::Rename { from: path, .. }
    | Edit::Delete { path }
    | Edit::DeleteAll { path }
    | Edit::SetMode { path, .. }
    | Edit::SetOwner { path, .. }
    | Edit::SetColour { path, .. }
    | Edit::Fill { path }) = edit;
    let path = Path::new(path);
    if !path.as_os_str().is_empty() && !has_parent(&tree, path) {
        return Fails;
    }
    if matches!(edit, Edit::Rename { to, .. } if !has_parent(&tree, Path::new(to))) {
        return Fails;
    }
    let makes = match edit {
        Edit::MakeDir { mode, .. } => Some(Object::new(Body::Dir, *mode)),
        Edit::MakeFile { contents, .. } => Some(Object::new(Body::File(vec![*contents]), 0o644)),
        Edit::MakeSymlink { .. } => Some(Object::new(Body::Symlink, 0o777)),
        _ => None,
    };
    let present = tree.get(path).cloned();
    if let Some(object) = makes {
        if present.is_some() {
            return Refused(&[Errno::EXIST]);
        }
        tree.insert(path.to_owned(), object);
        return Done(tree);
    }
    if let Edit::Fill { .. } = edit {
        return match (present, limit) {
            (Some(_), _) => Refused(&[Errno::EXIST]),
            (None, Some(limit)) if limit <= FILL => Refused(&[Errno::NOSPC, Errno::DQUOT]),
            _ => Done(tree),
        };
    }
    let Some(mut object) = present else {
        return Refused(&[Errno::NOENT]);
    };
    match edit {
        Edit::Rename { to, .. } => return renamed(tree, path, Path::new(to)),
        Edit::Delete { .. } if !is_empty(&tree, path) => return Refused(&[Errno::NOTEMPTY]),
        Edit::DeleteAll { .. } if object.body != Body::Dir => return Refused(&[Errno::NOTDIR]),
        Edit::Delete { .. } | Edit::DeleteAll { .. } => {
            remove_all(&mut tree, path);
            return Done(tree);
        }
        Edit::SetMode { .. } | Edit::SetColour { .. } if object.body == Body::Symlink => {
            return Leave;
        }
        Edit::SetMode { mode, .. } => object.mode = *mode,
        Edit::SetColour { value, .. } => object.colour = Some(*value),
        Edit::SetOwner { uid, .. } => object.uid = *uid,
        _ => return Leave,
    }
    tree.insert(path.to_owned(), object);
    Done(tree)
}

fn renamed(tree: Tree, from: &Path, to: &Path) -> Answer {
    use Answer::{Done, DoneOrCrosses, Refused};
    if from == to {
        return Done(tree);
    }
    if to.starts_with(from) {
        return Refused(&[Errno::INVAL]);
    }
    if from.starts_with(to) {
        return Refused(&[Errno::NOTEMPTY]);
    }
    let moves_dir = is_dir(&tree, from);
    if let Some(there) = tree.get(to) {
        match (moves_dir, there.body == Body::Dir) {
            (true, false) => return Refused(&[Errno::NOTDIR]),
            (false, true) => return Refused(&[Errno::ISDIR]),
            (true, true) if !is_empty(&tree, to) => {
                // As POSIX has it, either: XFS says that it exists.
                return Refused(&[Errno::NOTEMPTY, Errno::EXIST, Errno::XDEV]);
            }
            _ => {}
        }
    }
    let mut result = Tree::new();
    for (path, object) in tree {
        if let Ok(rest) = path.strip_prefix(from) {
            let moved = match rest.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(rest),
            };
            result.insert(moved, object);
        } else if path != to {
            result.insert(path, object);
        }
    }
    match moves_dir {
        true => DoneOrCrosses(result),
        false => Done(result),
    }
}
