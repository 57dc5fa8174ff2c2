//! Random changes of real overlay mounts.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use ovl_driver::Kernel;
use ovl_testkit::conformance::{Subject, run_scripts};

use super::Place;

/// Layers that a mount with `redirect_dir=on` and `metacopy=on` wrote are read as the kernel does.
pub(super) fn random(place: &Place) -> Result<()> {
    let subject = Subject::new(Kernel::host(), &place.dir);
    let count = if place.quick { 100 } else { 2000 };
    // Not those of the case that every kernel has.
    let written = run_scripts(&subject, 1000..1000 + count, Some(overwrite));
    let expected = count / 10;
    ensure!(
        written.redirects > expected && written.metacopies > expected,
        "{count} scripts made the kernel write little: {written:?}"
    );
    Ok(())
}

fn overwrite(path: &Path, contents: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(contents, 0)
}
