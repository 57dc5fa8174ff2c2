//! Layers from real files of the machine.

use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::fail::{Failure, Kind};

/// What goes into a layer.
pub(super) struct Selection {
    what: &'static str,
    dirs: &'static [&'static str],
    max_bytes: u64,
}

/// Programs and libraries.
pub(super) const PROGRAMS: Selection = Selection {
    what: "programs of this machine",
    dirs: &["usr/bin", "usr/lib"],
    max_bytes: 80_000_000,
};
/// Settings.
pub(super) const SETTINGS: Selection = Selection {
    what: "settings of this machine",
    dirs: &["etc"],
    max_bytes: 20_000_000,
};

/// More of one directory tree would only take longer.
const MAX_ENTRIES: u64 = 6000;

pub(super) struct Source {
    pub(super) file: File,
    pub(super) what: String,
}

/// Writes an archive of what can be read of a selection. Everything belongs to root in it: the
/// owners of this machine mean nothing in a layer.
pub(super) fn collect(
    scratch: &Path,
    name: &str,
    selection: &Selection,
) -> Result<Source, Failure> {
    let path = scratch.join(name);
    let failed = |error| Failure::io("write", &path, &error);
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed)?;
    let output = BufWriter::with_capacity(1 << 17, file);
    let mut archive = Archive {
        builder: Builder::new(output),
        bytes: 0,
        entries: 0,
        left_out: 0,
    };
    for dir in selection.dirs {
        // Half of the room is kept for those that follow.
        let bytes_left = selection.max_bytes.saturating_sub(archive.bytes);
        let last = Some(dir) == selection.dirs.last();
        let max_bytes = archive.bytes + if last { bytes_left } else { bytes_left / 2 };
        archive
            .add_tree(dir, max_bytes, archive.entries + MAX_ENTRIES)
            .map_err(failed)?;
    }
    if archive.entries == 0 {
        return Err(Failure::new(
            Kind::Other,
            format!("no {} can be read", selection.what),
        ));
    }
    let left_out = archive.left_out;
    let output = archive.builder.into_inner().map_err(failed)?;
    let mut file = output
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.flush()
        .and_then(|()| file.seek(SeekFrom::Start(0)).map(|_| ()))
        .map_err(failed)?;
    let what = match left_out {
        0 => selection.what.to_owned(),
        count => format!("{} ({count} cannot be read)", selection.what),
    };
    Ok(Source { file, what })
}

struct Archive {
    builder: Builder<BufWriter<File>>,
    bytes: u64,
    entries: u64,
    /// What cannot be read.
    left_out: u64,
}

impl Archive {
    fn add_tree(&mut self, dir: &str, max_bytes: u64, max_entries: u64) -> std::io::Result<()> {
        let mut pending = vec![PathBuf::from(dir)];
        let mut parent = PathBuf::new();
        for component in Path::new(dir).parent().into_iter().flat_map(Path::iter) {
            parent.push(component);
            self.add_directory(&parent)?;
        }
        while let Some(path) = pending.pop() {
            let source = Path::new("/").join(&path);
            let Ok(metadata) = fs::symlink_metadata(&source) else {
                self.left_out += 1;
                continue;
            };
            if metadata.is_dir() {
                let Ok(entries) = fs::read_dir(&source) else {
                    self.left_out += 1;
                    continue;
                };
                self.append(&path, &metadata, EntryType::Directory)?;
                let mut names: Vec<_> = entries
                    .flatten()
                    .map(|entry| path.join(entry.file_name()))
                    .collect();
                names.sort();
                pending.extend(names.into_iter().rev());
            } else if self.bytes + metadata.len() > max_bytes || self.entries >= max_entries {
                // Enough is enough.
            } else if metadata.is_symlink() {
                let target = fs::read_link(&source)?;
                let mut header = header(&metadata, EntryType::Symlink, 0);
                self.builder.append_link(&mut header, &path, target)?;
                self.entries += 1;
            } else if metadata.is_file() {
                self.append(&path, &metadata, EntryType::Regular)?;
            } else {
                self.left_out += 1;
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &Path) -> std::io::Result<()> {
        let metadata = fs::metadata(Path::new("/").join(path))?;
        self.append(path, &metadata, EntryType::Directory)
    }

    fn append(&mut self, path: &Path, metadata: &Metadata, kind: EntryType) -> std::io::Result<()> {
        let mut contents = Vec::new();
        if kind == EntryType::Regular {
            // Whole, so that a file that changes meanwhile cannot break the archive.
            match fs::read(Path::new("/").join(path)) {
                Ok(read) => contents = read,
                Err(_) => {
                    self.left_out += 1;
                    return Ok(());
                }
            }
        }
        let mut header = header(metadata, kind, contents.len() as u64);
        self.builder.append_data(&mut header, path, &*contents)?;
        self.bytes += contents.len() as u64;
        self.entries += 1;
        Ok(())
    }
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(size);
    header
}
