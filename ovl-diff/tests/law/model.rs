//! What archives mean, as a pure function, against apply.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ovl_diff::{ApplyError, ApplyOptions, ArchiveError, BadReason, FileKind};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{Verdict, hold_on};
use crate::support::{Entry, Shown, Stack, archive, each};

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

fn path(depths: Vec<usize>) -> impl Strategy<Value = String> + Clone {
    let names = prop::sample::select(depths)
        .prop_flat_map(|depth| vec(prop::sample::select(vec!["a", "b", "c"]), depth));
    names.prop_map(|names| names.join("/"))
}

fn action() -> impl Strategy<Value = Action> {
    let mode = prop::sample::select(vec![0o700, 0o755, 0o711]);
    let target = prop::sample::select(vec!["a", "b/c", "/b", "../a", "c", "."]);
    let path = || path(vec![1, 2, 3]);
    // Where many directories are files, most is refused.
    let leaf = || self::path(vec![1, 2, 2, 3, 3, 3]);
    let dir = prop_oneof![9 => path(), 1 => Just(String::new())];
    prop_oneof![
        4 => (path(), mode.clone()).prop_map(|(path, mode)| Action::Dir(path, mode)),
        6 => (leaf(), mode).prop_map(|(path, mode)| Action::File(path, mode)),
        2 => (leaf(), target).prop_map(|(path, target)| Action::Symlink(path, target)),
        4 => (leaf(), path()).prop_map(|(path, target)| Action::HardLink(path, target)),
        5 => path().prop_map(Action::Whiteout),
        2 => dir.prop_map(Action::Opaque),
    ]
}

/// An action, and perhaps which of the paths that there are it is about.
type Drawn = (Action, Option<Index>);

fn drawn() -> impl Strategy<Value = Drawn> {
    (action(), prop::option::weighted(0.8, any::<Index>()))
}

impl Action {
    /// Whether it can be done to such an object.
    fn can_be_about(&self, kind: FileKind) -> bool {
        match self {
            Self::HardLink(..) => kind != FileKind::Directory,
            Self::Opaque(_) => kind == FileKind::Directory,
            _ => true,
        }
    }

    /// The same about a path that is there, if it is about one.
    fn about(self, path: &Path) -> Self {
        let path = path.to_str().unwrap().to_owned();
        match self {
            Self::HardLink(name, _) => Self::HardLink(name, path),
            Self::Whiteout(_) => Self::Whiteout(path),
            Self::Opaque(_) => Self::Opaque(path),
            other => other,
        }
    }

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
    /// Markers of this archive that hid something.
    hiding: u32,
    /// Hard links of this archive.
    links: u32,
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
            Action::HardLink(path, target) => {
                self.hard_link(Path::new(path), Path::new(target))?;
                self.links += 1;
            }
            Action::Whiteout(path) => {
                let path = self.resolve_parent(Path::new(path))?;
                if self.below.contains_key(&path) {
                    self.hiding += 1;
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
                let shown = self.below.len();
                self.below
                    .retain(|below, _| !below.starts_with(&path) || *below == path);
                self.hiding += u32::from(self.below.len() < shown);
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
        (self.hiding, self.links) = (0, 0);
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

/// What is drawn, with the paths that are there when it is its turn.
fn actions(model: &Model, drawn: &[Drawn]) -> Vec<Action> {
    let mut model = model.clone();
    let mut actions = Vec::new();
    for (number, (action, which)) in drawn.iter().enumerate() {
        let paths = model.below.iter().chain(&model.own);
        let paths = paths.filter(|(_, item)| action.can_be_about(item.kind));
        let paths: Vec<&PathBuf> = paths.map(|(path, _)| path).collect();
        let action = match which {
            Some(which) if !paths.is_empty() => action.clone().about(which.get::<&PathBuf>(&paths)),
            _ => action.clone(),
        };
        let mut after = model.clone();
        if after.apply(number, &action).is_ok() {
            model = after;
        }
        actions.push(action);
    }
    actions
}

/// The first action that the model refuses, or what there is after all.
fn judge(model: &Model, actions: &[Action]) -> Result<Model, (usize, BadReason)> {
    let mut model = model.clone();
    for (number, action) in actions.iter().enumerate() {
        let done = model.apply(number, action);
        done.map_err(|reason| (number, reason))?;
    }
    Ok(model)
}

/// How many archives were as the test needs them.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    refused: u32,
    /// Accepted, with hard links.
    linking: u32,
    /// Accepted, with markers that hide something.
    hiding: u32,
    both: u32,
}

impl Counts {
    fn accepted(&mut self, model: &Model) {
        let (linking, hiding) = (model.links > 0, model.hiding > 0);
        self.linking += u32::from(linking);
        self.hiding += u32::from(hiding);
        self.both += u32::from(linking && hiding);
    }
}

/// Applies an archive as often as it is refused, each time without the action that was, until it is
/// taken and on top of the others.
fn agree(
    stack: &mut Stack<'_>,
    model: &mut Model,
    mut actions: Vec<Action>,
    counts: &mut Counts,
) -> Verdict {
    let options = ApplyOptions::new(stack.scene.xattrs);
    loop {
        let entries = actions.iter().enumerate();
        let entries: Vec<Entry> = entries
            .map(|(number, action)| action.entry(number))
            .collect();
        let applied = stack.try_apply(&archive(&entries), &options);
        match (applied, judge(model, &actions)) {
            (Ok(applied), Ok(after)) => {
                counts.accepted(&after);
                *model = after;
                model.seal();
                prop_assert_eq!(said_by(&applied.shown), said_by_model(&model.below));
                if applied.summary.root_opaque {
                    stack.lowers.clear();
                }
                stack.lowers.insert(0, applied.upper);
                return Ok(());
            }
            (Err(ApplyError::Archive(ArchiveError::Bad(bad))), Err((number, reason))) => {
                // The model has no whiteouts that a link could be made to.
                let whiteout =
                    bad.reason == BadReason::BadHardLink && reason == BadReason::DanglingHardLink;
                prop_assert!(bad.reason == reason || whiteout, "{bad}, model: {reason}");
                prop_assert_eq!(bad.index, number as u64, "{}", bad);
                counts.refused += 1;
                stack.forget_others();
                actions.remove(number);
            }
            (Ok(_), Err((number, reason))) => {
                prop_assert!(false, "{:?} accepted in spite of {reason}", actions[number]);
            }
            (Err(error), verdict) => {
                prop_assert!(false, "{error:?}, model: {:?}", verdict.err());
            }
        }
    }
}

#[test]
fn archives_mean_what_the_model_says() {
    let input = vec(vec(drawn(), 0..16), 1..5);
    each(|scene| {
        let counted = Cell::new(Counts::default());
        hold_on(scene, &input, &|scene, archives| {
            let mut counts = counted.get();
            let (mut model, mut stack) = (Model::default(), scene.stack(&[]));
            for drawn in archives {
                let actions = actions(&model, drawn);
                agree(&mut stack, &mut model, actions, &mut counts)?;
            }
            counted.set(counts);
            Ok(())
        });
        let counts = counted.get();

        // Several times as many come by chance.
        let few = scene.cases / 8;
        let minimal = [
            counts.refused,
            counts.linking,
            counts.hiding,
            4 * counts.both,
        ];
        let is_enough = minimal.iter().all(|&count| count >= few);
        assert!(is_enough, "on {}: {counts:?}", scene.backend);
    });
}
