//! A home with layers, and what is to be seen of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Durability, Error, ImportOptions, OpenOptions, UpkeepOptions};
use ovl_layout::LayerId;
use ovl_mount::{MountBackend as _, UnmountMode};
use ovl_quota::{Bytes, Enforcement, Limits, QuotaBackend as _};
use ovl_testkit::{ArchiveBuilder, Faulty, KernelProfile, MockKernel, Snapshot, snapshot_at};

pub(super) const HOME: &str = "/home";
const MIB: u64 = 1 << 20;

/// A machine, and a process on it with a store.
pub(super) struct Scene {
    pub(super) mock: MockKernel,
    pub(super) faulty: Faulty,
    pub(super) store: Overlay2,
}

/// What is to be seen of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    /// What it stands on, whether it is sealed, its limits; `None` for one that cannot be read.
    info: Option<(Vec<LayerId>, bool, Option<Limits>)>,
    contents: Snapshot,
}

impl Seen {
    pub(super) fn parent(&self) -> Option<&LayerId> {
        self.info.as_ref()?.0.first()
    }

    pub(super) fn is_sealed(&self) -> bool {
        matches!(self.info, Some((_, true, _)))
    }

    pub(super) fn forget_contents(&mut self) {
        self.contents.clear();
    }
}

pub(super) type World = BTreeMap<LayerId, Seen>;

pub(super) fn id(text: &str) -> LayerId {
    text.parse().unwrap()
}

pub(super) fn layer(name: &str, parent: Option<&str>) -> CreateLayer {
    CreateLayer::new(id(name)).parent(parent.map(id))
}

pub(super) fn archive(contents: &[u8]) -> Vec<u8> {
    ArchiveBuilder::new()
        .dir("dir", 0o751)
        .file("dir/file", contents)
        .symlink("link", "dir/file")
        .finish()
}

/// An archive that hides a part of what is below.
pub(super) fn second() -> Vec<u8> {
    ArchiveBuilder::new()
        .file("dir/.wh.file", b"")
        .file("new", b"new")
        .finish()
}

pub(super) fn import(store: &Overlay2, layer: &CreateLayer, archive: &[u8]) -> Result<(), Error> {
    let options = ImportOptions::new();
    store.import(layer, archive, options, &mut |_| {}).map(drop)
}

pub(super) fn apply(store: &Overlay2, id: &LayerId, archive: &[u8]) -> Result<(), Error> {
    let options = ImportOptions::new();
    store.apply(id, archive, options, &mut |_| {}).map(drop)
}

impl Scene {
    /// A home on disk: `top` on `mid` on `base`, which are sealed, and four open layers: `work` on
    /// `top` with a limit, `open` and `bare` on `base`, `lone` on nothing.
    pub(super) fn new(durability: Durability) -> Self {
        Self::of(KernelProfile::modern(), durability)
    }

    /// The same on another kind of kernel; `work` has no limit where none is kept.
    pub(super) fn of(profile: KernelProfile, durability: Durability) -> Self {
        let mock = MockKernel::new(profile);
        let scene = Self::on(mock, durability, true);
        let store = &scene.store;
        import(store, &layer("base", None), &archive(b"base")).unwrap();
        store.create(&layer("mid", Some("base"))).unwrap();
        apply(store, &id("mid"), &second()).unwrap();
        import(store, &layer("top", Some("mid")), &archive(b"top")).unwrap();
        let mut work = layer("work", Some("top"));
        if scene.keeps_limits() {
            work = work.size(Some(Bytes::new(8 * MIB))).inodes(Some(100));
        }
        store.create_writable(&work).unwrap();
        store.create(&layer("open", Some("base"))).unwrap();
        apply(store, &id("open"), &archive(b"open")).unwrap();
        store.create(&layer("bare", Some("base"))).unwrap();
        store.create(&layer("lone", None)).unwrap();
        scene.mock.sync_all();
        scene
    }

    pub(super) fn keeps_limits(&self) -> bool {
        let found = self.mock.enforcement(HOME.as_ref());
        found.is_ok_and(|found| found == Enforcement::Enforced)
    }

    fn on(mock: MockKernel, durability: Durability, create: bool) -> Self {
        let faulty = Faulty::new(mock.kernel());
        let options = OpenOptions::new().create(create).durability(durability);
        let store = Overlay2::open(faulty.kernel(), HOME.as_ref(), options).unwrap();
        Self {
            mock,
            faulty,
            store,
        }
    }

    /// The same once more, with a store that has nothing open yet.
    pub(super) fn fork(&self, durability: Durability) -> Self {
        Self::on(self.mock.fork(), durability, false)
    }

    /// A process after the machine has started anew.
    pub(super) fn restarted(mock: MockKernel, durability: Durability) -> Result<Self, String> {
        let faulty = Faulty::new(mock.kernel());
        let options = OpenOptions::new().durability(durability);
        let store = Overlay2::open(faulty.kernel(), HOME.as_ref(), options)
            .map_err(|error| format!("the home does not open: {}", words(&error)))?;
        Ok(Self {
            mock,
            faulty,
            store,
        })
    }

    /// The home, opened by another.
    pub(super) fn reopened(&self) -> Result<Overlay2, String> {
        Overlay2::open(self.mock.kernel(), HOME.as_ref(), OpenOptions::new())
            .map_err(|error| format!("the home does not open: {}", words(&error)))
    }

    /// What there is.
    pub(super) fn look(&self, store: &Overlay2) -> Result<World, String> {
        let list = store.layers().map_err(|error| words(&error))?;
        let mut world = World::new();
        for summary in list.layers {
            let info = match store.inspect(&summary.id) {
                // One below it is.
                Err(Error::Damaged { .. }) => None,
                result => {
                    let info = result.map_err(|error| words(&error))?;
                    let limits = info.quota.and_then(|quota| Some(quota.usage.ok()?.limits));
                    Some((info.chain, info.sealed, limits))
                }
            };
            let contents = self.contents(&summary.id)?;
            world.insert(summary.id, Seen { info, contents });
        }
        for broken in list.broken {
            let (info, contents) = (None, self.contents(&broken.id).unwrap_or_default());
            world.insert(broken.id, Seen { info, contents });
        }
        Ok(world)
    }

    fn contents(&self, id: &LayerId) -> Result<Snapshot, String> {
        let path = Path::new(HOME).join(id.as_str()).join("diff");
        snapshot_at(&self.mock, &path).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(super) fn mounts(&self) -> Vec<PathBuf> {
        let mounts = self.mock.mounts_below(HOME.as_ref()).unwrap();
        mounts.into_iter().map(|mount| mount.target).collect()
    }

    /// The layers whose mount nobody holds.
    pub(super) fn unheld(&self, store: &Overlay2) -> Result<Vec<LayerId>, String> {
        let mut unheld = Vec::new();
        for target in self.mounts() {
            let name = target.parent().and_then(Path::file_name);
            let id = id(name.unwrap_or_default().to_str().unwrap_or_default());
            let info = store.inspect(&id).map_err(|error| words(&error))?;
            if info.mount.is_none_or(|mount| mount.holds() == 0) {
                unheld.push(id);
            }
        }
        Ok(unheld)
    }

    /// Unmounts, mends and reclaims; nothing is left to be said then.
    pub(super) fn clean(&self, store: &Overlay2) -> Result<(), String> {
        let failed = |error: Error| words(&error);
        store.unmount_all(UnmountMode::Lazy).map_err(failed)?;
        if !store.check().map_err(failed)?.is_sound() {
            store.repair(UpkeepOptions::new()).map_err(failed)?;
        }
        store.gc(UpkeepOptions::new()).map_err(failed)?;
        let left = store.check().map_err(failed)?;
        match left.is_clean() && self.mounts().is_empty() {
            true => Ok(()),
            false => Err(format!("after all was mended there is {left:#?}")),
        }
    }
}

/// Whether each layer is as it was in one of two worlds, of which the second may have been made at
/// another time. Says which is not.
pub(super) fn is_between(found: &World, before: &World, after: &World) -> Result<(), String> {
    let mut ids: Vec<&LayerId> = found
        .keys()
        .chain(before.keys())
        .chain(after.keys())
        .collect();
    ids.sort();
    ids.dedup();
    for id in ids {
        let (now, old, new) = (found.get(id), before.get(id), after.get(id));
        let is_same = loose(old) == loose(new);
        if now == old || (!is_same && loose(now) == loose(new)) {
            continue;
        }
        return Err(format!(
            "{id} is {now:#?}\nand neither {old:#?}\nnor {new:#?}"
        ));
    }
    Ok(())
}

/// Whether two worlds are the same but for times.
pub(super) fn is_same(found: &World, expected: &World) -> Result<(), String> {
    is_between(found, expected, expected).or_else(|words| {
        let same = found.len() == expected.len()
            && found
                .iter()
                .all(|(id, seen)| loose(Some(seen)) == loose(expected.get(id)));
        same.then_some(()).ok_or(words)
    })
}

fn loose(seen: Option<&Seen>) -> Option<Seen> {
    let mut seen = seen.cloned()?;
    for object in seen.contents.values_mut() {
        // Nothing in the archives is so new.
        if object.mtime.secs >= 1_600_000_000 {
            (object.mtime.secs, object.mtime.nanos) = (0, 0);
        }
    }
    Some(seen)
}

/// The kind of an error: the name of its variant.
pub(super) fn kind(error: &Error) -> String {
    let words = format!("{error:?}");
    let end = words.find(|c: char| !c.is_alphanumeric());
    words[..end.unwrap_or(words.len())].to_owned()
}

pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words = format!("{words}: {source}");
        next = source.source();
    }
    words
}
