//! Layers as large as real ones get.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tar::{EntryType, Header};

use super::{Place, assert_same};
use crate::e2e::FsKind;
use crate::e2e::peak::{Measured, measure};
use crate::output;

/// However large a layer is.
const MEMORY: u64 = 64 << 20;
const SPARSE: u64 = 4 << 30;
const ENTRIES_OF_DIR: u64 = 100;
const LARGE: u64 = 10 << 30;

/// A file of 4 GiB with three bytes in it: on disk, in the archive, and where that is applied.
pub(super) fn sparse_file(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    ovl.ok(&["create", "sparse"])?;
    let root = ovl.mount(&["sparse"])?;
    let file = File::create(root.join("file"))?;
    file.set_len(SPARSE)?;
    let marks = [0, SPARSE / 2 + 12_345, SPARSE - 1];
    for at in marks {
        file.write_all_at(b"x", at)?;
    }
    file.sync_all()?;
    drop(file);
    ovl.ok(&["unmount", "sparse"])?;
    let archive = place.dir.join("sparse.tar");
    let archive_name = archive.to_string_lossy();
    ovl.ok(&["diff", "sparse", "-o", &archive_name])?;
    let len = fs::metadata(&archive)?.len();
    ensure!(len < 1 << 20, "the archive has {len} bytes");
    ovl.ok(&["import", "again", &archive_name])?;
    let (one, other) = (ovl.mount(&["sparse"])?, ovl.mount(&["again"])?);
    for file in [one.join("file"), other.join("file")] {
        assert_sparse(&file, &marks)?;
    }
    // Without reading 4 GiB for each: what it is, and where its data are.
    ovl.ok(&["unmount", "sparse"])?;
    ovl.ok(&["unmount", "again"])?;
    let again = place.dir.join("again.tar");
    ovl.ok(&["diff", "again", "-o", &again.to_string_lossy()])?;
    ensure!(
        fs::read(&archive)? == fs::read(&again)?,
        "the archive of what was applied is another"
    );
    for reader in ["tar", "bsdtar"] {
        if !["/bin", "/usr/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(reader).exists())
        {
            continue;
        }
        let dir = place.dir.join(reader);
        fs::create_dir(&dir)?;
        output(
            Command::new(reader)
                .arg("-xf")
                .arg(&archive)
                .arg("-C")
                .arg(&dir),
        )?;
        assert_sparse(&dir.join("file"), &marks)?;
    }
    ovl.ok(&["rm", "sparse", "again"])?;
    ovl.assert_clean()
}

fn assert_sparse(path: &Path, marks: &[u64]) -> Result<()> {
    let (file, metadata) = (File::open(path)?, fs::metadata(path)?);
    let (len, stored) = (metadata.len(), metadata.blocks() * 512);
    let path = path.display();
    ensure!(len == SPARSE, "{path} has {len} bytes");
    ensure!(stored < 1 << 20, "{path} takes {stored} bytes");
    for &mark in marks {
        let mut found = [0; 3];
        let from = mark.saturating_sub(1).min(SPARSE - 3);
        file.read_exact_at(&mut found, from)?;
        let at = usize::try_from(mark - from)?;
        let expected: Vec<u8> = (0..3)
            .map(|byte| if byte == at { b'x' } else { 0 })
            .collect();
        ensure!(found == expected[..], "{path} has {found:?} at {from}");
    }
    Ok(())
}

/// A layer of a million entries.
pub(super) fn many_entries(place: &Place) -> Result<()> {
    let entries = match (place.quick, place.fs) {
        (true, _) => 20_000,
        (false, FsKind::Tmpfs) => 1_000_000,
        // It is the file system's time that counts there.
        (false, _) => 100_000,
    };
    let (home, ovl) = (place.home(), place.ovl(&place.home()));
    let import = run(place, &["import", "many", "-"], |output| {
        write_many(entries, output)
    })?;
    ensure!(
        import.printed.contains(&entries.to_string()),
        "not {entries} entries: {}",
        import.printed
    );
    let archive = place.dir.join("many.tar");
    let archive = archive.to_string_lossy();
    let diff = run(place, &["diff", "many", "-o", &archive], |_| Ok(()))?;
    let size = run(place, &["size", "many"], |_| Ok(()))?;
    let removal = run(place, &["rm", "many"], |_| Ok(()))?;
    let all = [
        ("import", import),
        ("diff", diff),
        ("size", size),
        ("rm", removal),
    ];
    assert_small(&format!("{entries} entries"), &all)?;
    fs::remove_file(&*archive)?;
    ensure!(home.join("l").exists(), "no home");
    ovl.assert_clean()
}

/// One file of 10 GiB, zeros but for its ends, and one that is full of data.
pub(super) fn large_file(place: &Place) -> Result<()> {
    let [zeros, data] = match place.quick {
        true => [256 << 20, 32 << 20],
        false => [LARGE, 512 << 20],
    };
    let ovl = place.ovl(&place.home());
    let import = run(place, &["import", "large", "-"], |output| {
        write_large(zeros, data, output)
    })?;
    let archive = place.dir.join("large.tar");
    let archive = archive.to_string_lossy();
    let diff = run(place, &["diff", "large", "-o", &archive], |_| Ok(()))?;
    let len = fs::metadata(&*archive)?.len();
    ensure!(
        (data..data + (2 << 20)).contains(&len),
        "the archive has {len} bytes"
    );
    if place.quick {
        ovl.ok(&["import", "again", &archive])?;
        let (one, other) = (ovl.mount(&["large"])?, ovl.mount(&["again"])?);
        assert_same(&one, &other)?;
        ovl.ok(&["unmount", "large"])?;
        ovl.ok(&["unmount", "again"])?;
        ovl.ok(&["rm", "again"])?;
    }
    ovl.ok(&["rm", "large"])?;
    fs::remove_file(&*archive)?;
    assert_small(
        &format!("files of {zeros} and {data} bytes"),
        &[("import", import), ("diff", diff)],
    )?;
    ovl.assert_clean()
}

fn run(
    place: &Place,
    arguments: &[&str],
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Result<Measured> {
    measure(&place.ovl, &place.home(), &place.dir, arguments, write)
}

fn assert_small(what: &str, measured: &[(&str, Measured)]) -> Result<()> {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let shown: Vec<String> = measured
        .iter()
        .map(|(name, found)| format!("{name} {}", mib(found.peak)))
        .collect();
    println!("memory for {what}: {}", shown.join(", "));
    for (name, found) in measured {
        ensure!(
            found.peak <= MEMORY,
            "{name} took {}, more than {}",
            mib(found.peak),
            mib(MEMORY)
        );
    }
    Ok(())
}

/// Directories with as many files each, some of them links of another.
fn write_many(entries: u64, output: &mut dyn Write) -> io::Result<()> {
    for entry in 0..entries {
        let (dir, file) = (entry / ENTRIES_OF_DIR, entry % ENTRIES_OF_DIR);
        let dir = format!("some-directory-{dir:05}");
        match file {
            0 => write_entry(output, &dir, EntryType::Directory, "", b"")?,
            50 => {
                let first = format!("{dir}/file-number-001");
                let name = format!("{dir}/link");
                write_entry(output, &name, EntryType::Link, &first, b"")?;
            }
            _ => {
                let name = format!("{dir}/file-number-{file:03}");
                // Most are empty: a file of one byte takes a page of a tmpfs.
                let contents = if file == 1 { &b"contents"[..] } else { b"" };
                write_entry(output, &name, EntryType::Regular, "", contents)?;
            }
        }
    }
    output.write_all(&[0; 1024])
}

fn write_large(zeros: u64, data: u64, output: &mut dyn Write) -> io::Result<()> {
    write_header(output, "zeros", EntryType::Regular, "", zeros)?;
    let mut block = vec![0; 1 << 20];
    for at in (0..zeros).step_by(block.len()) {
        let is_end = at == 0 || at + block.len() as u64 == zeros;
        block[7] = u8::from(is_end);
        output.write_all(&block)?;
    }
    write_header(output, "data", EntryType::Regular, "", data)?;
    let mut state = 1_u32;
    for byte in &mut block {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    for _ in (0..data).step_by(block.len()) {
        output.write_all(&block)?;
    }
    output.write_all(&[0; 1024])
}

fn write_entry(
    output: &mut dyn Write,
    name: &str,
    kind: EntryType,
    target: &str,
    contents: &[u8],
) -> io::Result<()> {
    write_header(output, name, kind, target, contents.len() as u64)?;
    output.write_all(contents)?;
    let padding = contents.len().next_multiple_of(512) - contents.len();
    output.write_all(&[0; 512][..padding])
}

fn write_header(
    output: &mut dyn Write,
    name: &str,
    kind: EntryType,
    target: &str,
    len: u64,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_path(name)?;
    if kind == EntryType::Link {
        header.set_link_name(target)?;
    }
    header.set_mode(if kind == EntryType::Directory {
        0o755
    } else {
        0o644
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(len);
    header.set_cksum();
    output.write_all(header.as_bytes())
}
