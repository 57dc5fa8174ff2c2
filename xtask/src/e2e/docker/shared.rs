//! Docker and the store add layers to one home by turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::super::scenarios::Place;
use super::daemon::Docker;
use super::trees::{export_digests, layer_digests};
use super::{assert_whole, build_images};

pub(super) fn children_and_siblings(place: &Place) -> Result<()> {
    let mut docker = Docker::start(place)?;
    build_images(&docker, place)?;
    docker.create(
        "untouched",
        "shell:3",
        "echo started >/started; cat /data/changed",
    )?;
    let layers = docker.image_layers("shell:3")?;
    let [first, _, top] = &layers[..] else {
        anyhow::bail!("shell:3 has {layers:?}");
    };
    let before = digests(&docker, &place.dir.join("before"))?;
    docker.stop()?;

    let ovl = docker.ovl(place);
    let archive = place.dir.join("top.tar");
    let archive = archive.to_string_lossy();
    ovl.ok(&["diff", top, "-o", &archive])?;
    ovl.ok(&["import", "ovl-child", "--parent", top, &archive])?;
    ovl.ok(&["import", "ovl-sibling", "--parent", first, &archive])?;
    ovl.ok(&["create", "ovl-open", "--parent", top, "--writable"])?;
    let path = ovl.mount(&["ovl-open"])?;
    fs::write(path.join("data/changed"), "by ovl\n")?;
    fs::remove_file(path.join("last"))?;
    fs::remove_dir_all(path.join("usr"))?;
    ovl.ok(&["unmount", "ovl-open"])?;
    ovl.assert_clean()?;

    docker.start_again()?;
    let after = digests(&docker, &place.dir.join("after"))?;
    ensure!(before == after, "Docker shows {after:?}, not {before:?}");
    let said = docker.ok(&["start", "--attach", "untouched"])?;
    ensure!(said == "second\n", "a container said {said:?}");
    docker.ok(&["commit", "untouched", "shell:4"])?;
    let said = docker.run("four", "shell:4", "cat /started /last")?;
    ensure!(said == "started\nlast\n", "a container said {said:?}");
    let newest = docker.image_layers("shell:4")?;
    docker.stop()?;

    let ours = ["ovl-child", "ovl-sibling", "ovl-open"].map(str::to_owned);
    let all: Vec<&String> = newest.iter().chain(&ours).collect();
    assert_whole(&ovl, &all)?;
    let path = ovl.mount(&["ovl-open"])?;
    let found = fs::read_to_string(path.join("data/changed"))?;
    ensure!(
        found == "by ovl\n" && !path.join("usr").exists(),
        "our own layer shows {found:?}"
    );
    ovl.ok(&["unmount", "ovl-open"])?;
    ovl.ok(&[&["rm"][..], &["ovl-child", "ovl-sibling", "ovl-open"]].concat())?;
    ovl.assert_clean()?;

    // Docker finds its home in order without them.
    docker.start_again()?;
    let again = digests(&docker, &place.dir.join("again"))?;
    let same = before.iter().all(|(name, digest)| {
        // It has been started since.
        name == "untouched" || again.get(name) == Some(digest)
    });
    ensure!(same, "Docker shows {again:?}, not {before:?}");
    docker.stop()
}

/// The digests of all that Docker gives out, by name: its containers' exports and its image's
/// layers.
fn digests(docker: &Docker, dir: &Path) -> Result<BTreeMap<String, String>> {
    let names = ["one", "two", "untouched"];
    let mut digests: BTreeMap<String, String> = names
        .map(str::to_owned)
        .into_iter()
        .zip(export_digests(docker, &names, dir)?)
        .collect();
    let layers = layer_digests(docker, "shell:3", &dir.join("saved"))?;
    for (depth, digest) in layers.into_iter().enumerate() {
        digests.insert(format!("layer {depth}"), digest);
    }
    Ok(digests)
}
