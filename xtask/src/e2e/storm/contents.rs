//! Archives and writes that follow from a number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, Error};
use ovl_layout::LayerId;
use ovl_testkit::ArchiveBuilder;

use crate::e2e::random::Random;

/// The files that a layer shows: length and hash by path.
pub(super) type Files = BTreeMap<String, (u64, u64)>;

const DIRS: u64 = 3;
const FILES: u64 = 4;
const OPAQUE: &str = ".wh..wh..opq";

enum Entry {
    Dir(String),
    File(String, Vec<u8>),
    Link(String, String),
    /// Hides what is below in a directory; the empty name is the root.
    Opaque(String),
    Whiteout(String, String),
}

fn entries(seed: u64) -> Vec<Entry> {
    let mut random = Random::new(seed);
    let mut entries = Vec::new();
    if random.one_in(16) {
        entries.push(Entry::Opaque(String::new()));
    }
    for dir in 0..DIRS {
        let dir = format!("d{dir}");
        entries.push(Entry::Dir(dir.clone()));
        if random.one_in(8) {
            entries.push(Entry::Opaque(dir.clone()));
        }
        for file in 0..FILES {
            let name = format!("f{file}");
            match random.below(5) {
                0 => entries.push(Entry::Whiteout(dir.clone(), name)),
                1 | 2 => {
                    let path = format!("{dir}/{name}");
                    entries.push(Entry::File(path.clone(), bytes(&mut random)));
                    if random.one_in(6) {
                        entries.push(Entry::Link(format!("{dir}/link-{name}"), path));
                    }
                }
                _ => {}
            }
        }
    }
    entries
}

/// Mostly some kilobytes.
fn bytes(random: &mut Random) -> Vec<u8> {
    let len = match random.below(12) {
        0 => 0,
        1 => 200_000,
        _ => random.below(20_000),
    };
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 8);
    while (bytes.len() as u64) < len {
        bytes.extend_from_slice(&random.next().to_ne_bytes());
    }
    bytes
}

fn seen(bytes: &[u8]) -> (u64, u64) {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    (bytes.len() as u64, hasher.finish())
}

/// A layer archive.
pub(super) fn archive(seed: u64) -> Vec<u8> {
    let mut archive = ArchiveBuilder::new();
    for entry in entries(seed) {
        archive = match entry {
            Entry::Dir(path) => archive.dir(&path, 0o755),
            Entry::File(path, bytes) => archive.file(&path, &bytes),
            Entry::Link(path, target) => archive.hard_link(&path, &target),
            Entry::Opaque(dir) if dir.is_empty() => archive.file(OPAQUE, b""),
            Entry::Opaque(dir) => archive.file(&format!("{dir}/{OPAQUE}"), b""),
            Entry::Whiteout(dir, name) => archive.file(&format!("{dir}/.wh.{name}"), b""),
        };
    }
    archive.finish()
}

/// What is to be seen once [`archive`] is on top of `files`.
pub(super) fn archived(seed: u64, files: &mut Files) {
    for entry in entries(seed) {
        match entry {
            Entry::Dir(_) => {}
            Entry::File(path, bytes) => {
                files.insert(path, seen(&bytes));
            }
            Entry::Link(path, target) => {
                if let Some(&file) = files.get(&target) {
                    files.insert(path, file);
                }
            }
            Entry::Opaque(dir) => files.retain(|path, _| !path.starts_with(&dir)),
            Entry::Whiteout(dir, name) => {
                files.remove(&format!("{dir}/{name}"));
            }
        }
    }
}

/// Changes to single files, `None` for one that goes.
fn writes(seed: u64) -> Vec<(String, Option<Vec<u8>>)> {
    let mut random = Random::new(seed);
    let count = 1 + random.below(6);
    let mut one = || {
        let path = format!("d{}/f{}", random.below(DIRS), random.below(FILES));
        let contents = (!random.one_in(4)).then(|| bytes(&mut random));
        (path, contents)
    };
    (0..count).map(|_| one()).collect()
}

/// Makes the changes in a mounted layer.
pub(super) fn write(seed: u64, root: &Path) -> io::Result<()> {
    for (path, contents) in writes(seed) {
        let path = root.join(path);
        // Never through a name that others share.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(contents) = contents {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(&path, contents)?;
        }
    }
    Ok(())
}

/// What is to be seen once [`write()`] has been there.
pub(super) fn written(seed: u64, files: &mut Files) {
    for (path, contents) in writes(seed) {
        match contents {
            None => files.remove(&path),
            Some(contents) => files.insert(path, seen(&contents)),
        };
    }
}

/// The files that [`write()`] changes.
pub(super) fn touched(seed: u64) -> BTreeSet<String> {
    writes(seed).into_iter().map(|(path, _)| path).collect()
}

/// A hash of the archive of what a layer changes.
pub(super) fn digest(store: &Overlay2, id: &LayerId) -> std::result::Result<u64, Error> {
    let mut hashed = Hashed(DefaultHasher::new());
    store.diff(id, &Base::Parent, &mut hashed)?;
    Ok(hashed.0.finish())
}

struct Hashed(DefaultHasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The files in an archive of all that a layer shows.
pub(super) fn read(archive: &[u8]) -> Result<Files> {
    let mut files = Files::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                files.insert(path, seen(&bytes));
            }
            tar::EntryType::Link => {
                let target = entry.link_name()?.context("a link to nothing")?;
                let target = files.get(&*target.to_string_lossy());
                let target = *target.context("a link to what is not in the archive")?;
                files.insert(path, target);
            }
            _ => {}
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_shows_what_its_number_says() -> Result<()> {
        let hides = |entry: &Entry| matches!(entry, Entry::Opaque(_) | Entry::Whiteout(..));
        let seed = (0..).find(|&seed| !entries(seed).iter().any(hides));
        let seed = seed.context("there are such numbers")?;
        let mut files = Files::new();
        archived(seed, &mut files);
        assert_eq!(read(&archive(seed))?, files);
        Ok(())
    }
}
