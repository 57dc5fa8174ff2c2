//! The store reads what Docker has written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::scenarios::{Ovl, Place};
use super::daemon::{ContainerLayers, Docker};
use super::trees::{
    assert_container, assert_image, assert_same_archives, assert_same_bytes, exported, saved,
};
use super::{assert_whole, build_images};

/// What Docker shows of an image with all those below it.
struct Shown {
    /// The driver's ids of its layers, the lowest first.
    layers: Vec<String>,
    /// What a new container of each image shows.
    trees: Vec<PathBuf>,
    /// Markers in the uppermost archive that hide nothing: Docker marks each new directory that
    /// stands for something else, we mark those that hide a directory.
    needless: &'static [&'static str],
    /// The archive of each layer.
    archives: Vec<PathBuf>,
    /// Containers that have changed something, and what they show.
    containers: Vec<(ContainerLayers, PathBuf)>,
}

pub(super) fn read(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    build_images(&docker, place)?;
    let images = ["shell:1", "shell:2", "shell:3"];
    let mut shown = look(&docker, place, &images, &["one", "two"])?;
    shown.needless = &["data/symbolic/.wh..wh..opq"];
    let ovl = docker.ovl(place);
    let coloured = ovl.home.join(&shown.layers[0]).join("diff/data/coloured");
    ensure!(fs::exists(coloured)?, "the imported files are elsewhere");

    // Reading is allowed while the daemon runs; its answers do not change.
    read_only(&ovl, place, &shown, "running")?;
    for name in ["one", "two"] {
        compare_changes(&docker, &ovl, name)?;
    }
    let said = docker.run("three", "shell:3", "cat /data/changed; ls /data/replaced")?;
    ensure!(said == "second\nnew\n", "a container said {said:?}");
    docker.ok(&["rm", "three"])?;
    docker.stop()?;

    read_only(&ovl, place, &shown, "stopped")?;
    mount_all(&ovl, &shown)
}

pub(super) fn read_debian(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    docker.ok(&["import", &place.rootfs()?.to_string_lossy(), "debian:1"])?;
    docker.run(
        "one",
        "debian:1",
        "rm -r /usr/share/doc /etc/skel
        mkdir /etc/skel
        dpkg --remove --force-all tzdata >/tmp/log
        chmod 600 /etc/passwd
        ln /usr/bin/env /usr/bin/vne",
    )?;
    docker.ok(&["commit", "one", "debian:2"])?;
    let shown = look(&docker, place, &["debian:1", "debian:2"], &["one"])?;
    let ovl = docker.ovl(place);
    compare_changes(&docker, &ovl, "one")?;
    docker.stop()?;
    read_only(&ovl, place, &shown, "stopped")?;
    mount_all(&ovl, &shown)
}

/// Has Docker show the images, each the next one's parent, and the containers.
fn look(docker: &Docker, place: &Place, images: &[&str], containers: &[&str]) -> Result<Shown> {
    let last = images.last().context("no images")?;
    let dir = place.dir.join("shown");
    fs::create_dir(&dir)?;
    let layers = docker.image_layers(last)?;
    ensure!(layers.len() == images.len(), "{last} has {layers:?}");
    let mut trees = Vec::new();
    for image in images {
        let name = image.replace(':', "-");
        docker.create(&name, image, "")?;
        trees.push(exported(docker, &name, &dir)?);
    }
    let containers = containers.iter().map(|name| {
        let tree = exported(docker, name, &dir)?;
        Ok((docker.container_layers(name)?, tree))
    });
    Ok(Shown {
        layers,
        trees,
        needless: &[],
        archives: saved(docker, last, &dir.join("saved"))?,
        containers: containers.collect::<Result<_>>()?,
    })
}

/// Everything that does not write: lists, checks, plans and diffs.
fn read_only(ovl: &Ovl, place: &Place, shown: &Shown, when: &str) -> Result<()> {
    let containers = shown.containers.iter();
    let own = containers.flat_map(|(layers, _)| [&layers.own, &layers.init]);
    assert_whole(ovl, &shown.layers.iter().chain(own).collect::<Vec<_>>())?;
    let dir = place.dir.join(when);
    fs::create_dir(&dir)?;
    for (depth, (layer, archive)) in shown.layers.iter().zip(&shown.archives).enumerate() {
        let known: Value = serde_json::from_str(&ovl.ok(&["inspect", layer, "--json"])?)?;
        let parent = depth
            .checked_sub(1)
            .map(|below| shown.layers[below].clone());
        ensure!(
            known["parent"] == Value::from(parent)
                && known["depth"] == depth
                && known["recorded"] == false,
            "inspect: {known}"
        );
        ovl.ok(&["plan", layer])?;
        let ours = dir.join("ours.tar");
        ovl.ok(&["diff", layer, "-o", &ours.to_string_lossy()])?;
        let needless = match depth + 1 == shown.layers.len() {
            true => shown.needless,
            false => &[],
        };
        assert_same_archives(&ours, archive, needless, &dir)
            .with_context(|| format!("the diff of layer {depth} while the daemon is {when}"))?;
    }
    // Docker has kept what it wrote of each container when that became the next image's layer.
    let committed = shown.archives.iter().skip(1);
    for (number, ((layers, _), archive)) in shown.containers.iter().zip(committed).enumerate() {
        let ours = dir.join("ours.tar");
        let output = ours.to_string_lossy();
        ovl.ok(&["diff", &layers.own, "--policy", "docker", "-o", &output])?;
        assert_same_bytes(&ours, archive, shown.needless)
            .with_context(|| format!("the bytes of container {number}"))?;
    }
    Ok(())
}

/// Every layer shows what Docker shows.
fn mount_all(ovl: &Ovl, shown: &Shown) -> Result<()> {
    let mounted = |layer: &String, compare: &dyn Fn(&Path) -> Result<()>| {
        let path = ovl.mount(&[layer])?;
        compare(&path).with_context(|| format!("layer {layer}"))?;
        ovl.ok(&["unmount", layer])
    };
    for (layer, tree) in shown.layers.iter().zip(&shown.trees) {
        mounted(layer, &|path| assert_image(path, tree))?;
    }
    for (layers, tree) in &shown.containers {
        mounted(&layers.own, &|path| assert_container(path, tree))?;
    }
    ovl.assert_clean()
}

/// What a container has changed is the same list, whoever is asked.
fn compare_changes(docker: &Docker, ovl: &Ovl, container: &str) -> Result<()> {
    let layers = docker.container_layers(container)?;
    let ours = ovl.ok(&["changes", &layers.own])?;
    let theirs = docker.ok(&["diff", container])?;
    let [ours, theirs] = [&ours, &theirs].map(|list| list.lines().collect::<BTreeSet<_>>());
    let differ: Vec<_> = ours.symmetric_difference(&theirs).take(20).collect();
    ensure!(
        differ.is_empty() && !ours.is_empty(),
        "only one of the lists of changes has {differ:?}"
    );
    Ok(())
}
