//! Applying to a layer on the mock kernel: nothing outside of the layer changes, and what was
//! taken comes out again as it is.

#![no_main]
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "the tests' own files"
)]

#[path = "../../tests/archive/mod.rs"]
mod archive;
mod choices;
#[path = "../../tests/fuzz/mod.rs"]
mod fuzz;
#[path = "../../tests/support/mod.rs"]
mod support;

use choices::Choices;
use fuzz::apply::{NAMES, TARGETS, check, lower};
use support::{CAPABILITY, Entry, Scene};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    let mut bytes = match choices.byte() % 8 {
        0 => archive::mutation::zoo(),
        count => {
            let entry = |_| choices.more().then(|| entry(&mut choices));
            let entries: Vec<Entry> = (0..count * 2).map_while(entry).collect();
            support::archive(&entries)
        }
    };
    choices.change(&mut bytes);
    archive::mutation::reseal(&mut bytes);
    let scene = Scene::mock();
    let stack = scene.stack(&[&lower()]);
    if let Err(reason) = check(&stack, &bytes) {
        panic!("{reason}");
    }
});

fn entry(choices: &mut Choices<'_>) -> Entry {
    let name = choices.of(NAMES);
    let entry = match choices.byte() % 12 {
        0 | 1 => Entry::file(name, name),
        2 => Entry::marker(name),
        3 | 4 => Entry::dir(name),
        5 | 6 => Entry::symlink(name, choices.of(TARGETS)),
        7 => Entry::hard_link(name, choices.of(TARGETS)),
        8 => Entry::hard_link(name, choices.of(NAMES)),
        9 => Entry::fifo(name),
        10 => Entry::char_device(name, 0, u32::from(choices.byte() % 3)),
        _ => Entry::block_device(name, 8, 1),
    };
    let entry = entry.mode(choices.of(&[0o755, 0o644, 0, 0o7777]));
    match choices.byte() % 8 {
        0 => entry.xattr("user.k", b"v"),
        1 => entry.xattr("trusted.overlay.opaque", b"y"),
        2 => entry.xattr("trusted.overlay.redirect", b"/low"),
        3 => entry.xattr("security.capability", CAPABILITY),
        4 => entry.owner(1000, 1),
        _ => entry,
    }
}
