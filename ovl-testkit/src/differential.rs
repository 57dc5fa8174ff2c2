//! The same script on two kernels: whatever one answers to any step, and whatever trees it leaves,
//! the other must, too.
//!
//! What no two kernels share is not in a [`Transcript`]: inode numbers, times that nobody has set,
//! link counts of directories, more of a whiteout than that it is one, and what overlayfs notes for
//! itself. The scripts do nothing that the mock refuses on purpose where Linux does not.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{
    DeviceNumber, DirHandle, FileKind, Node, NodeKind, RenameMode, Timestamp, TreeBackend,
    remove_tree,
};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Durability, Error, ImportOptions, LayerSummary, MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::{OverlayOptions, UnmountMode};
use rustix::io::Errno;
use tar::EntryType;

use crate::archive::ArchiveBuilder;
use crate::conformance::Subject;
use crate::edit::Edit;
use crate::random::Random;
use crate::snapshot::{Object, snapshot_at};

const LAYERS: [&str; 5] = ["a", "b", "c", "d", "e"];
const NAMES: [&str; 5] = ["x", "y", "z", "w", "x"];
const MODES: [u32; 7] = [0o755, 0o700, 0o644, 0o4755, 0o2755, 0o1777, 0];
const STEPS: usize = 40;
/// Times that scripts set; all others are those of the run.
const SET: i64 = 1_000_000_000;

/// `VFS_CAP_REVISION_2`, with `CAP_NET_RAW` permitted: changes of contents and owner take it away.
const CAPABILITIES: [u8; 20] = [0, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What a kernel has answered to a script, line by line, and the trees that were left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript(Vec<String>);

impl Transcript {
    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// The first line that is another in `other`, with those before it; `None` when there is none.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        let len = self.0.len().max(other.0.len());
        let at = (0..len).find(|at| self.0.get(*at) != other.0.get(*at))?;
        let before = self.0[..at].iter().filter(|line| !line.starts_with("  "));
        let mut words: String = before.map(|line| format!("{line}\n")).collect();
        let line = |all: &[String]| all.get(at).map_or("(its end)", String::as_str).to_owned();
        let _ = write!(words, "here: {}\nthere: {}", line(&self.0), line(&other.0));
        Some(words)
    }
}

/// Which steps were done and which were refused, by the word that they begin with: the same on any
/// two kernels, and worth nothing if nearly all are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Those that were done.
    pub done: BTreeMap<String, usize>,
    /// The others.
    pub refused: BTreeMap<String, usize>,
}

impl Counts {
    /// Counts the steps of a transcript.
    pub fn add(&mut self, transcript: &Transcript) {
        for line in &transcript.0 {
            let step = LAYERS.iter().find_map(|name| {
                let rest = line.strip_prefix(name)?;
                rest.strip_prefix(": ")
            });
            let step = step.unwrap_or(line);
            let Some((words, answer)) = step.rsplit_once(": ") else {
                continue;
            };
            let Some(word) = words.split(' ').next().filter(|word| !word.is_empty()) else {
                continue;
            };
            let by_word = match answer.starts_with("ok") || answer == "None" {
                true => &mut self.done,
                false => &mut self.refused,
            };
            *by_word.entry(word.to_owned()).or_default() += 1;
        }
    }

    /// What too little was done of by so many scripts, about a third of what they do by chance.
    #[must_use]
    pub fn missing(&self, scripts: usize) -> Vec<String> {
        let done = |word: &str| self.done.get(word).copied().unwrap_or(0);
        // For each ten scripts.
        let least = [
            ("first", 4),
            ("import", 2),
            ("apply", 3),
            ("mount", 10),
            ("unmount", 3),
            ("remove", 2),
            ("rename", 12),
            ("exchange", 10),
            ("link", 2),
            ("unlink", 4),
            ("rmdir", 1),
            ("rm", 2),
            ("write", 5),
        ];
        let few = least
            .into_iter()
            .filter(|(word, least)| done(word) * 10 < least * scripts);
        few.map(|(word, least)| {
            let least = least * scripts / 10;
            format!("{} of {least} times {word}", done(word))
        })
        .collect()
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Runs the script of this number in a home of its own, and takes that away again.
///
/// # Errors
/// When the home cannot be made or taken away, which is no part of the script.
pub fn run(subject: &Subject, number: u64) -> io::Result<Transcript> {
    let home = subject.dir().join(format!("script-{number}"));
    let options = OpenOptions::new().create(true).durability(Durability::None);
    let store = Overlay2::open(subject.kernel().clone(), &home, options);
    let store = store.map_err(io::Error::other)?;
    let tree = subject.kernel().tree();
    let settings: &[&str] = match number % 4 {
        0 => &["redirect_dir=on"],
        1 => &["redirect_dir=on", "metacopy=on"],
        _ => &[],
    };
    let options = OverlayOptions::default();
    let options = settings.iter().try_fold(options, |all, one| all.with(one));
    let mut script = Script {
        options: options.map_err(io::Error::other)?,
        subject,
        tree,
        store: &store,
        random: Random::new(number),
        lines: Vec::new(),
        known: BTreeMap::new(),
    };
    script.begin();
    for _ in 0..STEPS {
        script.step();
    }
    script.end();
    let lines = script.lines;
    store
        .unmount_all(UnmountMode::Lazy)
        .map_err(io::Error::other)?;
    drop(store);
    let name = home.file_name().unwrap_or_default();
    remove_tree(tree, &tree.open_root(subject.dir())?, name).map_err(|error| error.source)?;
    Ok(Transcript(lines))
}

struct Script<'s> {
    subject: &'s Subject,
    tree: &'s dyn TreeBackend,
    store: &'s Overlay2,
    random: Random,
    lines: Vec<String>,
    /// Of all its mounts: how a directory is read that has redirects which are not followed depends
    /// on the order of its entries.
    options: OverlayOptions,
    /// Where something may be that a layer shows, and whether it is a directory.
    known: BTreeMap<&'static str, BTreeMap<PathBuf, bool>>,
}

fn id(name: &str) -> LayerId {
    name.parse().expect("scripts have valid ids")
}

/// The error's variant, and the error number at its end.
fn refusal(error: &Error) -> String {
    let words = format!("{error:?}");
    let end = words.find(|c: char| !c.is_alphanumeric());
    let mut refusal = words[..end.unwrap_or(words.len())].to_owned();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(source) = next {
        if let Some(number) = source.downcast_ref().and_then(io::Error::raw_os_error) {
            let _ = write!(refusal, " {number}");
        }
        next = source.source();
    }
    refusal
}

fn answer(result: io::Result<String>) -> String {
    match result {
        Ok(words) => words,
        Err(error) => match Errno::from_io_error(&error) {
            Some(errno) => format!("errno {}", errno.raw_os_error()),
            None => format!("{:?}", error.kind()),
        },
    }
}

impl Script<'_> {
    fn say(&mut self, words: impl Into<String>) {
        self.lines.push(words.into());
    }

    /// A layer that fits, but now and then any.
    fn layer(&mut self, fits: impl Fn(&LayerSummary) -> bool) -> &'static str {
        let layers = self.store.layers().map_or(Vec::new(), |list| list.layers);
        let one = |name: &str| layers.iter().find(|layer| layer.id.as_str() == name);
        self.layer_named(|name| one(name).is_some_and(&fits))
    }

    fn layer_named(&mut self, fits: impl Fn(&str) -> bool) -> &'static str {
        let fitting: Vec<_> = LAYERS.into_iter().filter(|name| fits(name)).collect();
        match self.random.maybe_of(&fitting).copied() {
            Some(fitting) if !self.random.one_in(4) => fitting,
            _ => LAYERS[self.random.below(LAYERS.len())],
        }
    }

    /// A name for a new layer.
    fn free(&mut self) -> &'static str {
        let store = self.store;
        self.layer_named(|name| !store.contains(&id(name)).unwrap_or(true))
    }

    /// A stack of three, mounted: else a script would do little for long.
    fn begin(&mut self) {
        let (archive, listed) = self.archive("b", false);
        let layer =
            |name: &str, parent: Option<&str>| CreateLayer::new(id(name)).parent(parent.map(id));
        let made = self
            .store
            .create(&layer("a", None))
            .and_then(|()| self.store.mount(&id("a"), &MountRequest::new()));
        self.say(format!(
            "mount a: {:?}",
            made.as_ref().map_err(refusal).err()
        ));
        if let Ok(root) = made {
            for _ in 0..12 {
                let (words, result) = self.call("a", &root);
                self.say(format!("a: {words}: {}", answer(result)));
            }
        }
        let (below, options) = (layer("b", Some("a")), ImportOptions::new());
        let made = self
            .store
            .unmount(&id("a"), UnmountMode::Now)
            .and_then(|_| self.store.import(&below, &*archive, options, &mut |_| {}))
            .and_then(|_| self.store.create(&layer("c", Some("b"))));
        self.inherit("c", Some(if made.is_ok() { "b" } else { "a" }));
        self.say(format!(
            "first import, {listed}: {:?}",
            made.map_err(|error| refusal(&error)).err()
        ));
        let _ = self.store.create(&layer("c", Some("a")));
        self.mount("c");
    }

    fn mount(&mut self, name: &str) {
        let nodev = self.random.one_in(8);
        let mut options = self.options;
        options.nodev = nodev;
        let request = MountRequest::new().options(options);
        let mounted = self.store.mount(&id(name), &request);
        let mounted = mounted.map_err(|error| refusal(&error)).err();
        self.say(format!("mount {name}, {nodev}: {mounted:?}"));
    }

    fn step(&mut self) {
        if self.random.one_in(3) {
            self.operate();
        } else {
            self.change();
        }
    }

    /// An operation of the store.
    fn operate(&mut self) {
        let kind = self.random.below(28);
        let name = match kind {
            0..8 => self.free(),
            8..11 => self.open_and_unmounted(),
            14..17 => self.layer(|layer| layer.mounted),
            17..21 => self.removable(),
            _ => self.layer(|_| true),
        };
        let other = self.layer(|layer| layer.sealed || !layer.mounted);
        let parent = (!self.random.one_in(4)).then_some(other);
        let made = CreateLayer::new(id(name)).parent(parent.map(id));
        let on = format!("{name} on {parent:?}");
        let (words, result) = match kind {
            0..3 => (
                format!("create {on}"),
                self.store.create(&made).map(|()| String::new()),
            ),
            3..5 => {
                let created = self.store.create_writable(&made);
                (
                    format!("create writable {on}"),
                    created.map(|()| String::new()),
                )
            }
            5..8 => {
                let (archive, listed) = self.archive(name, true);
                let options = ImportOptions::new();
                let applied = self.store.import(&made, &*archive, options, &mut |_| {});
                let size = applied.map(|applied| format!("{}", applied.size.apparent));
                (format!("import {on}: {listed}"), size)
            }
            8..11 => {
                let (archive, listed) = self.archive(name, true);
                let options = ImportOptions::new();
                let applied = self.store.apply(&id(name), &*archive, options, &mut |_| {});
                let size = applied.map(|applied| format!("{}", applied.size.apparent));
                (format!("apply {name}: {listed}"), size)
            }
            11..14 => return self.mount(name),
            14..17 => {
                let left = self.store.unmount(&id(name), UnmountMode::Now);
                (
                    format!("unmount {name}"),
                    left.map(|left| format!("{left} left")),
                )
            }
            17..21 => {
                let force = self.random.one_in(3);
                let removed = self.store.remove(&id(name), force);
                (
                    format!("remove {name}, {force}"),
                    removed.map(|()| String::new()),
                )
            }
            21..25 => {
                let base = match self.random.below(3) {
                    0 => Base::Parent,
                    1 => Base::Empty,
                    _ => Base::Layer(id(other)),
                };
                (
                    format!("compare {name} with {base:?}"),
                    self.compare(name, &base),
                )
            }
            25 | 26 => {
                let changed = self.store.diff(&id(name), &Base::Parent, io::sink());
                (format!("diff {name}"), changed.map(|_| String::new()))
            }
            _ => {
                let reclaimed = self.store.reclaim();
                (
                    "reclaim".to_owned(),
                    reclaimed.map(|reclaimed| reclaimed.layers.to_string()),
                )
            }
        };
        if kind < 8 && result.is_ok() {
            self.inherit(name, parent);
        }
        let words = match result {
            Ok(said) => format!("{words}: ok {said}"),
            Err(error) => format!("{words}: {}", refusal(&error)),
        };
        self.say(words);
        if self.random.one_in(12) {
            self.dump();
        }
    }

    fn compare(&self, name: &str, base: &Base) -> Result<String, Error> {
        let changes = self.store.changes(&id(name), base)?;
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let size = self.store.size(&id(name), base)?;
        Ok(format!(
            "{changes:?}, {} bytes, {} inodes",
            size.apparent, size.inodes
        ))
    }

    /// A layer that archives can be applied to: one is unmounted where there is none.
    fn open_and_unmounted(&mut self) -> &'static str {
        let layers = self.store.layers().map_or(Vec::new(), |list| list.layers);
        let mut open = layers.iter().filter(|layer| !layer.sealed);
        if let Some(layer) = open.clone().next()
            && open.all(|layer| layer.mounted)
        {
            let left = self.store.unmount(&layer.id, UnmountMode::Now);
            let left = left.map_or_else(|error| refusal(&error), |left| left.to_string());
            self.say(format!("unmount {} to apply: {left}", layer.id));
        }
        self.layer(|layer| !layer.sealed && !layer.mounted)
    }

    /// A layer that nothing stands on.
    fn removable(&mut self) -> &'static str {
        let layers = self.store.layers().map_or(Vec::new(), |list| list.layers);
        let parents = layers.iter().filter_map(|layer| layer.parent.as_ref());
        self.layer(|layer| !layer.mounted && !parents.clone().any(|parent| *parent == layer.id))
    }

    /// A new layer shows what is below, and its archive.
    fn inherit(&mut self, name: &'static str, parent: Option<&'static str>) {
        let below = parent.and_then(|parent| self.known.get(parent));
        let below = below.cloned().unwrap_or_default();
        self.known.entry(name).or_default().extend(below);
    }

    fn known(&mut self, layer: &str, fits: impl Fn(bool) -> bool) -> Option<PathBuf> {
        let known = self.known.get(layer).into_iter().flatten();
        let fitting: Vec<_> = known.filter(|(_, is_dir)| fits(**is_dir)).collect();
        let chosen = self.random.maybe_of(&fitting);
        chosen.map(|(path, _)| (*path).clone())
    }

    /// A path: half the time of something that may be there, or that goes into that.
    fn path(&mut self, layer: &str) -> PathBuf {
        let name = NAMES[self.random.below(NAMES.len())];
        match self.random.below(8) {
            0..2 => self.known(layer, |_| true).unwrap_or(name.into()),
            2..4 => {
                let dir = self.known(layer, |is_dir| is_dir).unwrap_or_default();
                match dir.iter().count() {
                    0..3 => dir.join(name),
                    _ => dir,
                }
            }
            4 => {
                let other = NAMES[self.random.below(NAMES.len())];
                let third = NAMES[self.random.below(NAMES.len())];
                let path = Path::new(name).join(other);
                match self.random.one_in(3) {
                    true => path.join(third),
                    false => path,
                }
            }
            _ => name.into(),
        }
    }

    /// A path of something, most of the time.
    fn there(&mut self, layer: &str) -> PathBuf {
        match self.known(layer, |_| true) {
            Some(known) if !self.random.one_in(4) => known,
            _ => self.path(layer),
        }
    }

    fn note(&mut self, layer: &'static str, path: PathBuf, is_dir: bool) {
        if !is_dir {
            self.forget(layer, &path);
        }
        self.known.entry(layer).or_default().insert(path, is_dir);
    }

    /// Forgets a path and those below, and gives what they were relative to it.
    fn forget(&mut self, layer: &'static str, path: &Path) -> BTreeMap<PathBuf, bool> {
        let known = self.known.entry(layer).or_default();
        let all = std::mem::take(known).into_iter();
        let (gone, left): (BTreeMap<_, _>, _) = all.partition(|(known, _)| known.starts_with(path));
        *known = left;
        let relative = |(gone, is_dir): (PathBuf, bool)| {
            let rest = gone.strip_prefix(path).unwrap_or(&gone);
            (rest.to_owned(), is_dir)
        };
        gone.into_iter().map(relative).collect()
    }

    /// An archive for a layer, and what is in it. Links may lead nowhere.
    fn archive(&mut self, layer: &'static str, links: bool) -> (Vec<u8>, String) {
        let (mut archive, mut listed) = (ArchiveBuilder::new(), String::new());
        let mut files: Vec<String> = Vec::new();
        for _ in 0..1 + self.random.below(6) {
            let path = self.path(layer);
            let name = path.to_string_lossy().into_owned();
            let dir = path.parent().unwrap_or(Path::new("")).join("");
            let leaf = path.file_name().unwrap_or_default().to_string_lossy();
            let mut kind = self.random.below(10);
            let mut target = self.random.maybe_of(&files).cloned();
            if self.random.one_in(8) {
                target = Some("x".to_owned());
            }
            if !links && (5..7).contains(&kind) || kind == 6 && target.is_none() {
                kind = 3;
            }
            let _ = write!(listed, "{kind} {name}, ");
            archive = match kind {
                0..3 => archive.dir(&name, *self.random.of(&[0o755, 0o700, 0o1777])),
                3..5 => archive.file(&name, &vec![b'f'; self.random.below(3) * 700]),
                5 => archive.symlink(&name, "y"),
                6 => archive.hard_link(&name, &target.unwrap_or_default()),
                7 => archive.file(&format!("{}.wh.{leaf}", dir.display()), b""),
                8 => archive
                    .dir(&name, 0o755)
                    .file(&format!("{name}/.wh..wh..opq"), b""),
                _ => archive.xattr("user.colour", b"red").entry(
                    &name,
                    EntryType::Regular,
                    0o4711,
                    "",
                    b"s",
                ),
            };
            match kind {
                0..3 | 8 => self.note(layer, path, true),
                7 => drop(self.forget(layer, &path)),
                _ => {
                    self.note(layer, path, false);
                    files.push(name);
                }
            }
        }
        (archive.finish(), listed)
    }

    /// Something done to a tree that is mounted.
    fn change(&mut self) {
        let layer = self.layer(|layer| layer.mounted && !layer.sealed);
        let Some(root) = self.mount_of(layer) else {
            let layer = self.layer(|layer| !layer.sealed);
            return self.mount(layer);
        };
        for _ in 0..1 + self.random.below(9) {
            let (words, result) = self.call(layer, &root);
            self.say(format!("{layer}: {words}: {}", answer(result)));
        }
    }

    fn mount_of(&self, layer: &str) -> Option<PathBuf> {
        let info = self.store.inspect(&id(layer)).ok()?;
        info.mount.map(|mount| mount.target)
    }

    /// One call of the tree.
    fn call(&mut self, layer: &'static str, root: &Path) -> (String, io::Result<String>) {
        let (kind, number) = (self.random.below(34), self.random.small(3));
        let path = match kind {
            0..10 => self.path(layer),
            _ => self.there(layer),
        };
        let mut to = match kind {
            31.. => self.there(layer),
            _ => self.path(layer),
        };
        if to == path {
            to = self.path(layer);
        }
        let mode = *self.random.of(&MODES);
        let (shown, shown_to) = (path.display().to_string(), to.display().to_string());
        let words = match kind {
            0..4 => format!("mkdir {shown} {mode:o}"),
            4..8 => format!("creat {shown} {mode:o}, {number}"),
            8 => format!("symlink {shown}"),
            9 => format!("mknod {shown} {number}"),
            10 | 11 => format!("link {shown} {shown_to}"),
            12..17 => format!("rename {shown} {shown_to} {number}"),
            17 => format!("unlink {shown}"),
            18 => format!("rmdir {shown}"),
            19 => format!("rm {shown}"),
            20 => format!("chmod {shown} {mode:o}"),
            21 => format!("chown {shown} {number}"),
            22 => format!("utimens {shown} {number}"),
            23 => format!("setxattr {shown} {number}"),
            24 => format!("removexattr {shown} {number}"),
            25 => format!("read {shown}"),
            26 => format!("list {shown}"),
            27 => format!("look {shown}"),
            28 | 29 => format!("write {shown} {number}"),
            30 => format!("truncate {shown} {number}"),
            _ => format!("exchange {shown} {shown_to}"),
        };
        let result = self.made(root, kind, (&path, &to), (mode, number));
        if result.is_ok() {
            self.follow(layer, kind, (path, to));
        }
        (words, result)
    }

    /// What a call has changed of what there is.
    fn follow(&mut self, layer: &'static str, kind: usize, (path, to): (PathBuf, PathBuf)) {
        match kind {
            0..10 => self.note(layer, path, kind < 4),
            10 | 11 => self.note(layer, to, false),
            12..20 | 31.. if path != to => {
                let moved = self.forget(layer, &path);
                let other = self.forget(layer, &to);
                let known = self.known.entry(layer).or_default();
                let mut put = |dir: &Path, all: BTreeMap<PathBuf, bool>| {
                    let at = |rest: &Path| dir.iter().chain(rest).collect::<PathBuf>();
                    known.extend(all.iter().map(|(rest, is_dir)| (at(rest), *is_dir)));
                };
                if !(17..20).contains(&kind) {
                    put(&to, moved);
                }
                if kind >= 31 || (17..20).contains(&kind) {
                    put(if kind >= 31 { &path } else { &to }, other);
                }
            }
            _ => {}
        }
    }

    fn open<'p>(&self, root: &Path, path: &'p Path) -> io::Result<(DirHandle, &'p OsStr)> {
        let mut dir = self.tree.open_root(root)?;
        for name in path.parent().into_iter().flatten() {
            dir = self.tree.open_dir(&dir, name)?;
        }
        Ok((dir, path.file_name().unwrap_or_default()))
    }

    fn made(
        &self,
        root: &Path,
        kind: usize,
        (path, to): (&Path, &Path),
        (mode, number): (u32, u8),
    ) -> io::Result<String> {
        let tree = self.tree;
        let (dir, name) = self.open(root, path)?;
        let node = Node::Entry(&dir, name);
        let attribute = OsStr::new(
            ["user.colour", "trusted.other", "security.capability"][usize::from(number)],
        );
        match kind {
            0..4 => tree.create_dir(&dir, name, mode)?,
            4..8 => {
                let file = tree.create_file(&dir, name, mode)?;
                tree.write_at(&file, u64::from(number) * 5000, b"contents")?;
                if number == 1 {
                    tree.set_len(&file, 3)?;
                }
            }
            8 => tree.create_symlink(&dir, name, OsStr::new("y/x"))?,
            9 => {
                let device = DeviceNumber { major: 8, minor: 1 };
                let kind = match number {
                    0 => NodeKind::Fifo,
                    1 => NodeKind::BlockDevice(device),
                    _ => NodeKind::CharDevice(device),
                };
                tree.create_node(&dir, name, kind, 0o600)?;
            }
            10 | 11 => {
                let (to_dir, to) = self.open(root, to)?;
                tree.hard_link(&dir, name, &to_dir, to)?;
            }
            12..17 => {
                let (to_dir, to) = self.open(root, to)?;
                let mode = match number {
                    0 => RenameMode::NoReplace,
                    _ => RenameMode::Replace,
                };
                tree.rename(&dir, name, &to_dir, to, mode)?;
            }
            17 => tree.unlink(&dir, name)?,
            18 => tree.remove_dir(&dir, name)?,
            19 => remove_tree(tree, &dir, name).map_err(|error| error.source)?,
            20 => tree.set_mode(node, mode)?,
            21 => tree.set_owner(node, u32::from(number) * 500, u32::from(number))?,
            22 => {
                let secs = SET + i64::from(number);
                tree.set_mtime(node, Timestamp { secs, nanos: 7 })?;
            }
            23 if number == 2 => tree.set_xattr(node, attribute, &CAPABILITIES)?,
            23 => tree.set_xattr(node, attribute, &[number])?,
            24 => tree.remove_xattr(node, attribute)?,
            25 => {
                let file = tree.open_file(&dir, name)?;
                let mut buffer = [0; 16];
                let len = tree.read_at(&file, 0, &mut buffer)?;
                let size = tree.metadata(Node::File(&file))?.size;
                return Ok(format!("{:?} of {size}", &buffer[..len]));
            }
            26 => {
                let inner = tree.open_dir(&dir, name)?;
                let mut names: Vec<_> = tree.read_dir(&inner)?;
                names.sort_by(|one, other| one.name.cmp(&other.name));
                let names = names
                    .iter()
                    .map(|entry| format!("{:?} {:?}", entry.name, entry.kind));
                return Ok(names.collect::<Vec<_>>().join(", "));
            }
            27 => {
                let found = tree.metadata(node)?;
                let size = if found.is_dir() { 0 } else { found.size };
                return Ok(format!("{:?} {:o} {size}", found.kind, found.mode));
            }
            28..31 => {
                let offset = u64::from(number) * 3000;
                let edit = match kind {
                    30 => Edit::Truncate(offset + 2),
                    _ => Edit::Write {
                        offset,
                        bytes: b"written",
                    },
                };
                match self.subject.edit(&root.join(path), edit) {
                    Some(edited) => edited?,
                    None => return Ok("left out".to_owned()),
                }
            }
            _ => {
                let (to_dir, to) = self.open(root, to)?;
                tree.rename(&dir, name, &to_dir, to, RenameMode::Exchange)?;
            }
        }
        if kind < 10 || (28..31).contains(&kind) {
            // Clocks tick more or less often: what is new must differ in its time from what is not.
            let secs = SET + i64::try_from(self.lines.len()).unwrap_or(0);
            tree.set_mtime(node, Timestamp { secs, nanos: 5 })?;
        }
        Ok("ok".to_owned())
    }

    /// Says what every layer shows and holds.
    fn dump(&mut self) {
        match self.store.layers() {
            Err(error) => self.say(refusal(&error)),
            Ok(list) => {
                for broken in list.broken {
                    self.say(format!("broken {}: {}", broken.id, refusal(&broken.error)));
                }
                for layer in list.layers {
                    let name = layer.id.as_str();
                    self.say(format!("{layer:?}"));
                    if let Some(root) = self.mount_of(name) {
                        self.tree_at(&format!("{name} shows"), &root);
                    }
                    let upper = self.store.layout().layer(&layer.id).diff().to_owned();
                    self.tree_at(&format!("{name} has"), &upper);
                }
            }
        }
    }

    fn tree_at(&mut self, words: &str, root: &Path) {
        let found = snapshot_at(self.tree, root);
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.say(format!("{words}: {}", answer(Err(error)))),
        };
        let links = self.links(root, &found);
        for (path, object) in &found {
            let same = links.get(path).filter(|first| *first != path);
            let same = same.map_or(String::new(), |first| format!(" is {}", first.display()));
            self.say(format!(
                "  {words} /{}{same}: {}",
                path.display(),
                fields(object)
            ));
        }
    }

    /// The first name of each inode.
    fn links(&self, root: &Path, found: &BTreeMap<PathBuf, Object>) -> BTreeMap<PathBuf, PathBuf> {
        let (mut first, mut links) = (BTreeMap::new(), BTreeMap::new());
        for (path, object) in found {
            if object.kind == FileKind::Directory || is_whiteout(object) {
                continue;
            }
            let inode = self
                .open(root, path)
                .and_then(|(dir, name)| self.tree.metadata(Node::Entry(&dir, name)));
            if let Ok(inode) = inode {
                let first = first.entry(inode.ino).or_insert_with(|| path.clone());
                links.insert(path.clone(), first.clone());
            }
        }
        links
    }

    fn end(&mut self) {
        self.dump();
        for name in LAYERS {
            let request = MountRequest::new().options(self.options);
            match self.store.mount(&id(name), &request) {
                Err(error) => self.say(format!("at the end, mount {name}: {}", refusal(&error))),
                Ok(root) => {
                    self.tree_at(&format!("{name} shows at the end"), &root);
                    let left = self.store.unmount(&id(name), UnmountMode::Now);
                    let left = left.map_or_else(|error| refusal(&error), |left| left.to_string());
                    self.say(format!("at the end, unmount {name}: {left}"));
                }
            }
        }
        let said = match self.store.check() {
            Err(error) => refusal(&error),
            Ok(report) => {
                let kinds = report.findings.iter().map(|finding| finding.kind.as_str());
                format!("check: {:?}", kinds.collect::<Vec<_>>())
            }
        };
        self.say(said);
    }
}

fn is_whiteout(object: &Object) -> bool {
    object.kind == FileKind::CharDevice && object.rdev == DeviceNumber::default()
}

fn fields(object: &Object) -> String {
    if is_whiteout(object) {
        return "whiteout".to_owned();
    }
    let time = match object.mtime.secs {
        secs if (SET..SET + 100_000).contains(&secs) => format!("{:?}", object.mtime),
        _ => "now".to_owned(),
    };
    let notes = [".origin", ".impure", ".uuid", ".nlink", ".protattr"];
    let xattrs = object.xattrs.iter().filter(|(name, _)| {
        let name = name.to_string_lossy();
        !(name.contains(".overlay.") && notes.iter().any(|note| name.ends_with(note)))
    });
    let xattrs: Vec<String> = xattrs
        .map(|(name, value)| format!("{name:?}={value:?}"))
        .collect();
    let contents = match object.contents.iter().all(|byte| *byte == 0) {
        true => format!("{} zeros", object.contents.len()),
        false => {
            let sum = object.contents.iter().fold(0_u64, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
            });
            format!("{} bytes {sum:x}", object.contents.len())
        }
    };
    let DeviceNumber { major, minor } = object.rdev;
    format!(
        "{:?} {:o} {}:{} {} {major}:{minor} {time} {xattrs:?} {contents}",
        object.kind, object.mode, object.uid, object.gid, object.nlink
    )
}
