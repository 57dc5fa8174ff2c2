use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Ovl, Place};

const DEPTH: usize = 128;

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

/// A base and `depth` layers on it; each adds a file and replaces a common one.
fn build(ovl: &Ovl, depth: usize) -> Result<()> {
    for level in 0..=depth {
        let (name, parent) = (format!("s{level}"), format!("s{}", level.saturating_sub(1)));
        match level {
            0 => ovl.ok(&["create", &name])?,
            _ => ovl.ok(&["create", &name, "--parent", &parent])?,
        };
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

pub(super) fn of_128(place: &Place) -> Result<()> {
    for len in HOME_LENS {
        let home = home_of_len(place, len)?;
        let ovl = place.ovl(&home);
        build(&ovl, DEPTH)?;
        for strategy in ["mount-relative", "lowerdir-plus"] {
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
        // Left to itself, the plan takes another way.
        let path = ovl.mount(&[&next])?;
        assert_shows(&path, deepest + 1)?;
        ovl.ok(&["unmount", &next])?;
        ovl.assert_clean()?;
        remove_home(place, &home)?;
    }
    Ok(())
}
