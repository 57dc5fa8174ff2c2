//! A small home as Docker leaves it, and what Docker shows of it, for the tests that have no Docker.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use ovl_testkit::listing_at;

use super::super::scenarios::Place;
use super::daemon::Docker;
use super::trees::{ADDED, TOUCHED, exported};
use super::{CHANGE, SECOND_CHANGE, capable_file, pack, shell_root};
use crate::output;

/// Small enough for a repository.
const MAX_LEN: u64 = 100 << 10;

/// What the last container does: everything that the kernel leaves a mark of.
const THIRD_CHANGE: &str = "
    rm /last /data/changed
    rm -r /data/replaced
    mkdir /data/replaced
    echo third >/data/replaced/third
    mkdir /data/empty
    chmod 600 /data/kept
    mv /data/mode /data/moved-mode
    ln /data/moved-mode /data/linked-mode
    rm -r /new
    echo file >/new";

/// Writes `docker-20.10.tar.gz` and `docker-20.10.txt` into the directory.
pub(in crate::e2e) fn write(place: &Place, fixtures: &Path) -> Result<()> {
    let mut docker = Docker::start(place)?;
    let version = docker.ok(&["version", "--format", "{{.Server.Version}}"])?;
    let version = version.trim();
    ensure!(
        version.starts_with("20.10."),
        "these fixtures are of Docker 20.10, not {version}"
    );
    // The programs are mounted, not in an image: those would be large.
    let (root, programs) = (shell_root(place)?, place.dir.join("programs"));
    fs::rename(root.join("usr"), &programs)?;
    fs::create_dir(root.join("usr"))?;
    // Older kernels have no such attributes on a tmpfs.
    fs::remove_file(root.join("data/coloured"))?;
    docker.ok(&["import", &pack(&root)?.to_string_lossy(), "shell:1"])?;
    let volume = format!("{}:/usr:ro", programs.display());
    let run = |name: &str, image: &str, script: &str| {
        docker.create_with(&["--volume", &volume], name, image, script)?;
        docker.ok(&["start", "--attach", name])
    };
    run("one", "shell:1", CHANGE)?;
    docker.ok_reading(&["cp", "-", "one:/data"], &capable_file(place)?)?;
    docker.ok(&["commit", "one", "shell:2"])?;
    run("two", "shell:2", SECOND_CHANGE)?;
    docker.ok(&["commit", "two", "shell:3"])?;
    docker.ok(&["rm", "one", "two"])?;
    run("three", "shell:3", THIRD_CHANGE)?;

    let mut text = format!("# What Docker {version} shows of each layer of docker-20.10.tar.gz.\n");
    let layers = docker.image_layers("shell:3")?;
    let mut parent = "-";
    for (depth, layer) in (1..).zip(&layers) {
        let (name, image) = (format!("new{depth}"), format!("shell:{depth}"));
        docker.create(&name, &image, "")?;
        let tree = exported(&docker, &name, &place.dir)?;
        docker.ok(&["rm", &name])?;
        // What Docker added for the container alone.
        for name in ADDED {
            let path = tree.join(name);
            match fs::symlink_metadata(&path)?.is_dir() {
                true => fs::remove_dir(path)?,
                false => fs::remove_file(path)?,
            }
        }
        for name in TOUCHED {
            let imported = fs::metadata(root.join(name))?.modified()?;
            File::open(tree.join(name))?.set_modified(imported)?;
        }
        write_layer(&mut text, layer, parent, &tree)?;
        parent = layer;
    }
    let container = docker.container_layers("three")?;
    let tree = exported(&docker, "three", &place.dir)?;
    // It has nothing of its own to show, but a parent and a child.
    writeln!(text, "init {} {parent}", container.init)?;
    write_layer(&mut text, &container.own, &container.init, &tree)?;
    docker.stop()?;

    fs::create_dir_all(fixtures)?;
    let archive = fixtures.join("docker-20.10.tar.gz");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"])
        .args(["--sort=name", "-c", "-C"])
        .arg(docker.home().parent().context("a home has a parent")?)
        .arg("overlay2");
    let plain = place.dir.join("home.tar");
    output(tar.arg("-f").arg(&plain))?;
    let mut gzip = Command::new("gzip");
    gzip.arg("-9n").stdin(File::open(&plain)?);
    crate::run(gzip.stdout(File::create(&archive)?))?;
    let len = fs::metadata(&archive)?.len();
    ensure!(len <= MAX_LEN, "the fixture has {len} of {MAX_LEN} bytes");
    fs::write(fixtures.join("docker-20.10.txt"), text)?;
    println!("{} has {len} bytes", archive.display());
    Ok(())
}

/// A layer with its parent, and the lines of what it shows.
fn write_layer(text: &mut String, layer: &str, parent: &str, tree: &Path) -> Result<()> {
    writeln!(text, "layer {layer} {parent}")?;
    for (path, line) in listing_at(tree)? {
        writeln!(text, "{path:?} {line}")?;
    }
    Ok(())
}
