//! Random lives of limited layers against a model that counts blocks.

mod aim;
mod steps;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use ovl_diff::{FileKind, Node, TreeBackend};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    CreateLayer, Durability, Error, ErrorKind, FindingKind, ImportOptions, InitOptions,
    MountRequest, OpenOptions,
};
use ovl_layout::LayerId;
use ovl_mount::UnmountMode;
use ovl_quota::{Bytes, Limits, ProjectId, QuotaBackend};
use ovl_testkit::{ArchiveBuilder, KernelProfile, MockKernel};
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::io::Errno;

use crate::dying::Mortal;
use steps::{Amount, Step, Wanted, life};

const PAGE: u64 = 4096;
const HOME: &str = "/home";
/// What the layer below has: plain files, and a directory with a file.
const LOWER_FILES: [(&str, u64); 2] = [("low-0", 5000), ("low-1", 10 * PAGE)];
const LOWER_DIR: &str = "low-dir";
const LOWER_INNER: (&str, u64) = ("low-dir/inner", 1);

/// What stands in a layer's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    File(u64),
    Dir,
    Whiteout,
}

impl Object {
    fn bytes(self) -> u64 {
        match self {
            Self::File(len) => len.next_multiple_of(PAGE),
            Self::Dir => PAGE,
            Self::Whiteout => 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    project: u32,
    child: bool,
    limits: Limits,
    mounted: bool,
    contents: BTreeMap<String, Object>,
}

impl Layer {
    /// Without whiteouts, which can be one inode.
    fn of_contents(&self) -> (u64, u64) {
        let bytes = self.contents.values().map(|object| object.bytes()).sum();
        let objects = self.contents.values();
        let objects = objects.filter(|object| **object != Object::Whiteout);
        (bytes, objects.count() as u64)
    }

    fn has_below(&self, name: &str) -> bool {
        let files = LOWER_FILES.iter().chain([&LOWER_INNER]);
        self.child && (name == LOWER_DIR || files.into_iter().any(|(below, _)| *below == name))
    }
}

/// What is left of both limits.
#[derive(Clone, Copy, Debug)]
struct Room {
    bytes: u64,
    inodes: u64,
}

impl Room {
    fn takes(self, object: Object) -> bool {
        self.inodes >= 1 && self.bytes >= object.bytes()
    }
}

struct World {
    profile: KernelProfile,
    base: Option<ProjectId>,
    kernel: MockKernel,
    process: Mortal,
    pid: u32,
    store: Option<Overlay2>,
    layers: BTreeMap<u8, Layer>,
    /// Projects of removed layers whose files are not gone yet.
    trash: BTreeSet<u32>,
    /// What an empty layer takes, without and with a parent.
    empty: [(u64, u64); 2],
    /// Steps that changed something, and what limits refused.
    counts: BTreeMap<String, u64>,
}

fn id(slot: u8) -> LayerId {
    format!("layer-{slot}").parse().unwrap()
}

fn name_of(name: u8) -> String {
    match name {
        0..4 => format!("own-{name}"),
        4 | 5 => LOWER_FILES[usize::from(name) - 4].0.to_owned(),
        6 => LOWER_INNER.0.to_owned(),
        _ => LOWER_DIR.to_owned(),
    }
}

fn said(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words = format!("{words}: {source}");
        next = source.source();
    }
    words
}

impl World {
    fn new(profile: KernelProfile, base: Option<ProjectId>) -> Self {
        let kernel = MockKernel::new(profile.clone());
        let process = Mortal::new(kernel.as_process(2000));
        let mut world = Self {
            profile,
            base,
            kernel,
            process,
            pid: 2000,
            store: None,
            layers: BTreeMap::new(),
            trash: BTreeSet::new(),
            empty: [(0, 0); 2],
            counts: BTreeMap::new(),
        };
        let options = InitOptions::new()
            .durability(Durability::None)
            .project_base(base);
        let store = Overlay2::init(world.process.kernel(), Path::new(HOME), &options).unwrap();
        let mut archive = ArchiveBuilder::new().dir(LOWER_DIR, 0o755);
        for (name, len) in LOWER_FILES.iter().chain([&LOWER_INNER]) {
            archive = archive.file(name, &vec![7; *len as usize]);
        }
        let below = CreateLayer::new("below".parse().unwrap());
        let options = ImportOptions::new();
        store
            .import(&below, &*archive.finish(), options, &mut |_| {})
            .unwrap();
        for child in [false, true] {
            let parent = child.then(|| "below".parse().unwrap());
            let probe = CreateLayer::new(id(9)).parent(parent);
            store.create_writable(&probe).unwrap();
            let usage = store.quota(&id(9)).unwrap().unwrap().usage.unwrap();
            world.empty[usize::from(child)] = (usage.bytes.get(), usage.inodes);
            store.remove(&id(9), false).unwrap();
            store.reclaim().unwrap();
        }
        world.store = Some(store);
        world
    }

    fn store(&self) -> &Overlay2 {
        self.store.as_ref().unwrap()
    }

    fn first_id(&self) -> u32 {
        self.base.map_or(0, ProjectId::get) + 2
    }

    /// The smallest id that nothing has.
    fn next_id(&self) -> u32 {
        let taken = |id: &u32| {
            self.trash.contains(id) || self.layers.values().any(|layer| layer.project == *id)
        };
        (self.first_id()..).find(|id| !taken(id)).unwrap()
    }

    fn limits(&self, child: bool, wanted: Wanted) -> Limits {
        let (bytes, inodes) = self.empty[usize::from(child)];
        let limit = |amount| match amount {
            Amount::OneByte => 1,
            Amount::More(more) => bytes + more,
        };
        Limits::new(
            wanted.bytes.map(|amount| Bytes::new(limit(amount))),
            // The last ones are too few for an empty layer.
            wanted.inodes.map(|more| (inodes + more).saturating_sub(2)),
        )
    }

    fn dir(&self, slot: u8) -> PathBuf {
        Path::new(HOME).join(id(slot).as_str())
    }

    /// Where the contents are changed.
    fn root(&self, slot: u8) -> PathBuf {
        let name = if self.layers[&slot].mounted {
            "merged"
        } else {
            "diff"
        };
        self.dir(slot).join(name)
    }

    /// What the store itself keeps in a layer's directory, counted by looking.
    fn of_store(&self, slot: u8) -> (u64, u64) {
        let mut sum = (0, 0);
        let mut next = vec![self.dir(slot)];
        while let Some(path) = next.pop() {
            let dir = self.kernel.open_root(&path).unwrap();
            sum.0 += self.kernel.metadata(Node::Dir(&dir)).unwrap().blocks * 512;
            sum.1 += 1;
            assert_eq!(
                self.kernel.project_of(&path).unwrap().map(ProjectId::get),
                Some(self.layers[&slot].project),
                "{}",
                path.display()
            );
            for entry in self.kernel.read_dir(&dir).unwrap() {
                let inner = path.join(&entry.name);
                // A mount is on the one; the other's contents are the model's.
                let is_outside = entry.name == "merged" || entry.name == "diff";
                if entry.kind == FileKind::Directory && !is_outside {
                    next.push(inner);
                    continue;
                }
                sum.0 += match is_outside {
                    true => PAGE,
                    false => {
                        let found = self.kernel.metadata(Node::Entry(&dir, &entry.name));
                        found.unwrap().blocks * 512
                    }
                };
                sum.1 += 1;
            }
        }
        sum
    }

    fn used(&self, slot: u8) -> (u64, u64) {
        let (own, contents) = (self.of_store(slot), self.layers[&slot].of_contents());
        (
            own.0 + contents.0,
            own.1 + contents.1 + self.whiteouts(slot),
        )
    }

    /// The inodes of a layer's whiteouts, counted by looking.
    fn whiteouts(&self, slot: u8) -> u64 {
        let contents = self.layers[&slot].contents.iter();
        let whiteouts = contents.filter(|(_, object)| **object == Object::Whiteout);
        let inodes: BTreeSet<u64> = whiteouts
            .map(|(name, _)| {
                let path = self.dir(slot).join("diff").join(name);
                let dir = self.kernel.open_root(path.parent().unwrap()).unwrap();
                let node = Node::Entry(&dir, path.file_name().unwrap());
                self.kernel.metadata(node).unwrap().ino
            })
            .collect();
        inodes.len() as u64
    }

    fn room(&self, slot: u8) -> Room {
        let (used, limits) = (self.used(slot), self.layers[&slot].limits);
        Room {
            bytes: limits
                .bytes
                .map_or(u64::MAX, |limit| limit.get().saturating_sub(used.0)),
            inodes: limits
                .inodes
                .map_or(u64::MAX, |limit| limit.saturating_sub(used.1)),
        }
    }

    /// What the kernel says when a limit is reached.
    fn assert_full(&self, error: &io::Error) {
        let full = match self.profile.fs_type == KernelProfile::xfs().fs_type {
            true => Errno::NOSPC,
            false => Errno::DQUOT,
        };
        assert_eq!(error.raw_os_error(), Some(full.raw_os_error()), "{error}");
    }

    fn assert_over_quota(&self, error: &Error, slot: u8, project: u32, limits: Limits) {
        let Error::OverQuota {
            id: of,
            project: found,
            usage,
            ..
        } = error
        else {
            panic!("{}", said(error));
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!((of, found.get()), (&id(slot), project));
        assert_eq!(usage.limits, limits.rounded().unwrap());
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    fn run(&mut self, step: &Step) {
        let (layers, trash) = (self.layers.clone(), self.trash.clone());
        self.do_step(step);
        if (&layers, &trash) != (&self.layers, &self.trash) {
            self.count(step.name());
        }
    }

    fn do_step(&mut self, step: &Step) {
        match *step {
            Step::Create {
                slot,
                child,
                limits,
            } => self.create(slot, child, limits),
            Step::Write { slot, name, len } => {
                self.as_nobody(|life| life.write(slot, &name_of(name), len));
            }
            Step::MakeDir { slot, name } => {
                self.as_nobody(|life| life.make_dir(slot, &name_of(name)));
            }
            Step::Remove { slot, name } => self.remove(slot, &name_of(name)),
            Step::CopyUp { slot, lower } => self.copy_up(slot, lower),
            Step::Limit { slot, limits } => self.limit(slot, limits),
            Step::Tighten { slot } => {
                if self.layers.contains_key(&slot) {
                    let (_, inodes) = self.used(slot);
                    self.set_limits(slot, Limits::UNLIMITED.inodes(Some(inodes)));
                }
            }
            Step::Apply { slot, name, len } => self.apply(slot, &name_of(name), len),
            Step::Mount { slot } => self.mount(slot),
            Step::Unmount { slot } => self.unmount(slot),
            Step::Drop { slot } => self.drop_layer(slot),
            Step::Reclaim => {
                self.store().reclaim().unwrap();
                self.trash.clear();
            }
            Step::Reopen => self.reopen(),
            Step::Kill { calls, ref at } => self.kill(calls, at),
        }
    }

    fn new_layer(&self, slot: u8, child: bool) -> CreateLayer {
        CreateLayer::new(id(slot)).parent(child.then(|| "below".parse().unwrap()))
    }

    fn create(&mut self, slot: u8, child: bool, wanted: Wanted) {
        let limits = self.limits(child, wanted);
        let mut layer = self.new_layer(slot, child);
        layer.limits = limits;
        let made = self.store().create_writable(&layer);
        if self.layers.contains_key(&slot) {
            assert!(matches!(made, Err(Error::AlreadyExists { .. })), "{made:?}");
            return;
        }
        let project = self.next_id();
        let (bytes, inodes) = self.empty[usize::from(child)];
        let rounded = limits.rounded().unwrap();
        let fits = rounded.bytes.is_none_or(|limit| limit.get() >= bytes)
            && rounded.inodes.is_none_or(|limit| limit >= inodes);
        match made {
            Ok(()) => assert!(fits, "{limits} for {bytes} bytes and {inodes} inodes"),
            Err(error) => {
                assert!(!fits, "{}", said(&error));
                self.assert_over_quota(&error, slot, project, limits);
                return self.count("refused Create");
            }
        }
        let layer = Layer {
            project,
            child,
            limits: rounded,
            mounted: false,
            contents: BTreeMap::new(),
        };
        self.layers.insert(slot, layer);
    }

    /// Writes as somebody whom limits bind, wherever he writes.
    fn as_nobody(&mut self, write: impl FnOnce(&mut Self)) {
        let kernel = self.kernel.clone();
        let _keeps = kernel.keep_to_limits().unwrap();
        write(self);
    }

    /// Page by page, until the limit stops it: every page that fits is written.
    fn write(&mut self, slot: u8, name: &str, len: u64) {
        let Some(layer) = self.layers.get(&slot) else {
            return;
        };
        if layer.contents.contains_key(name) {
            return;
        }
        let (room, root) = (self.room(slot), self.root(slot));
        let dir = self.kernel.open_root(&root).unwrap();
        let made = self.kernel.create_file(&dir, OsStr::new(name), 0o644);
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                assert!(room.inodes == 0, "{error} with {room:?}");
                return self.assert_full(&error);
            }
        };
        assert!(room.inodes > 0, "one inode too many");
        let mut written = 0;
        while written < len {
            let part = vec![7; (len - written).min(PAGE) as usize];
            match self.kernel.write_at(&file, written, &part) {
                Ok(()) => written += part.len() as u64,
                Err(error) => {
                    self.assert_full(&error);
                    self.count("refused Write");
                    break;
                }
            }
        }
        let fits = (room.bytes / PAGE).saturating_mul(PAGE).min(len);
        assert_eq!(written, fits, "it stops at the limit: {room:?}");
        let contents = &mut self.layers.get_mut(&slot).unwrap().contents;
        contents.insert(name.to_owned(), Object::File(written));
    }

    fn make_dir(&mut self, slot: u8, name: &str) {
        let Some(layer) = self.layers.get(&slot) else {
            return;
        };
        if layer.contents.contains_key(name) {
            return;
        }
        let (room, root) = (self.room(slot), self.root(slot));
        let dir = self.kernel.open_root(&root).unwrap();
        let made = self.kernel.create_dir(&dir, OsStr::new(name), 0o755);
        assert_eq!(made.is_ok(), room.takes(Object::Dir), "{made:?} {room:?}");
        if let Err(error) = made {
            self.assert_full(&error);
            return self.count("refused MakeDir");
        }
        let contents = &mut self.layers.get_mut(&slot).unwrap().contents;
        contents.insert(name.to_owned(), Object::Dir);
    }

    fn remove(&mut self, slot: u8, name: &str) {
        let Some(layer) = self.layers.get(&slot).cloned() else {
            return;
        };
        let (here, below) = (layer.contents.get(name).copied(), layer.has_below(name));
        let hidden = here == Some(Object::Whiteout);
        let inner = name == LOWER_INNER.0;
        let visible = match layer.mounted {
            true => !hidden && (here.is_some() || below),
            // Whiteouts and what is below are the mount's business.
            false => here.is_some() && !below,
        };
        // The directory below is never empty for this test, and stays.
        if !visible || name == LOWER_DIR {
            return;
        }
        let room = self.room(slot);
        let path = self.root(slot).join(name);
        let dir = self.kernel.open_root(path.parent().unwrap()).unwrap();
        let file_name = path.file_name().unwrap();
        let result = match here {
            Some(Object::Dir) => self.kernel.remove_dir(&dir, file_name),
            _ => self.kernel.unlink(&dir, file_name),
        };
        let contents = &mut self.layers.get_mut(&slot).unwrap().contents;
        if !below {
            result.unwrap();
            contents.remove(name);
            return;
        }
        let mut room = room;
        // The directory comes up before what is in it goes.
        if inner && !contents.contains_key(LOWER_DIR) {
            if !room.takes(Object::Dir) {
                self.assert_full(&result.unwrap_err());
                return self.count("refused CopyUp");
            }
            room.inodes -= 1;
            contents.insert(LOWER_DIR.to_owned(), Object::Dir);
        }
        // A whiteout is one with another, or an inode of its own, which is made before what is here
        // goes.
        if room.inodes == 0
            && let Err(error) = &result
        {
            self.assert_full(error);
            return self.count("refused Whiteout");
        }
        result.unwrap();
        contents.insert(name.to_owned(), Object::Whiteout);
    }

    /// A change of mode through the mount moves the whole file up, or nothing.
    fn copy_up(&mut self, slot: u8, lower: u8) {
        let Some(layer) = self.layers.get(&slot) else {
            return;
        };
        let (name, len) = match LOWER_FILES.get(usize::from(lower)) {
            Some(&(name, len)) => (name, len),
            None => LOWER_INNER,
        };
        let here = layer.contents.get(name).copied();
        if !layer.mounted || !layer.child || here == Some(Object::Whiteout) {
            return;
        }
        let (mut room, path) = (self.room(slot), self.root(slot).join(name));
        let dir = self.kernel.open_root(path.parent().unwrap()).unwrap();
        let node = Node::Entry(&dir, path.file_name().unwrap());
        let result = self.kernel.set_mode(node, 0o600);
        if here.is_some() {
            return result.unwrap();
        }
        let contents = &mut self.layers.get_mut(&slot).unwrap().contents;
        if name == LOWER_INNER.0 && !contents.contains_key(LOWER_DIR) {
            if !room.takes(Object::Dir) {
                self.assert_full(&result.unwrap_err());
                return self.count("refused CopyUp");
            }
            room.inodes = room.inodes.saturating_sub(1);
            room.bytes = room.bytes.saturating_sub(PAGE);
            contents.insert(LOWER_DIR.to_owned(), Object::Dir);
        }
        let file = Object::File(len);
        if !room.takes(file) {
            self.assert_full(&result.unwrap_err());
            return self.count("refused CopyUp");
        }
        result.unwrap();
        contents.insert(name.to_owned(), file);
    }

    fn limit(&mut self, slot: u8, wanted: Wanted) {
        let child = self.layers.get(&slot).is_some_and(|layer| layer.child);
        self.set_limits(slot, self.limits(child, wanted));
    }

    fn set_limits(&mut self, slot: u8, limits: Limits) {
        let result = self.store().set_limits(&id(slot), limits);
        match self.layers.get_mut(&slot) {
            Some(layer) => {
                result.unwrap();
                layer.limits = limits.rounded().unwrap();
            }
            None => assert!(matches!(result, Err(Error::LayerNotFound { .. }))),
        }
    }

    fn try_apply(&self, slot: u8, name: &str, len: u64) -> Result<(), Error> {
        let archive = ArchiveBuilder::new().file(name, &vec![7; len as usize]);
        let options = ImportOptions::new();
        let applied = self
            .store()
            .apply(&id(slot), &*archive.finish(), options, &mut |_| {});
        applied.map(drop)
    }

    /// The old and the new contents both count until they are swapped.
    fn apply(&mut self, slot: u8, name: &str, len: u64) {
        let result = self.try_apply(slot, name, len);
        let Some(layer) = self.layers.get(&slot) else {
            return assert!(matches!(result, Err(Error::LayerNotFound { .. })));
        };
        if layer.mounted {
            return assert!(matches!(result, Err(Error::Mounted { .. })));
        }
        let mut contents = layer.contents.clone();
        contents.insert(name.to_owned(), Object::File(len));
        let after = Layer {
            contents,
            ..layer.clone()
        };
        let (bytes, inodes) = self.empty[usize::from(layer.child)];
        let room = self.room(slot);
        let (more, files) = after.of_contents();
        // While the copy is made, what it replaces in it may count as well, and what is made and
        // goes again.
        let slack = layer.contents.get(name).map_or(0, |object| object.bytes());
        let hidden = layer.contents.len() as u64;
        let fits = room.bytes >= bytes + more + slack + 2 * PAGE
            && room.inodes >= inodes + files + hidden + 3;
        let cannot = room.bytes < more || room.inodes < files;
        match result {
            Ok(()) => {
                assert!(!cannot, "{more} bytes, {files} inodes into {room:?}");
                self.layers.insert(slot, after);
            }
            Err(error) => {
                assert!(!fits, "{}: {room:?}", said(&error));
                self.assert_over_quota(&error, slot, layer.project, layer.limits);
                self.count("refused Apply");
            }
        }
    }

    fn mount(&mut self, slot: u8) {
        let Some(layer) = self.layers.get(&slot) else {
            return;
        };
        if layer.mounted {
            return;
        }
        let room = self.room(slot);
        match self.store().mount(&id(slot), &MountRequest::new()) {
            Ok(_) => self.layers.get_mut(&slot).unwrap().mounted = true,
            Err(error) => {
                // The mount point and the kernel's own directory.
                let fits = room.bytes >= 2 * PAGE && room.inodes >= 2;
                assert!(!fits, "{}: {room:?}", said(&error));
                self.assert_over_quota(&error, slot, layer.project, layer.limits);
                self.count("refused Mount");
            }
        }
    }

    fn unmount(&mut self, slot: u8) {
        if self.layers.get(&slot).is_some_and(|layer| layer.mounted) {
            self.store().unmount(&id(slot), UnmountMode::Now).unwrap();
            self.layers.get_mut(&slot).unwrap().mounted = false;
        }
    }

    fn drop_layer(&mut self, slot: u8) {
        self.unmount(slot);
        let result = self.store().remove(&id(slot), false);
        match self.layers.remove(&slot) {
            Some(layer) => {
                result.unwrap();
                self.trash.insert(layer.project);
            }
            None => assert!(matches!(result, Err(Error::LayerNotFound { .. }))),
        }
    }

    /// Another process opens the home, and clears up as every writer does.
    fn reopen(&mut self) {
        self.store = None;
        self.kernel.kill(self.pid);
        self.pid += 1;
        self.process = Mortal::new(self.kernel.as_process(self.pid));
        let options = OpenOptions::new();
        let store = Overlay2::open(self.process.kernel(), Path::new(HOME), options).unwrap();
        store.reclaim().unwrap();
        self.trash.clear();
        self.store = Some(store);
    }

    /// What was under way has happened, or has not.
    fn kill(&mut self, calls: u64, step: &Step) {
        if let Step::Drop { slot } = *step {
            self.unmount(slot);
        }
        let project = self.next_id();
        self.process.dies_after(calls);
        match *step {
            Step::Create {
                slot,
                child,
                limits,
            } => {
                let mut layer = self.new_layer(slot, child);
                layer.limits = self.limits(child, limits);
                let _ = self.store().create_writable(&layer);
                self.process.dies_after(0);
                self.reopen();
                if self.store().contains(&id(slot)).unwrap() {
                    self.layers.entry(slot).or_insert(Layer {
                        project,
                        child,
                        limits: layer.limits.rounded().unwrap(),
                        mounted: false,
                        contents: BTreeMap::new(),
                    });
                }
            }
            Step::Limit { slot, limits } => {
                let child = self.layers.get(&slot).is_some_and(|layer| layer.child);
                let limits = self.limits(child, limits);
                let _ = self.store().set_limits(&id(slot), limits);
                self.process.dies_after(0);
                self.reopen();
                let (found, new) = (self.limits_of(slot), limits.rounded().unwrap());
                if let Some(layer) = self.layers.get_mut(&slot)
                    && found == Some(new)
                {
                    layer.limits = new;
                }
            }
            Step::Apply { slot, name, len } => {
                let name = name_of(name);
                let before = self.len_of(slot, &name);
                let _ = self.try_apply(slot, &name, len);
                self.process.dies_after(0);
                self.reopen();
                let after = self.len_of(slot, &name);
                if let Some(layer) = self.layers.get_mut(&slot)
                    && after != before
                {
                    assert_eq!(after, Some(len), "whole, or not at all");
                    layer.contents.insert(name, Object::File(len));
                }
            }
            Step::Drop { slot } => {
                let _ = self.store().remove(&id(slot), false);
                self.process.dies_after(0);
                self.reopen();
                if !self.store().contains(&id(slot)).unwrap() {
                    self.layers.remove(&slot);
                }
            }
            ref step => panic!("{step:?} is not killed"),
        }
    }

    fn limits_of(&self, slot: u8) -> Option<Limits> {
        self.layers.get(&slot)?;
        let quota = self.store().quota(&id(slot)).unwrap();
        Some(quota.unwrap().usage.unwrap().limits)
    }

    /// The length of a file in a layer's directory.
    fn len_of(&self, slot: u8, name: &str) -> Option<u64> {
        let dir = self.kernel.open_root(&self.dir(slot).join("diff")).ok()?;
        let found = self
            .kernel
            .metadata(Node::Entry(&dir, OsStr::new(name)))
            .ok()?;
        (found.kind == FileKind::Regular).then_some(found.size)
    }

    fn check(&self) {
        let mut projects = self.trash.clone();
        for (&slot, layer) in &self.layers {
            let quota = self.store().quota(&id(slot)).unwrap().unwrap();
            assert_eq!(quota.project.get(), layer.project, "layer-{slot}");
            assert!(projects.insert(layer.project), "shared: {}", layer.project);
            assert!(layer.project >= self.first_id());
            let usage = quota.usage.unwrap();
            assert_eq!(usage.limits, layer.limits, "layer-{slot}");
            assert_eq!(
                (usage.bytes.get(), usage.inodes),
                self.used(slot),
                "layer-{slot}: {:?}",
                layer.contents
            );
        }
        let report = self.store().check().unwrap();
        let findings = report.findings.iter();
        let trash = findings
            .clone()
            .filter(|found| found.kind == FindingKind::Trash);
        assert_eq!(trash.count(), self.trash.len(), "{report:#?}");
        assert_eq!(findings.count(), self.trash.len(), "{report:#?}");
    }

    /// When all layers are gone, so are their projects: the first id is given again.
    fn finish(&mut self) {
        for slot in self.layers.keys().copied().collect::<Vec<_>>() {
            self.drop_layer(slot);
        }
        self.run(&Step::Reclaim);
        let unlimited = Wanted {
            bytes: None,
            inodes: None,
        };
        self.create(0, true, unlimited);
        self.check();
        assert_eq!(self.layers[&0].project, self.first_id());
    }
}

fn lives_follow_the_model(profile: &KernelProfile) {
    let base = option::of((1..100_000_u32).prop_map(|id| ProjectId::new(id).unwrap()));
    let config = Config {
        cases: 256,
        failure_persistence: None,
        ..Config::default()
    };
    let counts = RefCell::new(BTreeMap::<String, u64>::new());
    let result = TestRunner::new(config).run(&(base, life()), |(base, steps)| {
        let mut world = World::new(profile.clone(), base);
        for (number, step) in steps.iter().enumerate() {
            let step = world.aimed(number, step);
            world.run(&step);
            world.check();
        }
        let done = std::mem::take(&mut world.counts);
        world.finish();
        for (what, count) in done {
            *counts.borrow_mut().entry(what).or_default() += count;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let counts = counts.into_inner();
    println!("quota properties: {counts:?}");
    // About a fourth of what there is by chance.
    for (what, least) in [
        ("Create", 140),
        ("Write", 120),
        ("MakeDir", 25),
        ("Remove", 60),
        ("CopyUp", 40),
        ("Limit", 60),
        ("Tighten", 40),
        ("Apply", 12),
        ("Mount", 100),
        ("Unmount", 30),
        ("Drop", 40),
        ("Reclaim", 2),
        ("Kill", 60),
        ("refused Create", 10),
        ("refused Write", 8),
        ("refused MakeDir", 8),
        ("refused CopyUp", 25),
        ("refused Whiteout", 6),
        ("refused Apply", 18),
        ("refused Mount", 5),
    ] {
        let found = counts.get(what).copied().unwrap_or(0);
        assert!(found >= least, "{found} times {what}: {counts:#?}");
    }
}

#[test]
fn usage_limits_and_projects_follow_the_model_where_full_is_edquot() {
    lives_follow_the_model(&KernelProfile::modern());
}

#[test]
fn usage_limits_and_projects_follow_the_model_where_full_is_enospc() {
    lives_follow_the_model(&KernelProfile::xfs());
}
