//! Limits that a kernel keeps, on a file system with project quotas.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Error, ImportOptions, Kernel};
use ovl_quota::{Bytes, Limits, ProjectId, Usage};
use ovl_testkit::ArchiveBuilder;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use serde_json::Value;

use super::{Ovl, Place};
use crate::e2e::FsKind;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 5 * MIB;
const PIECE: usize = 64 << 10;
/// What a layer's own directories and small files take.
const OVERHEAD: u64 = 64 << 10;

/// A home with a base of two files of 3 MiB.
fn home(place: &Place) -> Result<Ovl> {
    let ovl = place.ovl(&place.home());
    let contents = vec![7; 3 << 20];
    let archive = ArchiveBuilder::new()
        .file("one", &contents)
        .file("two", &contents)
        .finish();
    let path = place.dir.join("base.tar");
    fs::write(&path, archive)?;
    ovl.ok(&["import", "base", &path.to_string_lossy()])?;
    Ok(ovl)
}

fn writable(ovl: &Ovl, name: &str, limits: &[&str]) -> Result<()> {
    let create = ["create", name, "--parent", "base", "--writable"];
    ovl.ok(&[&create, limits].concat()).map(drop)
}

/// What `ovl quota` tells.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    project: u64,
    bytes: u64,
    bytes_limit: Option<u64>,
    inodes: u64,
    inodes_limit: Option<u64>,
}

fn told(ovl: &Ovl, layer: &str) -> Result<Option<Told>> {
    let printed: Value = serde_json::from_str(&ovl.ok(&["quota", layer, "--json"])?)?;
    let quota = &printed["quota"];
    if quota.is_null() {
        return Ok(None);
    }
    let number = |name: &str| {
        quota[name]
            .as_u64()
            .with_context(|| format!("{name}: {quota}"))
    };
    Ok(Some(Told {
        project: number("project")?,
        bytes: number("bytes")?,
        bytes_limit: quota["bytes_limit"].as_u64(),
        inodes: number("inodes")?,
        inodes_limit: quota["inodes_limit"].as_u64(),
    }))
}

fn quota(ovl: &Ovl, layer: &str) -> Result<Told> {
    told(ovl, layer)?.with_context(|| format!("{layer} has no project"))
}

/// Writes into a file until it has `most` bytes or an error comes, and gives what fitted.
fn fill(path: &Path, most: u64) -> Result<(u64, Option<io::Error>)> {
    let (piece, mut written) = (vec![9; PIECE], 0);
    let mut file = match OpenOptions::new().create(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) => return Ok((written, Some(error))),
    };
    while written < most {
        match file.write(&piece) {
            Ok(len) => written += len as u64,
            Err(error) => return Ok((written, Some(error))),
        }
    }
    // Where space is reserved late, a write that fitted can fail here.
    match file.sync_all() {
        Ok(()) => Ok((written, None)),
        Err(error) => Ok((written, Some(error))),
    }
}

/// XFS says that the disk is full, ext4 that the quota is.
#[track_caller]
fn assert_over(place: &Place, error: Option<&io::Error>) -> Result<()> {
    let wanted = match place.fs {
        FsKind::Xfs => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::QuotaExceeded,
    };
    let error = error.context("no limit was kept")?;
    ensure!(error.kind() == wanted, "{error}, not {wanted:?}");
    Ok(())
}

pub(super) fn writes_through_a_mount(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "5M"])?;
    let root = ovl.mount(&["work"])?;
    let (written, error) = fill(&root.join("large"), 2 * LIMIT)?;
    assert_over(place, error.as_ref())?;
    let least = LIMIT - OVERHEAD - PIECE as u64;
    ensure!(
        (least..=LIMIT).contains(&written),
        "{written} bytes fitted into {LIMIT}"
    );
    let told = quota(&ovl, "work")?;
    ensure!(
        told.bytes_limit == Some(LIMIT) && (written..=LIMIT).contains(&told.bytes),
        "{told:?} after {written} bytes"
    );
    // The container sees how much it has.
    let space = rustix::fs::statvfs(&root)?;
    let size = space.f_blocks * space.f_frsize;
    ensure!(size == LIMIT, "df shows {size} bytes");
    fs::remove_file(root.join("large"))?;
    let (written, error) = fill(&root.join("small"), 3 * MIB)?;
    ensure!(error.is_none(), "after {written} bytes: {error:?}");
    ovl.ok(&["unmount", "work"])?;
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

/// Whoever writes into the layer's own directory, without a mount, is at the limit as well. ext4
/// lets a process with `CAP_SYS_RESOURCE` go on; through overlayfs it does not, since overlayfs
/// writes with the rights of whoever mounted, less that one. XFS makes no exception.
pub(super) fn direct_writes(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "5M"])?;
    let file = place.home().join("work/diff/large");
    ensure!(
        capabilities(None)?
            .effective
            .contains(CapabilitySet::SYS_RESOURCE),
        "the suite lacks CAP_SYS_RESOURCE"
    );
    let (written, error) = fill(&file, 8 * MIB)?;
    match place.fs {
        FsKind::Ext4 => ensure!(
            written == 8 * MIB && error.is_none(),
            "{written} bytes, then {error:?}"
        ),
        _ => assert_over(place, error.as_ref())?,
    }
    fs::remove_file(&file)?;
    let (written, error) = without_resources(|| fill(&file, 8 * MIB))?;
    assert_over(place, error.as_ref())?;
    ensure!(
        (LIMIT - OVERHEAD - PIECE as u64..=LIMIT).contains(&written),
        "{written} bytes fitted into {LIMIT}"
    );
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

/// Does it on a thread that lacks `CAP_SYS_RESOURCE`: capabilities belong to threads.
fn without_resources<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let thread = || {
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, sets)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join())
        .map_err(|_| anyhow!("the thread panicked"))?
}

/// The store's own work on a layer is told from a full disk, for root as well.
pub(super) fn the_stores_own_writes(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "5M"])?;
    let large = ArchiveBuilder::new()
        .file("large", &vec![7; 6 << 20])
        .finish();
    let mut many = ArchiveBuilder::new();
    for number in 0..60 {
        many = many.file(&format!("file-{number}"), b"small");
    }
    let many = many.finish();
    let path = place.dir.join("large.tar");
    fs::write(&path, &large)?;
    let path = path.to_string_lossy().into_owned();

    let message = ovl.fails(8, &["apply", "work", &path])?;
    for part in ["quota", "5 MiB", "work"] {
        ensure!(message.contains(part), "no {part} in {message:?}");
    }
    let store = Overlay2::open(Kernel::host(), &ovl.home, ovl_driver::OpenOptions::new())?;
    for (archive, limits) in [
        (&large, Limits::UNLIMITED.bytes(Some(Bytes::new(LIMIT)))),
        (&many, Limits::UNLIMITED.inodes(Some(50))),
    ] {
        store.set_limits(&"work".parse()?, limits)?;
        let project = quota(&ovl, "work")?.project;
        let options = ImportOptions::new();
        let applied = store.apply(&"work".parse()?, &archive[..], options, &mut |_| {});
        let usage = over_quota(applied, project)?;
        ensure!(usage.limits == limits, "{usage}, not {limits}");
        let changes = store.changes(&"work".parse()?, &ovl_driver::Base::Parent)?;
        ensure!(changes.is_empty(), "{changes:?} is left");
        let after = quota(&ovl, "work")?;
        ensure!(
            after.project == project && after.bytes < OVERHEAD,
            "{after:?} is left"
        );
    }
    drop(store);
    ovl.ok(&["quota", "work", "--size", "20M", "--inodes", "none"])?;
    ovl.ok(&["apply", "work", &path])?;
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

fn over_quota<T>(result: Result<T, Error>, wanted: u64) -> Result<Usage> {
    match result {
        Err(Error::OverQuota { project, usage, .. }) if u64::from(project.get()) == wanted => {
            Ok(usage)
        }
        Err(error) => Err(error).context("not over the quota"),
        Ok(_) => Err(anyhow!("it fitted")),
    }
}

pub(super) fn inodes(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--inodes", "50"])?;
    let before = quota(&ovl, "work")?;
    let root = ovl.mount(&["work"])?;
    let mut made = 0;
    let error = loop {
        let made_one = match made % 3 {
            0 => File::create(root.join(format!("file-{made}"))).map(drop),
            1 => fs::create_dir(root.join(format!("dir-{made}"))),
            _ => std::os::unix::fs::symlink("x", root.join(format!("link-{made}"))),
        };
        match made_one {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        ensure!(made < 200, "the limit of 50 inodes is not kept");
    };
    assert_over(place, Some(&error))?;
    let full = quota(&ovl, "work")?;
    ensure!(
        full.inodes_limit == Some(50) && full.inodes <= 50,
        "{full:?}"
    );
    // The kernel keeps some directories for its own work.
    ensure!(
        (40..50).contains(&made) && before.inodes + made <= 50,
        "{made} inodes fitted after {before:?}"
    );
    fs::remove_file(root.join("file-0"))?;
    fs::write(root.join("again"), "")?;
    ovl.ok(&["unmount", "work"])?;
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

pub(super) fn copy_up(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "5M"])?;
    let root = ovl.mount(&["work"])?;
    let append = |name: &str| {
        let mut file = OpenOptions::new().append(true).open(root.join(name))?;
        file.write_all(b"more")
    };
    append("one")?;
    let told = quota(&ovl, "work")?;
    ensure!(
        (3 * MIB..4 * MIB).contains(&told.bytes),
        "{told:?} after a file of 3 MiB is copied up"
    );
    assert_over(place, append("two").err().as_ref())?;
    ensure!(
        fs::read(root.join("two"))? == vec![7; 3 << 20],
        "the file below has changed"
    );
    ovl.ok(&["unmount", "work"])?;
    let changes = ovl.ok(&["changes", "work"])?;
    ensure!(changes == "C /one\n", "{changes:?}");
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

pub(super) fn live_changes(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "2M"])?;
    let root = ovl.mount(&["work"])?;
    let file = root.join("large");
    let project = quota(&ovl, "work")?.project;
    let mut total = 0;
    for limit in [2, 6] {
        ovl.ok(&["quota", "work", "--size", &format!("{limit}M")])?;
        let (written, error) = fill(&file, 20 * MIB)?;
        assert_over(place, error.as_ref())?;
        total += written;
        let limit = limit * MIB;
        ensure!(
            (limit - OVERHEAD - PIECE as u64..=limit).contains(&total),
            "{total} bytes fitted into {limit}"
        );
    }
    // Less than there is: nothing goes, nothing more fits.
    ovl.ok(&["quota", "work", "--size", "1M"])?;
    let (written, error) = fill(&file, MIB)?;
    assert_over(place, error.as_ref())?;
    ensure!(written == 0, "{written} bytes fitted");
    ensure!(fs::metadata(&file)?.len() == total, "something has gone");
    ovl.ok(&["quota", "work", "--size", "none"])?;
    let (written, error) = fill(&file, 10 * MIB)?;
    ensure!(error.is_none(), "after {written} bytes: {error:?}");
    ensure!(quota(&ovl, "work")?.project == project, "another project");
    ovl.ok(&["unmount", "work"])?;
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

pub(super) fn usage(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "100M"])?;
    let root = ovl.mount(&["work"])?;
    for number in 0..20 {
        let dir = root.join(format!("dir-{number}"));
        fs::create_dir(&dir)?;
        fs::write(dir.join("file"), vec![1; number * 7000])?;
        fs::hard_link(dir.join("file"), dir.join("linked"))?;
        std::os::unix::fs::symlink("file", dir.join("link"))?;
    }
    fs::remove_file(root.join("two"))?;
    ovl.ok(&["unmount", "work"])?;
    let layer = place.home().join("work");
    File::open(&layer)?.sync_all()?;
    rustix::fs::syncfs(File::open(&layer)?)?;
    let mut seen = BTreeSet::new();
    let bytes = disk_usage(&layer, &mut seen)?;
    let told = quota(&ovl, "work")?;
    ensure!(
        (told.bytes, told.inodes) == (bytes, seen.len() as u64),
        "{told:?}, but {bytes} bytes in {} inodes",
        seen.len()
    );
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

/// The bytes on disk of what is at and below a path, each inode once.
fn disk_usage(path: &Path, seen: &mut BTreeSet<u64>) -> Result<u64> {
    let found = fs::symlink_metadata(path)?;
    let mut bytes = match seen.insert(found.ino()) {
        true => found.blocks() * 512,
        false => 0,
    };
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_usage(&entry?.path(), seen)?;
        }
    }
    Ok(bytes)
}

pub(super) fn ids_after_removal(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    for name in ["first", "second", "third"] {
        writable(&ovl, name, &["--size", "5M", "--inodes", "100"])?;
        fs::write(place.home().join(name).join("diff/file"), vec![1; 100_000])?;
    }
    let [first, second, third] = ["first", "second", "third"].map(|name| quota(&ovl, name));
    let (first, second, third) = (first?, second?, third?);
    ensure!(
        [second.project, third.project] == [first.project + 1, first.project + 2],
        "{first:?}, {second:?}, {third:?}"
    );
    ovl.ok(&["rm", "second"])?;
    let freed = usage_of(&ovl, second.project)?;
    ensure!(freed.limits.is_unlimited(), "{freed} is left");
    // XFS frees files when it gets round to it; their project is not given away before.
    rustix::fs::syncfs(File::open(place.home())?)?;
    let mut waited = 0;
    while !usage_of(&ovl, second.project)?.is_empty() {
        ensure!(waited < 600, "the files of the layer still count");
        std::thread::sleep(std::time::Duration::from_millis(50));
        waited += 1;
    }
    writable(&ovl, "fourth", &[])?;
    let fourth = quota(&ovl, "fourth")?;
    ensure!(
        (fourth.project, fourth.bytes_limit, fourth.inodes_limit) == (second.project, None, None),
        "{fourth:?} after {second:?}"
    );
    for (name, before) in [("first", first), ("third", third)] {
        let now = quota(&ovl, name)?;
        ensure!(
            (now.project, now.bytes_limit, now.inodes_limit)
                == (before.project, before.bytes_limit, before.inodes_limit),
            "{now:?} after {before:?}"
        );
    }
    ovl.ok(&["rm", "first", "third", "fourth", "base"])?;
    ovl.assert_clean()
}

fn usage_of(ovl: &Ovl, project: u64) -> Result<Usage> {
    let project = ProjectId::new(u32::try_from(project)?).context("0 is no project")?;
    Ok(Kernel::host().quota().usage(&ovl.home, project)?)
}

pub(super) fn no_id_twice(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    let (workers, each) = (4, if place.quick { 5 } else { 20 });
    // Each command is a process that finds the ids anew.
    std::thread::scope(|scope| {
        let ovl = &ovl;
        let work = |worker| {
            move || -> Result<()> {
                for number in 0..each {
                    let name = format!("layer-{worker}-{number}");
                    writable(ovl, &name, &["--size", "5M"])?;
                    if number % 2 == 1 {
                        ovl.ok(&["rm", &name])?;
                    }
                }
                Ok(())
            }
        };
        let running: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(work(worker)))
            .collect();
        running
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow!("it panicked"))?)
    })?;
    // Another home of the same file system takes none of them.
    let other = place.ovl(&place.dir.join("other"));
    other.ok(&["create", "layer", "--writable"])?;
    let mut seen = BTreeSet::from([quota(&other, "layer")?.project]);
    for worker in 0..workers {
        for number in (0..each).step_by(2) {
            let told = quota(&ovl, &format!("layer-{worker}-{number}"))?;
            ensure!(told.bytes_limit == Some(LIMIT), "{told:?}");
            ensure!(seen.insert(told.project), "{told:?} is not alone");
        }
    }
    ovl.ok(&["check"])?;
    Ok(())
}

/// Docker takes such a limit for none.
pub(super) fn one_byte(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &[])?;
    let root = ovl.mount(&["work"])?;
    ovl.ok(&["quota", "work", "--size", "1"])?;
    let block = match place.fs {
        FsKind::Ext4 => 1024,
        _ => u64::try_from(rustix::param::page_size())?,
    };
    let told = quota(&ovl, "work")?;
    let limit = told.bytes_limit.context("no limit")?;
    ensure!(limit > 0 && limit <= block, "{told:?}");
    let (written, error) = fill(&root.join("file"), MIB)?;
    assert_over(place, error.as_ref())?;
    ensure!(written <= 2 * PIECE as u64, "{written} bytes fitted");
    ovl.ok(&["unmount", "work"])?;
    ovl.ok(&["rm", "work", "base"])?;
    ovl.assert_clean()
}

pub(super) fn base_and_range(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    ovl.fails(7, &["init", "--project-base", "4294967294"])?;
    ovl.ok(&["init", "--project-base", "70000"])?;
    for (name, wanted) in [("first", 70_002), ("second", 70_003)] {
        ovl.ok(&["create", name, "--writable", "--size", "5M"])?;
        let told = quota(&ovl, name)?;
        ensure!(told.project == wanted, "{told:?}, not {wanted}");
    }
    // The project of the home itself is the base where none is set.
    let home = place.dir.join("tagged");
    fs::create_dir(&home)?;
    let kernel = Kernel::host();
    kernel
        .quota()
        .assign_project(&home, ProjectId::new(80_000))?;
    let tagged = place.ovl(&home);
    let message = tagged.fails(6, &["create", "layer", "--writable", "--size", "5M"])?;
    ensure!(message.contains("chattr -P"), "{message}");
    // As `chattr -P` does, which the message names.
    let dir = File::open(&home)?;
    let mut flags = rustix::fs::ioctl_getflags(&dir)?;
    flags.remove(rustix::fs::IFlags::PROJECT_INHERIT);
    rustix::fs::ioctl_setflags(&dir, flags)?;
    tagged.ok(&["create", "layer", "--writable", "--size", "5M"])?;
    let told = quota(&tagged, "layer")?;
    ensure!(told.project == 80_002, "{told:?}");
    ovl.ok(&["rm", "first", "second"])?;
    ovl.assert_clean()
}

pub(super) fn mounted_without(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    ovl.ok(&["create", "plain", "--parent", "base"])?;
    let root = ovl.mount(&["plain"])?;
    let (written, error) = fill(&root.join("file"), 8 * MIB)?;
    ensure!(error.is_none(), "after {written} bytes: {error:?}");
    // A new process looks for ids in a home with an overlay in it.
    writable(&ovl, "work", &["--size", "5M"])?;
    writable(&ovl, "next", &[])?;
    let (work, next) = (quota(&ovl, "work")?, quota(&ovl, "next")?);
    ensure!(work.project != next.project, "{work:?}, {next:?}");
    ensure!(told(&ovl, "plain")?.is_none(), "a project appeared");
    let status = ovl.ok(&["status", "--json"])?;
    ensure!(status.contains("project quotas are enforced"), "{status}");
    ovl.fails(5, &["quota", "plain", "--size", "5M"])?;
    ovl.ok(&["unmount", "plain"])?;
    // Unmounted, it moves into a project of its own, contents and all.
    ovl.fails(8, &["quota", "plain", "--size", "5M"])?;
    ovl.ok(&["quota", "plain", "--size", "10M"])?;
    let moved = quota(&ovl, "plain")?;
    ensure!(
        (8 * MIB..9 * MIB).contains(&moved.bytes)
            && ![work.project, next.project].contains(&moved.project),
        "{moved:?}"
    );
    let root = ovl.mount(&["plain"])?;
    let (_, error) = fill(&root.join("file"), 8 * MIB)?;
    assert_over(place, error.as_ref())?;
    ovl.ok(&["unmount", "plain"])?;
    ovl.ok(&["rm", "plain", "work", "next", "base"])?;
    ovl.assert_clean()
}

/// A full disk is not the fault of a limit that is far away.
pub(super) fn full_disk(place: &Place) -> Result<()> {
    let ovl = home(place)?;
    writable(&ovl, "work", &["--size", "1G"])?;
    let store = Overlay2::open(Kernel::host(), &ovl.home, ovl_driver::OpenOptions::new())?;
    let large = ArchiveBuilder::new()
        .file("large", &vec![7; 16 << 20])
        .finish();
    let filler = File::create(place.dir.join("filler"))?;
    fill_disk(&filler, 8 * MIB)?;
    let options = ImportOptions::new();
    let applied = store.apply(&"work".parse()?, &large[..], options, &mut |_| {});
    let error = applied.err().context("it fitted")?;
    ensure!(
        error.kind() == ovl_driver::ErrorKind::NoSpace && !matches!(error, Error::OverQuota { .. }),
        "{error:?}"
    );
    drop(filler);
    fs::remove_file(place.dir.join("filler"))?;
    rustix::fs::syncfs(File::open(&place.dir)?)?;
    let options = ImportOptions::new();
    store.apply(&"work".parse()?, &large[..], options, &mut |_| {})?;
    let made = store.create_writable(&CreateLayer::new("more".parse()?));
    made.context("the store goes on")?;
    drop(store);
    ovl.ok(&["rm", "work", "more", "base"])?;
    ovl.assert_clean()
}

/// Gives a file all of the disk but the last bytes.
fn fill_disk(filler: &File, left: u64) -> Result<()> {
    let (mut len, mut piece) = (0, 256 * MIB);
    while piece >= MIB {
        match rustix::fs::fallocate(filler, rustix::fs::FallocateFlags::empty(), len, piece) {
            Ok(()) => len += piece,
            Err(rustix::io::Errno::NOSPC) => piece /= 2,
            Err(error) => return Err(error).context("cannot fill the disk"),
        }
    }
    ensure!(len > left, "the disk has only {len} bytes");
    Ok(filler.set_len(len - left)?)
}
