//! Two trees as the kernel shows them, compared without any code of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

/// As many differences as an error tells.
const SHOWN: usize = 20;

/// Fails unless both trees have the same names, types, contents, owners, modes, modification times
/// (to the nanosecond), link counts, names of the same inode, devices and attributes.
pub(super) fn assert_same(one: &Path, other: &Path) -> Result<()> {
    assert_same_as_seen(one, other, |_, _| true)
}

/// As [`assert_same`], of what is left of both trees: `seen` gets each object by path, takes out
/// fields that must not count, and says whether the object counts at all.
pub(super) fn assert_same_as_seen(
    one: &Path,
    other: &Path,
    seen: impl Fn(&Path, &mut Fields) -> bool,
) -> Result<()> {
    let found = differences(one, other, seen)?;
    ensure!(
        found.is_empty(),
        "{} and {} differ in {} places: {}",
        one.display(),
        other.display(),
        found.len(),
        found[..found.len().min(SHOWN)].join("; ")
    );
    Ok(())
}

fn differences(
    one: &Path,
    other: &Path,
    seen: impl Fn(&Path, &mut Fields) -> bool,
) -> Result<Vec<String>> {
    let (mut left, mut right) = (read(one)?, read(other)?);
    for tree in [&mut left, &mut right] {
        tree.retain(|path, fields| seen(path, fields));
    }
    let paths: BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
    let mut found = Vec::new();
    for path in paths {
        let shown = format!("/{}", path.display());
        match (left.get(path), right.get(path)) {
            (Some(left), Some(right)) if left == right => {
                if !same_contents(&one.join(path), &other.join(path))? {
                    found.push(format!("{shown}: other contents"));
                }
            }
            (Some(left), Some(right)) => {
                let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
                for name in names {
                    let [left, right] = [left, right].map(|fields| fields.get(name));
                    if left != right {
                        let [left, right] =
                            [left, right].map(|value| value.map_or("none", |value| value));
                        found.push(format!("{shown}: {name} is {left} and {right}"));
                    }
                }
            }
            (Some(_), None) => found.push(format!("{shown} is missing in the second")),
            _ => found.push(format!("{shown} is missing in the first")),
        }
    }
    Ok(found)
}

/// What is told of an object, by the name of the field.
pub(super) type Fields = BTreeMap<&'static str, String>;

/// The objects of a tree by path; the root is the empty path.
fn read(root: &Path) -> Result<BTreeMap<PathBuf, Fields>> {
    let mut tree = BTreeMap::new();
    let mut linked = BTreeSet::new();
    let mut next = vec![PathBuf::new()];
    while let Some(path) = next.pop() {
        let place = root.join(&path);
        let metadata = fs::symlink_metadata(&place)
            .with_context(|| format!("cannot look at {}", place.display()))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&place)? {
                next.push(path.join(entry?.file_name()));
            }
        } else if metadata.nlink() > 1 {
            linked.insert((path.clone(), (metadata.dev(), metadata.ino())));
        }
        tree.insert(path, fields(&place, &metadata)?);
    }
    // A link count may tell of names that are in no tree, or no longer; these are here.
    let mut names: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    for (path, inode) in linked {
        names.entry(inode).or_default().push(path);
    }
    for paths in names.into_values().filter(|paths| paths.len() > 1) {
        for path in &paths {
            if let Some(fields) = tree.get_mut(path) {
                fields.insert("the inode's first name", paths[0].display().to_string());
            }
        }
    }
    Ok(tree)
}

fn fields(path: &Path, metadata: &Metadata) -> Result<Fields> {
    let mut fields = Fields::from([
        ("type and mode", format!("{:o}", metadata.mode())),
        ("owner", format!("{}:{}", metadata.uid(), metadata.gid())),
        (
            "time",
            format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()),
        ),
        ("link count", metadata.nlink().to_string()),
    ]);
    let kind = metadata.file_type();
    if kind.is_file() {
        fields.insert("size", metadata.len().to_string());
    }
    if kind.is_char_device() || kind.is_block_device() {
        fields.insert("device", metadata.rdev().to_string());
    }
    if kind.is_symlink() {
        fields.insert("target", format!("{:?}", fs::read_link(path)?));
    }
    let attributes =
        attributes(path).with_context(|| format!("attributes of {}", path.display()))?;
    fields.insert("attributes", format!("{attributes:?}"));
    Ok(fields)
}

fn attributes(path: &Path) -> rustix::io::Result<BTreeMap<CString, Vec<u8>>> {
    let names = whole(|buffer| llistxattr(path, buffer))?;
    let mut found = BTreeMap::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        found.insert(
            name.to_owned(),
            whole(|buffer| lgetxattr(path, name, buffer))?,
        );
    }
    Ok(found)
}

/// The answer of a call; nothing where the file system has no attributes.
fn whole(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    // The longest that the kernel gives.
    let mut buffer = vec![0; 64 * 1024];
    match call(&mut buffer) {
        Ok(len) => buffer.truncate(len),
        Err(Errno::NOTSUP) => buffer.clear(),
        Err(error) => return Err(error),
    }
    Ok(buffer)
}

/// Whether two objects of the same fields hold the same; what is no file holds nothing more.
fn same_contents(one: &Path, other: &Path) -> Result<bool> {
    if !fs::symlink_metadata(one)?.is_file() {
        return Ok(true);
    }
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        one.by_ref().take(1 << 20).read_to_end(&mut left)?;
        other.by_ref().take(1 << 20).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// The differences of two equal trees after this change of the second.
    fn after(change: impl Fn(&Path)) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let trees = ["one", "two"].map(|name| scratch.path().join(name));
        for tree in &trees {
            fs::create_dir_all(tree.join("dir")).unwrap();
            fs::write(tree.join("dir/file"), "contents").unwrap();
            fs::write(tree.join("dir/alone"), "contents").unwrap();
            fs::hard_link(tree.join("dir/file"), tree.join("linked")).unwrap();
        }
        change(&trees[1]);
        let made = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        for tree in &trees {
            for name in ["linked", "new", "dir/file", "dir/alone", "dir", ""] {
                if let Ok(file) = File::open(tree.join(name)) {
                    file.set_modified(made).unwrap();
                }
            }
        }
        differences(&trees[0], &trees[1], |_, _| true).unwrap()
    }

    #[test]
    fn equal_trees_have_no_differences() {
        assert_eq!(after(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_difference_is_told_by_path() {
        for (expected, change) in [
            (
                "/dir/alone: other contents",
                (|tree| {
                    fs::write(tree.join("dir/alone"), "CONTENTS").unwrap();
                }) as fn(&Path),
            ),
            ("/dir/alone: size is 8 and 1", |tree| {
                fs::write(tree.join("dir/alone"), "x").unwrap();
            }),
            ("/dir/alone: type and mode is 100644 and 100600", |tree| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(tree.join("dir/alone"), mode).unwrap();
            }),
            ("/new is missing in the first", |tree| {
                fs::write(tree.join("new"), "").unwrap();
            }),
            ("/dir/alone is missing in the second", |tree| {
                fs::remove_file(tree.join("dir/alone")).unwrap();
            }),
        ] {
            assert_eq!(after(change), [expected]);
        }
    }

    #[test]
    fn a_link_to_another_file_of_the_same_contents_is_a_difference() {
        let found = after(|tree| {
            fs::remove_file(tree.join("linked")).unwrap();
            fs::hard_link(tree.join("dir/alone"), tree.join("linked")).unwrap();
        });
        assert!(
            found.iter().any(|line| line.contains("first name")),
            "{found:?}"
        );
    }

    /// The differences of two trees that are made one after the other.
    fn between(make: impl Fn(&Path, u32)) -> Vec<String> {
        let scratch = tempfile::tempdir().unwrap();
        let trees = ["one", "two"].map(|name| scratch.path().join(name));
        for (number, tree) in (1..).zip(&trees) {
            fs::create_dir(tree).unwrap();
            make(tree, number);
            let root = File::open(tree).unwrap();
            root.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        differences(&trees[0], &trees[1], |_, _| true).unwrap()
    }

    #[test]
    fn links_to_other_places_are_different() {
        let found = between(|tree, number| symlink(number.to_string(), tree.join("x")).unwrap());
        assert!(
            found.contains(&r#"/x: target is "1" and "2""#.to_owned()),
            "{found:?}"
        );
    }

    #[test]
    fn a_time_that_differs_by_a_nanosecond_is_found() {
        let found = between(|tree, number| {
            let time = SystemTime::UNIX_EPOCH + Duration::new(5, number);
            let file = File::create(tree.join("x")).unwrap();
            file.set_modified(time).unwrap();
        });
        assert_eq!(found, ["/x: time is 5.000000001 and 5.000000002"]);
    }
}
