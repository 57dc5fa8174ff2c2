//! What a program might do to a mounted root file system.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use crate::fail::Failure;

pub(super) struct Edits {
    /// In words.
    pub(super) what: Vec<String>,
    /// Lines that the list of changes must have.
    pub(super) expected: Vec<String>,
}

/// How many objects of the tree are looked at to find some to change.
const MAX_SEEN: usize = 20_000;

pub(super) fn edit(root: &Path) -> Result<Edits, Failure> {
    let mut edits = Edits {
        what: Vec::new(),
        expected: Vec::new(),
    };
    let found = Found::look(root).map_err(|error| Failure::io("look around in", root, &error))?;
    edits
        .make(root, &found)
        .map_err(|error| Failure::io("change", root, &error))?;
    Ok(edits)
}

impl Edits {
    fn note(&mut self, what: &str, lines: &[(char, &Path)]) {
        self.what.push(what.to_owned());
        let line =
            |(kind, path): &(char, &Path)| format!("{kind} /{}", ovl_diff::EscapedPath(path));
        self.expected.extend(lines.iter().map(line));
    }

    fn make(&mut self, root: &Path, found: &Found) -> io::Result<()> {
        let at = |path: &Path| root.join(path);
        let mut files = found.files.iter();
        if let Some(path) = files.next() {
            let mut file = fs::File::options().append(true).open(at(path))?;
            file.write_all(b"\nappended through the mount\n")?;
            self.note("a file appended to", &[('C', path)]);
        }
        if let Some(path) = files.next() {
            fs::remove_file(at(path))?;
            self.note("one deleted", &[('D', path)]);
        }
        if let Some(path) = files.next() {
            let mut name = path.as_os_str().to_owned();
            name.push(".renamed");
            let renamed = PathBuf::from(name);
            fs::rename(at(path), at(&renamed))?;
            self.note("one renamed", &[('D', path), ('A', &renamed)]);
        }
        if let Some(path) = files.next() {
            let mode = fs::metadata(at(path))?.permissions().mode();
            fs::set_permissions(
                at(path),
                fs::Permissions::from_mode((mode & 0o7777) ^ 0o111),
            )?;
            self.note("one with another mode", &[('C', path)]);
        }
        if let Some(path) = &found.directory {
            fs::remove_dir_all(at(path))?;
            fs::create_dir(at(path))?;
            fs::write(at(&path.join("instead")), "all there is now\n")?;
            self.note(
                "a directory replaced",
                &[('C', path), ('A', &path.join("instead"))],
            );
        }
        let new = Path::new("ovl-demo");
        fs::create_dir(at(new))?;
        fs::write(at(&new.join("file")), "made through the mount\n")?;
        fs::hard_link(at(&new.join("file")), at(&new.join("hard-link")))?;
        symlink("file", at(&new.join("symbolic-link")))?;
        let paths = [
            new.to_owned(),
            new.join("file"),
            new.join("hard-link"),
            new.join("symbolic-link"),
        ];
        let lines: Vec<_> = paths.iter().map(|path| ('A', path.as_path())).collect();
        self.note(
            "a directory with a file, a hard and a symbolic link",
            &lines,
        );
        let set = rustix::fs::setxattr(
            at(&new.join("file")),
            "user.ovl",
            b"demo\n\0",
            XattrFlags::empty(),
        );
        if set.is_ok() {
            self.note("an attribute", &[]);
        }
        Ok(())
    }
}

/// Objects that can be changed without getting in each other's way.
struct Found {
    files: Vec<PathBuf>,
    directory: Option<PathBuf>,
}

impl Found {
    fn look(root: &Path) -> io::Result<Self> {
        let mut found = Self {
            files: Vec::new(),
            directory: None,
        };
        let mut pending = vec![PathBuf::new()];
        let mut seen = 0;
        while let Some(path) = pending.pop() {
            let Ok(entries) = fs::read_dir(root.join(&path)) else {
                continue;
            };
            let mut entries: Vec<_> = entries.flatten().collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            seen += entries.len();
            let is_file =
                |entry: &&fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
            let mut files = entries
                .iter()
                .filter(is_file)
                .map(|entry| path.join(entry.file_name()));
            let is_leaf = entries
                .iter()
                .all(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
            if found.files.len() < 4 {
                found.files.extend(files.by_ref().take(2));
            } else if is_leaf && files.next().is_some() && path.components().count() > 1 {
                found.directory = Some(path);
                return Ok(found);
            }
            if seen > MAX_SEEN {
                break;
            }
            let dirs = entries
                .iter()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(dirs.map(|entry| path.join(entry.file_name())));
        }
        found.files.truncate(4);
        Ok(found)
    }
}
