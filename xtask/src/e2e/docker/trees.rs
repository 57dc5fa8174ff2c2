//! What Docker shows, as directories, and compared with what the store shows.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::compare::{Fields, assert_same_as_seen};
use super::daemon::Docker;
use crate::output;

/// What Docker adds to every container in the layer between it and its image.
pub(super) const ADDED: [&str; 8] = [
    ".dockerenv",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
];

/// Directories that get a new time by that; the root has no entry in Docker's archives.
pub(super) const TOUCHED: [&str; 2] = ["dev", "etc"];

/// Unpacks an archive with GNU tar.
pub(super) fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]);
    output(tar.arg(archive).arg("-C").arg(dir)).map(drop)
}

/// What a container shows, as a directory beside the archive that Docker made of it.
pub(super) fn exported(docker: &Docker, container: &str, dir: &Path) -> Result<PathBuf> {
    let archive = dir.join(format!("{container}.tar"));
    docker.ok(&["export", "--output", &archive.to_string_lossy(), container])?;
    let tree = dir.join(container);
    unpack(&archive, &tree)?;
    Ok(tree)
}

/// The archives of an image's layers, the lowest first, in a new directory.
pub(super) fn saved(docker: &Docker, image: &str, dir: &Path) -> Result<Vec<PathBuf>> {
    let archive = dir.with_extension("tar");
    docker.ok(&["save", "--output", &archive.to_string_lossy(), image])?;
    unpack(&archive, dir)?;
    let manifest: Value = serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?;
    let layers = manifest[0]["Layers"].as_array().context("no layers")?;
    let layers = layers.iter().filter_map(Value::as_str);
    Ok(layers.map(|name| dir.join(name)).collect())
}

/// The digests of the archives of an image's layers.
pub(super) fn layer_digests(docker: &Docker, image: &str, dir: &Path) -> Result<Vec<String>> {
    let archives = saved(docker, image, dir)?;
    archives.iter().map(|archive| digest(archive)).collect()
}

/// The digests of the archives that Docker makes of containers, in a new directory.
pub(super) fn export_digests(
    docker: &Docker,
    containers: &[&str],
    dir: &Path,
) -> Result<Vec<String>> {
    fs::create_dir(dir)?;
    let digests = containers.iter().map(|name| {
        let archive = dir.join(name);
        docker.ok(&["export", "--output", &archive.to_string_lossy(), name])?;
        digest(&archive)
    });
    digests.collect()
}

fn digest(file: &Path) -> Result<String> {
    let printed = output(Command::new("sha256sum").arg(file))?;
    Ok(printed.split(' ').next().unwrap_or_default().to_owned())
}

/// Fails unless a container's mounted tree is the one that Docker has exported.
pub(super) fn assert_container(mounted: &Path, exported: &Path) -> Result<()> {
    assert_same_as_seen(mounted, exported, as_exported)
}

/// The same of an image's mounted tree and the export of a new container of it.
pub(super) fn assert_image(mounted: &Path, exported: &Path) -> Result<()> {
    for name in ADDED {
        let there = fs::symlink_metadata(exported.join(name)).is_ok();
        ensure!(there, "Docker has not added /{name}");
    }
    assert_same_as_seen(mounted, exported, |path, fields| {
        if TOUCHED.iter().any(|name| path == Path::new(name)) {
            fields.remove("time");
        }
        !ADDED.iter().any(|name| path == Path::new(name)) && as_exported(path, fields)
    })
}

/// What Docker's archive of a tree keeps: times to the second, which names are the same file, and no
/// attributes but capabilities.
fn as_exported(path: &Path, fields: &mut Fields) -> bool {
    fields.remove("link count");
    for (name, value) in fields.iter_mut() {
        match *name {
            "time" => value.truncate(value.find('.').unwrap_or(value.len())),
            "attributes" if !value.contains("security.capability") => value.clear(),
            _ => {}
        }
    }
    !path.as_os_str().is_empty()
}

/// Fails unless two archives of one layer have the same names with the same metadata and contents.
/// Both are unpacked below the directory, with whiteouts as the files that they are in an archive.
/// Docker's alone has the `needless` markers, which hide nothing.
pub(super) fn assert_same_archives(
    ours: &Path,
    theirs: &Path,
    needless: &[&str],
    dir: &Path,
) -> Result<()> {
    let trees = ["ours", "theirs"].map(|name| dir.join(name));
    for (archive, tree) in [ours, theirs].iter().zip(&trees) {
        unpack(archive, tree)?;
    }
    for name in needless {
        ensure!(trees[1].join(name).exists(), "Docker has no {name}");
    }
    let hides = |path: &Path| !needless.iter().any(|name| path == Path::new(name));
    assert_same_as_seen(&trees[0], &trees[1], |path, fields| {
        // Of a whiteout only the name counts.
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b".wh.") {
            fields.clear();
        }
        !path.as_os_str().is_empty() && hides(path)
    })?;
    for tree in trees {
        fs::remove_dir_all(tree)?;
    }
    Ok(())
}

/// Fails unless an archive of the policy `docker` has the bytes of Docker's own, where that is not
/// wrong: without the `needless` markers and link names of whiteouts, and without what Docker wrote
/// before version 24: types in modes, and the names that owners have on the host.
pub(super) fn assert_same_bytes(ours: &Path, theirs: &Path, needless: &[&str]) -> Result<()> {
    let (ours, theirs) = (fs::read(ours)?, put_right(&fs::read(theirs)?, needless)?);
    let blocks = ours.chunks(512).zip(theirs.chunks(512));
    for (number, (one, other)) in blocks.enumerate() {
        let text = |block: &[u8]| String::from_utf8_lossy(block).replace('\0', " ");
        ensure!(
            one == other,
            "block {number} is {:?}, Docker's {:?}",
            text(one),
            text(other)
        );
    }
    ensure!(
        ours.len() == theirs.len(),
        "{} bytes, Docker's {}",
        ours.len(),
        theirs.len()
    );
    Ok(())
}

/// Docker's archive as it should be.
fn put_right(archive: &[u8], needless: &[&str]) -> Result<Vec<u8>> {
    const MODE: Range<usize> = 100..107;
    const CHECKSUM: Range<usize> = 148..156;
    const LINK: Range<usize> = 157..257;
    const OWNERS: Range<usize> = 265..329;
    let (mut right, mut at) = (Vec::new(), 0);
    while let Some(header) = archive.get(at..at + 512) {
        let mut header = tar::Header::from_byte_slice(header).clone();
        let name = header.path_bytes().into_owned();
        if name.is_empty() {
            break;
        }
        let len = usize::try_from(header.entry_size()?)?.next_multiple_of(512);
        let contents = archive.get(at + 512..at + 512 + len);
        at += 512 + len;
        if needless.iter().any(|needless| needless.as_bytes() == name) {
            continue;
        }
        let mode = header.mode()? & 0o7777;
        let last = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let bytes = header.as_mut_bytes();
        bytes[MODE].copy_from_slice(format!("{mode:07o}").as_bytes());
        bytes[OWNERS].fill(0);
        if last.starts_with(b".wh.") {
            bytes[LINK].fill(0);
        }
        bytes[CHECKSUM].fill(b' ');
        let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
        bytes[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        right.extend_from_slice(header.as_bytes());
        right.extend_from_slice(contents.context("Docker's archive is cut short")?);
    }
    right.extend_from_slice(&[0; 1024]);
    Ok(right)
}
