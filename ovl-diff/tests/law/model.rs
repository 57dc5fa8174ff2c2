//! What archives mean, as a pure function, against apply.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ovl_diff::{ApplyError, ApplyOptions, ArchiveError, BadReason, FileKind};
use proptest::collection::vec;
use proptest::prelude::*;

use super::hold;
use crate::support::{Entry, Shown, archive};

/// One entry of a random archive. Paths are short, so that they meet.
#[derive(Clone, Debug)]
enum Action {
    Dir(String, u32),
    File(String, u32),
    Symlink(String, &'static str),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn action() -> impl Strategy<Value = Action> {
    let mode = prop::sample::select(vec![0o700, 0o755, 0o711]);
    let target = prop::sample::select(vec!["a", "b/c", "/b", "../a", "c", "."]);
    let dir = prop_oneof![9 => path(), 1 => Just(String::new())];
    prop_oneof![
        4 => (path(), mode.clone()).prop_map(|(path, mode)| Action::Dir(path, mode)),
        6 => (path(), mode).prop_map(|(path, mode)| Action::File(path, mode)),
        1 => (path(), target).prop_map(|(path, target)| Action::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Action::HardLink(path, target)),
        3 => path().prop_map(Action::Whiteout),
        2 => dir.prop_map(Action::Opaque),
    ]
}

impl Action {
    fn entry(&self, number: usize) -> Entry {
        let marker = |dir: &Path, name: &str| Entry::marker(dir.join(name));
        match self {
            Self::Dir(path, mode) => Entry::dir(path).mode(*mode),
            Self::File(path, mode) => Entry::file(path, [number as u8; 3]).mode(*mode),
            Self::Symlink(path, target) => Entry::symlink(path, target),
            Self::HardLink(path, target) => Entry::hard_link(path, target),
            Self::Whiteout(path) => {
                let (parent, name) = split(Path::new(path));
                marker(&parent, &format!(".wh.{name}"))
            }
            Self::Opaque(path) => marker(Path::new(path), ".wh..wh..opq"),
        }
    }
}

fn split(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    (path.parent().unwrap().to_owned(), name)
}

#[derive(Clone, Debug, PartialEq)]
struct Item {
    kind: FileKind,
    mode: u32,
    contents: Vec<u8>,
    inode: u64,
    /// No entry has named it, and it is like the directory below.
    implied: Option<Implied>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Implied {
    ForWhiteouts,
    Filled,
}

type Tree = BTreeMap<PathBuf, Item>;

/// Layers as an image's author thinks of them.
#[derive(Clone, Default)]
struct Model {
    /// What the layers below show, less what this archive hides.
    below: Tree,
    /// What this archive brings.
    own: Tree,
    inodes: u64,
}

impl Model {
    fn get(&self, path: &Path) -> Option<&Item> {
        self.own.get(path).or_else(|| self.below.get(path))
    }

    fn item(&mut self, kind: FileKind, mode: u32, contents: &[u8]) -> Item {
        self.inodes += 1;
        Item {
            kind,
            mode,
            contents: contents.to_vec(),
            inode: self.inodes,
            implied: None,
        }
    }

    fn apply(&mut self, number: usize, action: &Action) -> Result<(), BadReason> {
        match action {
            Action::Dir(path, mode) => {
                let path = self.resolve_parent(Path::new(path))?;
                self.imply(path.parent().unwrap(), Implied::Filled);
                if self
                    .get(&path)
                    .is_some_and(|item| item.kind != FileKind::Directory)
                {
                    self.own.remove(&path);
                    self.below.remove(&path);
                }
                let item = self.item(FileKind::Directory, *mode, b"");
                self.own.insert(path, item);
            }
            Action::File(path, mode) => {
                let item = self.item(FileKind::Regular, *mode, &[number as u8; 3]);
                self.put(Path::new(path), item)?;
            }
            Action::Symlink(path, target) => {
                let item = self.item(FileKind::Symlink, 0o777, target.as_bytes());
                self.put(Path::new(path), item)?;
            }
            Action::HardLink(path, target) => self.hard_link(Path::new(path), Path::new(target))?,
            Action::Whiteout(path) => {
                let path = self.resolve_parent(Path::new(path))?;
                if self.below.contains_key(&path) {
                    self.imply(path.parent().unwrap(), Implied::ForWhiteouts);
                    self.below.retain(|below, _| !below.starts_with(&path));
                    let own = self.own.get(&path);
                    if own.is_some_and(|item| item.implied == Some(Implied::ForWhiteouts)) {
                        self.own.retain(|own, _| !own.starts_with(&path));
                    }
                    self.forget_below(|own| own.starts_with(&path));
                }
            }
            Action::Opaque(path) => {
                let path = self.resolve(Path::new(path))?;
                self.imply(&path, Implied::Filled);
                self.below
                    .retain(|below, _| !below.starts_with(&path) || *below == path);
                self.forget_below(|own| own.starts_with(&path) && *own != path);
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, item: Item) -> Result<(), BadReason> {
        let path = self.resolve_parent(path)?;
        self.imply(path.parent().unwrap(), Implied::Filled);
        self.own.retain(|own, _| !own.starts_with(&path));
        self.below.retain(|below, _| !below.starts_with(&path));
        self.own.insert(path, item);
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), BadReason> {
        if path == target {
            return Err(BadReason::DanglingHardLink);
        }
        let target = self.resolve_parent(target)?;
        let mut item = self
            .get(&target)
            .cloned()
            .ok_or(BadReason::DanglingHardLink)?;
        if item.kind == FileKind::Directory {
            return Err(BadReason::BadHardLink);
        }
        if !self.own.contains_key(&target) {
            self.imply(target.parent().unwrap(), Implied::Filled);
            // A copy, which is nobody else's hard link.
            item = self.item(item.kind, item.mode, &item.contents);
            self.own.insert(target.clone(), item.clone());
        }
        let path = self.resolve_parent(path)?;
        if path == target {
            return Ok(());
        }
        if target.starts_with(&path) {
            return Err(BadReason::DanglingHardLink);
        }
        self.put(&path, item)
    }

    /// Directories that nothing names are as they are below.
    fn imply(&mut self, path: &Path, implied: Implied) {
        for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            if !self.own.contains_key(dir) {
                let below = self.below.get(dir).map(|item| item.mode);
                let mut item = self.item(FileKind::Directory, below.unwrap_or(0o755), b"");
                item.implied = below.map(|_| implied);
                self.own.insert(dir.to_owned(), item);
            }
            let item = self.own.get_mut(dir).unwrap();
            if item.implied.is_some() && implied == Implied::Filled {
                item.implied = Some(Implied::Filled);
            }
        }
    }

    /// What was implied over directories that are hidden now is over nothing.
    fn forget_below(&mut self, hidden: impl Fn(&PathBuf) -> bool) {
        let own = self.own.iter_mut().filter(|(path, _)| hidden(path));
        for (_, item) in own.filter(|(_, item)| item.implied.is_some()) {
            (item.mode, item.implied) = (0o755, None);
        }
    }

    fn resolve_parent(&self, path: &Path) -> Result<PathBuf, BadReason> {
        let (parent, name) = split(path);
        Ok(self.resolve(&parent)?.join(name))
    }

    fn resolve(&self, path: &Path) -> Result<PathBuf, BadReason> {
        let mut at = PathBuf::new();
        let mut pending: Vec<String> = Vec::new();
        let push = |pending: &mut Vec<String>, text: &str| {
            let parts = text
                .split('/')
                .rev()
                .filter(|part| !matches!(*part, "" | "."));
            pending.extend(parts.map(String::from));
        };
        push(&mut pending, path.to_str().unwrap());
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                if !at.pop() {
                    return Err(BadReason::LinkEscape);
                }
                continue;
            }
            at.push(name);
            match self.get(&at) {
                None => {}
                Some(item) if item.kind == FileKind::Directory => {}
                Some(item) if item.kind == FileKind::Symlink => {
                    links += 1;
                    if links > 40 {
                        return Err(BadReason::TooManyLinks);
                    }
                    at.pop();
                    let text = std::str::from_utf8(&item.contents).unwrap();
                    if text.starts_with('/') {
                        at.clear();
                    }
                    push(&mut pending, text);
                }
                Some(_) => return Err(BadReason::NotADirectory),
            }
        }
        Ok(at)
    }

    /// The next archive comes on top.
    fn seal(&mut self) {
        self.own.values_mut().for_each(|item| item.implied = None);
        self.below.append(&mut self.own);
    }
}

/// What both can say: kind, mode, contents, and which hard link is the first.
type Said = BTreeMap<PathBuf, (FileKind, u32, Vec<u8>, PathBuf)>;

fn said_by_model(tree: &Tree) -> Said {
    let mut first = HashMap::new();
    let say = |(path, item): (&PathBuf, &Item)| {
        let first = first
            .entry(item.inode)
            .or_insert_with(|| path.clone())
            .clone();
        (
            path.clone(),
            (item.kind, item.mode, item.contents.clone(), first),
        )
    };
    tree.iter().map(say).collect()
}

fn said_by(shown: &Shown) -> Said {
    let mut first: HashMap<&PathBuf, &PathBuf> = HashMap::new();
    let mut said = Said::new();
    for (path, seen) in shown.0.iter().skip(1) {
        let first = (*first.entry(&seen.linked_to).or_insert(path)).clone();
        said.insert(
            path.clone(),
            (seen.kind, seen.mode, seen.contents.clone(), first),
        );
    }
    said
}

#[test]
fn archives_mean_what_the_model_says() {
    hold(vec(vec(action(), 0..12), 1..5), |scene, archives| {
        let mut model = Model::default();
        let mut stack = scene.stack(&[]);
        for actions in archives {
            let before = model.clone();
            let mut verdict = Ok(());
            for (number, action) in actions.iter().enumerate() {
                verdict = verdict.and_then(|()| model.apply(number, action));
            }
            let entries: Vec<Entry> = actions
                .iter()
                .enumerate()
                .map(|(number, action)| action.entry(number))
                .collect();
            let options = ApplyOptions::new(scene.xattrs);
            match (stack.try_apply(&archive(&entries), &options), verdict) {
                (Ok(applied), Ok(())) => {
                    model.seal();
                    prop_assert_eq!(said_by(&applied.shown), said_by_model(&model.below));
                    if applied.summary.root_opaque {
                        stack.lowers.clear();
                    }
                    stack.lowers.insert(0, applied.upper);
                }
                (Err(ApplyError::Archive(ArchiveError::Bad(bad))), Err(reason)) => {
                    // The model has no whiteouts that a link could be made to.
                    let whiteout = bad.reason == BadReason::BadHardLink
                        && reason == BadReason::DanglingHardLink;
                    prop_assert!(bad.reason == reason || whiteout, "{bad}, model: {reason}");
                    model = before;
                }
                (Ok(_), Err(reason)) => prop_assert!(false, "accepted in spite of {reason}"),
                (Err(error), verdict) => prop_assert!(false, "{error:?}, model: {verdict:?}"),
            }
        }
        Ok(())
    });
}
