//! Damage to the small files of a layer, and what the store is to make of it.

use std::ffi::OsStr;
use std::io;

use ovl_diff::{DirHandle, Node, RenameMode, TreeBackend};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{ErrorKind, MountRequest, UpkeepOptions};
use ovl_layout::LayerId;

use super::script::Harm;

const NEW: &str = ".new";

/// What is to be seen of a harm.
struct Expected {
    /// `check` calls the home damaged.
    is_damage: bool,
    /// The layer cannot be mounted.
    is_refused: bool,
    /// `repair` gives it back.
    is_mended: bool,
}

/// Damages a layer that nobody has mounted, looks at what the store says, and has it mended. `false`
/// where there is nothing to damage.
pub(super) fn do_and_mend(
    store: &Overlay2,
    id: &LayerId,
    harm: Harm,
    has_children: bool,
) -> Result<bool, String> {
    let failed = |error: io::Error| format!("{harm:?} of {id}: {error}");
    let Some((dir, name, contents)) = target(store, id, harm, has_children).map_err(failed)? else {
        return Ok(false);
    };
    let (tree, name) = (store.kernel().tree(), OsStr::new(&name));
    match &contents {
        None if harm == Harm::BadHolds => replace(tree, &dir, name, b"nobody").map_err(failed)?,
        _ => match harm {
            Harm::BadLower => replace(tree, &dir, name, b"l/nonsense").map_err(failed)?,
            Harm::ShortLower => {
                let old = contents.as_deref().unwrap_or_default();
                let end = old.iter().rposition(|byte| *byte == b':').unwrap_or(0);
                replace(tree, &dir, name, &old[..end]).map_err(failed)?;
            }
            _ => tree.unlink(&dir, name).map_err(failed)?,
        },
    }
    tree.sync(Node::Dir(&dir)).map_err(failed)?;
    let expected = expected(harm);
    let check = || store.check().map_err(|error| error.to_string());
    let report = check()?;
    if report.is_sound() == expected.is_damage {
        return Err(format!("after {harm:?} of {id}, check says {report:#?}"));
    }
    match (store.mount(id, &MountRequest::new()), expected.is_refused) {
        (Err(error), true) if error.kind() == ErrorKind::Damaged => {}
        (Ok(_), false) => {
            let unmounted = store.unmount(id, ovl_mount::UnmountMode::Now);
            unmounted.map_err(|error| error.to_string())?;
        }
        (result, _) => return Err(format!("after {harm:?} of {id}, a mount says {result:?}")),
    }
    let repaired = store.repair(UpkeepOptions::new());
    let repaired = repaired.map_err(|error| error.to_string())?;
    if repaired.left.is_sound() != expected.is_mended {
        return Err(format!("after {harm:?} of {id}, repair says {repaired:#?}"));
    }
    if !expected.is_mended {
        let contents = contents.unwrap_or_default();
        replace(tree, &dir, name, &contents).map_err(failed)?;
    }
    let report = check()?;
    match report.is_sound() {
        true => Ok(true),
        false => Err(format!("{harm:?} of {id} is not mended: {report:#?}")),
    }
}

fn expected(harm: Harm) -> Expected {
    let (is_damage, is_refused, is_mended) = match harm {
        Harm::NoLower | Harm::BadLower | Harm::ShortLower | Harm::NoLink => (true, true, true),
        // It is what stands on the layer that cannot be mounted.
        Harm::NoLinkEntry | Harm::NoMark => (true, false, true),
        // Void where nothing is mounted.
        Harm::BadHolds => (false, false, true),
    };
    Expected {
        is_damage,
        is_refused,
        is_mended,
    }
}

/// Directory, name and contents of the file concerned.
type Target = (DirHandle, String, Option<Vec<u8>>);

fn target(
    store: &Overlay2,
    id: &LayerId,
    harm: Harm,
    has_children: bool,
) -> io::Result<Option<Target>> {
    let tree = store.kernel().tree();
    let paths = store.layout().layer(id);
    let dir = tree.open_root(paths.dir())?;
    let name = match harm {
        Harm::NoLower | Harm::BadLower | Harm::ShortLower => "lower",
        Harm::NoLink => "link",
        Harm::NoMark if has_children => "committed",
        Harm::NoMark => return Ok(None),
        Harm::NoLinkEntry => {
            let link = read(tree, &dir, "link")?;
            let link = link.map(|link| String::from_utf8_lossy(&link).into_owned());
            let links = tree.open_root(&store.layout().link_dir())?;
            return Ok(link.map(|link| (links, link, None)));
        }
        // The mount of a process that was killed is still there, and nobody could tell whose.
        Harm::BadHolds if store.kernel().mount().is_mounted(paths.merged())? => return Ok(None),
        Harm::BadHolds => {
            let holds = tree.open_root(&store.layout().store_dir().join("holds"))?;
            return Ok(Some((holds, id.to_string(), None)));
        }
    };
    let contents = read(tree, &dir, name)?;
    Ok(contents.map(|contents| (dir, name.to_owned(), Some(contents))))
}

/// None for a file that is not there.
fn read(tree: &dyn TreeBackend, dir: &DirHandle, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match tree.open_file(dir, OsStr::new(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let size = tree.metadata(Node::File(&file))?.size;
    let mut contents = vec![0; usize::try_from(size).unwrap_or(0)];
    let len = tree.read_at(&file, 0, &mut contents)?;
    contents.truncate(len);
    Ok(Some(contents))
}

/// Puts a file in the place of another, as programs do: on disk.
fn replace(tree: &dyn TreeBackend, dir: &DirHandle, name: &OsStr, with: &[u8]) -> io::Result<()> {
    let new = OsStr::new(NEW);
    let file = tree.create_file(dir, new, 0o644)?;
    tree.write_at(&file, 0, with)?;
    tree.sync(Node::File(&file))?;
    tree.rename(dir, new, dir, name, RenameMode::Replace)?;
    tree.sync(Node::Dir(dir))
}
