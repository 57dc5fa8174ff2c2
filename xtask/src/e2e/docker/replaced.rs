//! The store writes layers under the ids that Docker has noted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::super::scenarios::{Ovl, Place};
use super::daemon::Docker;
use super::trees::{assert_container, export_digests, exported, layer_digests};
use super::{assert_whole, build_images};

pub(super) fn top_layer(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    build_images(&docker, place)?;
    let layers = docker.image_layers("shell:3")?;
    let [_, parent, top] = &layers[..] else {
        anyhow::bail!("shell:3 has {layers:?}");
    };
    let before = layer_digests(&docker, "shell:3", &place.dir.join("before"))?;
    docker.stop()?;

    let ovl = docker.ovl(place);
    rewrite(&ovl, place, top, parent)?;
    assert_whole(&ovl, &[parent, top])?;
    ovl.assert_clean()?;

    docker.start_again()?;
    // The daemon compares each file and the whole archive with the sums that it has noted.
    let after = layer_digests(&docker, "shell:3", &place.dir.join("after"))?;
    ensure!(before == after, "Docker saves {after:?}, not {before:?}");
    let said = docker.run(
        "three",
        "shell:3",
        "cat /data/changed /data/symbolic/inside /last
        test ! -e /new/deep
        ls /data/replaced",
    )?;
    ensure!(said == "second\ninside\nlast\nnew\n", "it said {said:?}");
    docker.ok(&["rm", "three"])?;
    docker.ok(&["image", "rm", "shell:3"])?;
    ensure!(!ovl.home.join(top).exists(), "Docker cannot remove it");
    docker.stop()?;
    assert_whole(&ovl, &[parent])
}

/// Takes a layer away and imports its own diff under the same id.
fn rewrite(ovl: &Ovl, place: &Place, layer: &str, parent: &str) -> Result<()> {
    let archive = place.dir.join("rewritten.tar");
    let archive = archive.to_string_lossy();
    ovl.ok(&["diff", layer, "-o", &archive])?;
    ovl.ok(&["rm", layer])?;
    ovl.ok(&["import", layer, "--parent", parent, &archive])
        .map(drop)
}

pub(super) fn writable_layer(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    build_images(&docker, place)?;
    docker.create(
        "three",
        "shell:3",
        "cat /data/changed
        test ! -e /made/file || cat /made/file
        mkdir -p /made
        echo made >/made/file
        rm -rf /data/replaced
        mkdir /data/replaced
        echo new >/data/changed",
    )?;
    let layers = docker.container_layers("three")?;
    docker.stop()?;

    let ovl = docker.ovl(place);
    ovl.ok(&["rm", &layers.own])?;
    ovl.ok(&[
        "create",
        &layers.own,
        "--parent",
        &layers.init,
        "--writable",
    ])?;
    assert_whole(&ovl, &[&layers.own, &layers.init])?;

    docker.start_again()?;
    let said = docker.ok(&["start", "--attach", "three"])?;
    ensure!(said == "second\n", "the first start said {said:?}");
    let said = docker.ok(&["start", "--attach", "three"])?;
    ensure!(said == "new\nmade\n", "the second start said {said:?}");
    let copied = place.dir.join("copied");
    fs::write(&copied, "copied\n")?;
    docker.ok(&["cp", &copied.to_string_lossy(), "three:/made/copied"])?;
    docker.ok(&["commit", "three", "shell:4"])?;
    let said = docker.run("four", "shell:4", "cat /made/*; ls /data/replaced")?;
    ensure!(said == "copied\nmade\n", "the commit said {said:?}");
    let tree = exported(&docker, "three", &place.dir)?;
    docker.stop()?;

    let path = ovl.mount(&[&layers.own])?;
    assert_container(&path, &tree)?;
    ovl.ok(&["unmount", &layers.own])?;
    assert_whole(&ovl, &[&layers.own, &layers.init])
}

pub(super) fn whole_home(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    build_images(&docker, place)?;
    docker.create(
        "new",
        "shell:3",
        "cat /data/changed /last; echo more >/more",
    )?;
    let images = docker.image_layers("shell:3")?;
    let containers = ["one", "two", "new"];
    let mut layers: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (depth, layer) in images.iter().enumerate() {
        let below = depth.checked_sub(1).map(|below| images[below].clone());
        layers.insert(layer.clone(), below);
    }
    for (name, image) in containers.iter().zip(&images) {
        let container = docker.container_layers(name)?;
        layers.insert(container.init.clone(), Some(image.clone()));
        layers.insert(container.own, Some(container.init));
    }
    let before = export_digests(&docker, &containers, &place.dir.join("exports"))?;
    let saved = layer_digests(&docker, "shell:3", &place.dir.join("before"))?;
    docker.stop()?;

    let ovl = docker.ovl(place);
    let old = docker.home().with_extension("old");
    fs::rename(docker.home(), &old)?;
    write_all(&ovl, &place.ovl(&old), &layers, &place.dir)?;
    fs::remove_dir_all(&old)?;
    assert_whole(&ovl, &layers.keys().collect::<Vec<_>>())?;
    ovl.assert_clean()?;

    docker.start_again()?;
    let after = export_digests(&docker, &containers, &place.dir.join("exports again"))?;
    ensure!(before == after, "Docker exports {after:?}, not {before:?}");
    let again = layer_digests(&docker, "shell:3", &place.dir.join("after"))?;
    ensure!(saved == again, "Docker saves {again:?}, not {saved:?}");
    let said = docker.ok(&["start", "--attach", "new"])?;
    ensure!(said == "second\nlast\n", "a container said {said:?}");
    docker.ok(&["commit", "new", "shell:4"])?;
    docker.ok(&["rm", "new"])?;
    let said = docker.run("four", "shell:4", "cat /more")?;
    ensure!(said == "more\n", "a container said {said:?}");
    docker.stop()?;
    assert_whole(&ovl, &images.iter().collect::<Vec<_>>())
}

/// Writes each layer of one home into another under the same id, parents first.
fn write_all(
    new: &Ovl,
    old: &Ovl,
    layers: &BTreeMap<String, Option<String>>,
    dir: &Path,
) -> Result<()> {
    let mut left: Vec<(&String, Option<&String>)> = layers
        .iter()
        .map(|(layer, parent)| (layer, parent.as_ref()))
        .collect();
    let archive = dir.join("layer.tar");
    let archive = archive.to_string_lossy();
    while !left.is_empty() {
        let ready = left
            .iter()
            .position(|(_, parent)| !left.iter().any(|(layer, _)| Some(*layer) == *parent));
        let (layer, parent) = left.swap_remove(ready.context("a layer is below itself")?);
        old.ok(&["diff", layer, "-o", &archive])?;
        let is_parent = layers.values().any(|below| below.as_ref() == Some(layer));
        let stand = parent.map_or_else(Vec::new, |id| vec!["--parent", id]);
        if is_parent {
            new.ok(&[&["import", layer, &archive], &stand[..]].concat())?;
        } else {
            new.ok(&[&["create", layer, "--writable"], &stand[..]].concat())?;
            new.ok(&["apply", layer, &archive])?;
        }
    }
    Ok(())
}
