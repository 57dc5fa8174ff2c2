use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Durability, Kernel, OpenOptions};
use ovl_layout::LayerId;
use ovl_testkit::conformance::Skip;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use serde_json::Value;

use super::{Ovl, Place};
use crate::e2e::mounts::mounts_below;

const DEPTH: usize = 128;

const STRATEGIES: [&str; 4] = [
    "layers-by-fd",
    "lowerdir-plus",
    "mount-absolute",
    "mount-relative",
];

/// Bytes that mean something to the kernel, to a shell or to whoever prints a path.
const ODD_NAMES: [&str; 7] = [
    "a:b",
    "a,upperdir=b",
    "a\\b\\:c",
    "a\"b\"'c'",
    " a b ",
    "a\nb",
    "%41%s$HOME",
];

/// Homes whose absolute paths have this many bytes; the second is longer than any data string of
/// more than a few layers allows.
const HOME_LENS: [usize; 2] = [30, 200];

/// A link to a directory whose path has exactly this many bytes would be resolved, so the directory
/// itself has it.
fn home_of_len(place: &Place, len: usize) -> Result<PathBuf> {
    // The scratch directory may be longer than the shorter length, so these stand at the root of
    // the mount namespace's own tmpfs.
    let base = place
        .dir
        .parent()
        .context("the scratch directory has a parent")?;
    let mut path = base.to_string_lossy().into_owned();
    ensure!(
        path.len() + 2 <= len,
        "the scratch path {path} is longer than {len} bytes"
    );
    path.push('/');
    while path.len() < len {
        // Components of at most 100 bytes.
        let left = len - path.len();
        let take = if left > 101 { 100 } else { left };
        path.push_str(&"h".repeat(take));
        if path.len() < len {
            path.push('/');
        }
    }
    ensure!(path.len() == len, "{path} has {} bytes", path.len());
    let home = PathBuf::from(path);
    if let Some(parent) = home.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(home)
}

fn remove_home(place: &Place, home: &Path) -> Result<()> {
    let base = place
        .dir
        .parent()
        .context("the scratch directory has a parent")?;
    let first = home
        .strip_prefix(base)?
        .components()
        .next()
        .context("a home below it")?;
    fs::remove_dir_all(base.join(first))?;
    Ok(())
}

/// A base and `depth` layers on it; each adds a file and replaces a common one. In this process: a
/// program for each layer would take longer than all that is tested.
fn build(ovl: &Ovl, depth: usize) -> Result<()> {
    let options = OpenOptions::new().create(true).durability(Durability::None);
    let store = Overlay2::open(Kernel::host(), &ovl.home, options)?;
    let mut parent = None;
    for level in 0..=depth {
        let name = format!("s{level}");
        let id: LayerId = name.parse()?;
        store.create(&CreateLayer::new(id.clone()).parent(parent.replace(id)))?;
        let diff = ovl.home.join(&name).join("diff");
        fs::write(diff.join(format!("layer-{level}")), &name)?;
        fs::write(diff.join("top"), &name)?;
    }
    Ok(())
}

fn assert_shows(path: &Path, depth: usize) -> Result<()> {
    for level in 0..=depth {
        let found = fs::read_to_string(path.join(format!("layer-{level}")))?;
        ensure!(
            found == format!("s{level}"),
            "layer {level} shows {found:?}"
        );
    }
    let top = fs::read_to_string(path.join("top"))?;
    ensure!(
        top == format!("s{depth}"),
        "the top of {depth} shows {top:?}"
    );
    Ok(())
}

/// Those strategies that this kernel has. The others are told as skipped.
fn strategies<'s>(place: &Place, wanted: &[&'s str]) -> Result<Vec<&'s str>> {
    let ovl = place.ovl(&place.dir.join("status"));
    ovl.ok(&["init"])?;
    let status: Value = serde_json::from_str(&ovl.ok(&["status", "--json"])?)?;
    fs::remove_dir_all(&ovl.home)?;
    let known = status["strategies"].as_array().context("strategies")?;
    let (have, lack): (Vec<&str>, Vec<&str>) = wanted
        .iter()
        .partition(|strategy| known.iter().any(|one| one == **strategy));
    for strategy in lack {
        place.skip(Skip::part(strategy, "this kernel does not mount so"));
    }
    Ok(have)
}

pub(super) fn of_128(place: &Place) -> Result<()> {
    let wanted = ["mount-relative", "lowerdir-plus", "layers-by-fd"];
    let strategies = strategies(place, &wanted)?;
    for len in HOME_LENS {
        let home = home_of_len(place, len)?;
        let ovl = place.ovl(&home);
        build(&ovl, DEPTH)?;
        for strategy in &strategies {
            let top = format!("s{DEPTH}");
            let path = ovl.mount(&[&top, "--strategy", strategy])?;
            assert_shows(&path, DEPTH)?;
            ovl.ok(&["unmount", &top])?;
        }
        ovl.assert_clean()?;
        remove_home(place, &home)?;
    }
    Ok(())
}

pub(super) fn deepest_absolute(place: &Place) -> Result<()> {
    let lens = if place.quick {
        &HOME_LENS[..1]
    } else {
        &HOME_LENS[..]
    };
    for &len in lens {
        let home = home_of_len(place, len)?;
        let ovl = place.ovl(&home);
        build(&ovl, DEPTH)?;
        let plan = |depth: usize| {
            let name = format!("s{depth}");
            ovl.output(&["plan", &name, "--strategy", "mount-absolute", "--json"])
        };
        let mut deepest = 0;
        for depth in 1..=DEPTH {
            if !plan(depth)?.status.success() {
                break;
            }
            deepest = depth;
        }
        ensure!(
            (5..DEPTH).contains(&deepest),
            "the deepest absolute stack has {deepest} layers"
        );
        let planned: Value = serde_json::from_slice(&plan(deepest)?.stdout)?;
        let (used, limit) = (&planned["data"]["len"], &planned["data"]["limit"]);
        let (used, limit) = (
            used.as_u64().context("len")?,
            limit.as_u64().context("limit")?,
        );
        let page = u64::try_from(rustix::param::page_size())?;
        let entry = u64::try_from(len + "/l/".len() + 26 + 1)?;
        ensure!(
            limit == page - 1 && used <= limit,
            "{used} of {limit} bytes"
        );
        // The next layer's name is longer by at most one digit, in two places.
        ensure!(
            used + entry + 2 > limit,
            "one more would fit: {used} + {entry} of {limit}"
        );

        let top = format!("s{deepest}");
        let path = ovl.mount(&[&top, "--strategy", "mount-absolute"])?;
        assert_shows(&path, deepest)?;
        ovl.ok(&["unmount", &top])?;
        let next = format!("s{}", deepest + 1);
        let message = ovl.fails(7, &["mount", &next, "--strategy", "mount-absolute"])?;
        ensure!(
            message.contains(&limit.to_string()),
            "no limit in {message:?}"
        );
        let needed = message
            .split_whitespace()
            .filter_map(|word| word.parse::<u64>().ok());
        ensure!(
            needed.max().is_some_and(|needed| needed > limit),
            "no length in {message:?}"
        );
        // Left to itself, the plan takes another way: also where all have a limit.
        let path = ovl.mount(&[&next])?;
        assert_shows(&path, deepest + 1)?;
        ovl.ok(&["unmount", &next])?;
        ovl.assert_clean()?;
        remove_home(place, &home)?;
    }
    Ok(())
}

/// Mounts a layer in one way and looks; false where its names are too long for that.
fn mounts_by(ovl: &Ovl, depth: usize, strategy: &str) -> Result<bool> {
    let top = format!("s{depth}");
    let arguments = ["mount", &top, "--strategy", strategy];
    let output = ovl.output(&arguments)?;
    if output.status.code() == Some(7) && strategy.starts_with("mount-") {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(message.contains("bytes"), "no length in {message:?}");
        return Ok(false);
    }
    ensure!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What is printed has its control bytes escaped.
    assert_shows(&ovl.home.join(&top).join("merged"), depth)?;
    ovl.ok(&["unmount", &top])?;
    Ok(true)
}

pub(super) fn every_strategy(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    build(&ovl, DEPTH)?;
    for strategy in strategies(place, &STRATEGIES)? {
        // All but the last are read-only, with their own contents as one more lower layer.
        for depth in [1, 2, 63, 64, 126, 127, 128] {
            let mounted = mounts_by(&ovl, depth, strategy)?;
            ensure!(
                mounted || (depth > 2 && strategy == "mount-absolute"),
                "{depth} layers do not mount by {strategy}"
            );
        }
    }
    ovl.assert_clean()
}

pub(super) fn odd_names(place: &Place) -> Result<()> {
    let strategies = strategies(place, &STRATEGIES)?;
    for name in ODD_NAMES {
        let ovl = place.ovl(&place.dir.join(name));
        build(&ovl, 2)?;
        for strategy in &strategies {
            for depth in [1, 2] {
                let mounted = mounts_by(&ovl, depth, strategy)?;
                ensure!(mounted, "{name:?} is too long for {strategy}");
            }
        }
        ovl.assert_clean()?;
    }
    Ok(())
}

/// What the kernel stacks: 499 layers below a writable one, and 500 with a sealed one's own.
pub(super) fn of_500(place: &Place) -> Result<()> {
    const DEEPEST: usize = 499;
    let ovl = place.ovl(&place.home());
    ovl.ok(&["init", "--max-depth", "499"])?;
    build(&ovl, DEEPEST)?;
    let archive = place.dir.join("empty.tar");
    fs::write(&archive, [0; 1024])?;
    let archive = archive.to_str().context("a path in UTF-8")?;
    let below = format!("s{}", DEEPEST - 1);
    ovl.ok(&["import", "sealed", "--parent", &below, archive])?;
    let few = with_few_descriptors(place, &ovl)?;
    let without_length = ["layers-by-fd", "lowerdir-plus"];
    for strategy in strategies(place, &without_length)? {
        ensure!(mounts_by(&ovl, DEEPEST, strategy)?, "{strategy}");
        let planned = ovl.ok(&["plan", "sealed", "--strategy", strategy, "--json"])?;
        let planned: Value = serde_json::from_str(&planned)?;
        let settings = planned["settings"].as_array().context("settings")?;
        let lowers = settings.iter().filter(|one| one["key"] == "lowerdir+");
        ensure!(lowers.count() == DEEPEST + 1, "{planned}");
        let path = few.mount(&["sealed", "--strategy", strategy])?;
        assert_shows(&path, DEEPEST - 1)?;
        ovl.ok(&["unmount", "sealed"])?;
    }
    for strategy in ["mount-absolute", "mount-relative"] {
        ensure!(!mounts_by(&ovl, DEEPEST, strategy)?, "{strategy}");
    }
    for parent in [format!("s{DEEPEST}"), "sealed".to_owned()] {
        let message = ovl.fails(7, &["create", "over", "--parent", &parent])?;
        ensure!(
            message.contains("500") && message.contains("499"),
            "no numbers in {message:?}"
        );
    }
    ovl.assert_clean()
}

/// The program where it can open few files at once, and cannot change that.
fn with_few_descriptors(place: &Place, ovl: &Ovl) -> Result<Ovl> {
    let program = place.dir.join("few-descriptors");
    let real = ovl.program.to_str().context("a path in UTF-8")?;
    fs::write(
        &program,
        format!("#!/bin/sh\nulimit -n 48\nexec '{real}' \"$@\"\n"),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let home = ovl.home.clone();
    Ok(Ovl { program, home })
}

/// What is mounted on a shared mount appears in its peers, whatever anybody says; but nothing that
/// is mounted in it later does, and it goes from all of them.
pub(super) fn shared_place(place: &Place) -> Result<()> {
    let (shared, peer) = (place.dir.join("shared"), place.dir.join("peer"));
    for dir in [&shared, &peer] {
        fs::create_dir(dir)?;
    }
    mount_bind(&shared, &shared)?;
    mount_change(&shared, MountPropagationFlags::SHARED)?;
    mount_bind(&shared, &peer)?;
    let ovl = place.ovl(&shared.join("home"));
    build(&ovl, 1)?;
    for strategy in strategies(place, &STRATEGIES)? {
        let path = ovl.mount(&["s1", "--strategy", strategy])?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let target = format!(" {} ", path.display());
        let line = table.lines().find(|line| line.contains(&target));
        let line = line.context("the mount table does not show it")?;
        ensure!(!line.contains(" shared:"), "{strategy}: {line}");
        ovl.ok(&["unmount", "s1"])?;
        let left = mounts_below(&place.dir)?;
        ensure!(left.len() == 2, "{strategy} leaves {left:?}");
    }
    Ok(())
}
