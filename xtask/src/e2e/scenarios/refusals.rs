use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Result, ensure};
use ovl_testkit::ArchiveBuilder;

use super::Place;

pub(super) fn bad_input(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    ovl.fails(3, &["ls"])?;
    ovl.fails(3, &["inspect", "x"])?;
    ensure!(!place.home().exists(), "a reading command has made a home");
    let write = |name: &str, bytes: &[u8]| {
        let path = place.dir.join(name);
        fs::write(&path, bytes).map(|()| path.to_string_lossy().into_owned())
    };
    let good = write(
        "good.tar",
        &ArchiveBuilder::new().file("good", b"good").finish(),
    )?;
    ovl.ok(&["import", "base", &good])?;
    ovl.ok(&["create", "open", "--parent", "base"])?;
    let before = ovl.ok(&["ls", "--json"])?;

    for id in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "l",
        "-x",
        "a b",
        "opaque-bug-check1",
        "\u{e9}",
    ] {
        ovl.fails(7, &["create", "--", id])?;
        ovl.fails(7, &["mount", "--", id])?;
        ovl.fails(7, &["rm", "--force", "--", id])?;
        ovl.fails(7, &["create", "child", &format!("--parent={id}")])?;
    }
    for command in [
        "mount", "unmount", "rm", "inspect", "plan", "changes", "size",
    ] {
        ovl.fails(3, &[command, "unknown"])?;
    }
    ovl.fails(3, &["diff", "unknown"])?;
    ovl.fails(3, &["apply", "unknown", &good])?;
    ovl.fails(3, &["create", "child", "--parent", "unknown"])?;
    ovl.fails(3, &["import", "child", "--parent", "unknown", &good])?;
    ovl.fails(3, &["unmount", "base"])?;
    ovl.fails(4, &["create", "base"])?;
    ovl.fails(4, &["import", "open", &good])?;
    ovl.fails(5, &["rm", "base"])?;
    ovl.fails(5, &["rm", "base", "--force"])?;
    ovl.fails(5, &["apply", "base", &good])?;
    ovl.fails(7, &["mount", "open", "--option", "upperdir=/etc"])?;
    ovl.fails(7, &["mount", "open", "--label", "a\",upperdir=/x,\"b"])?;
    ovl.fails(7, &["mount", "open", "--strategy", "magic"])?;
    ovl.fails(1, &["import", "new", "/nonexistent.tar"])?;

    let mut truncated = ArchiveBuilder::new().file("cut", &[7; 5000]).finish();
    truncated.truncate(3000);
    let entry = || ArchiveBuilder::new().file("good", b"good");
    for (name, bytes) in [
        ("dotdot.tar", entry().file("../victim", b"x").finish()),
        ("absolute.tar", entry().file("/../victim", b"x").finish()),
        ("hardlink.tar", entry().hard_link("h", "../victim").finish()),
        (
            "symlink.tar",
            entry()
                .symlink("l", "../..")
                .file("l/victim", b"x")
                .finish(),
        ),
        ("truncated.tar", truncated),
        ("text.tar", b"this is not an archive\n".repeat(50)),
        ("empty.tar", Vec::new()),
        ("broken.gz", [&[0x1f, 0x8b, 8, 0][..], &[9; 600]].concat()),
    ] {
        let path = write(name, &bytes)?;
        ovl.fails(7, &["import", "bad", &path])?;
        ovl.fails(7, &["import", "bad", "--parent", "base", &path])?;
        ovl.fails(7, &["apply", "open", &path])?;
    }
    ensure!(
        ovl.ok(&["ls", "--json"])? == before,
        "the list of layers has changed"
    );
    ovl.assert_clean()?;

    let path = ovl.mount(&["open"])?;
    ovl.fails(5, &["rm", "open"])?;
    ovl.fails(5, &["apply", "open", &good])?;
    ovl.fails(5, &["create", "child", "--parent", "open"])?;
    ovl.fails(5, &["mount", "open", "--option", "nodev"])?;
    let held = fs::File::open(path.join("good"))?;
    ovl.fails(5, &["unmount", "open"])?;
    drop(held);
    ovl.ok(&["unmount", "open"])?;
    ensure!(
        ovl.ok(&["ls", "--json"])? == before,
        "the list of layers has changed"
    );

    // A damaged layer is named and never mounted.
    fs::write(place.home().join("open/lower"), "")?;
    let message = ovl.fails(9, &["mount", "open"])?;
    ensure!(
        message.contains("open/lower"),
        "the file is not named: {message}"
    );
    ovl.ok(&["rm", "open", "base"])?;
    ovl.assert_clean()
}

/// An import killed at any moment leaves no layer, and the next command cleans up.
pub(super) fn killed_import(place: &Place) -> Result<()> {
    let ovl = place.ovl(&place.home());
    let rootfs = place.large_archive()?.to_string_lossy().into_owned();
    ovl.ok(&["create", "base"])?;
    let import = ["import", "victim", "--parent", "base", &rootfs];
    let start = Instant::now();
    ovl.ok(&import)?;
    let whole = start.elapsed();
    ovl.ok(&["rm", "victim"])?;
    let rounds = if place.quick { 5 } else { 20 };
    let mut cut_short = 0;
    for round in 0..rounds {
        let mut import = ovl.command(&import);
        let mut child = import.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(whole * (2 * round + 1) / (2 * rounds));
        // It may be done already.
        child.kill()?;
        let finished = child.wait()?.success();
        let there = ovl.output(&["inspect", "victim"])?.status.success();
        ensure!(!finished || there, "an import that ended well is not there");
        cut_short += u32::from(!there);
        ovl.ok(&["create", "probe", "--parent", "base"])?;
        match there {
            true => ovl.ok(&["rm", "probe", "victim"])?,
            false => ovl.ok(&["rm", "probe"])?,
        };
        ovl.assert_clean()?;
    }
    ensure!(cut_short > 0, "no import of {rounds} was killed in time");
    ovl.ok(&import)?;
    ovl.ok(&["rm", "base", "victim"])?;
    ovl.assert_clean()
}
