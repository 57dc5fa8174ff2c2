//! What a user does with the program, on real input.

mod debian;
mod refusals;
mod scripts;
mod stacks;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use ovl_diff::HostTree;
use ovl_testkit::snapshot_at;

use super::compare;
use super::mounts::mounts_below;

/// A scenario.
pub(super) type Scenario = fn(&Place) -> Result<()>;

/// All scenarios by name.
pub(super) const ALL: [(&str, Scenario); 6] = [
    (
        "a_debian_root_is_changed_and_the_change_applied_elsewhere",
        debian::change_and_apply,
    ),
    (
        "stacks_of_128_mount_from_short_and_long_homes",
        stacks::of_128,
    ),
    (
        "the_deepest_absolute_stack_fits_and_one_more_is_refused",
        stacks::deepest_absolute,
    ),
    (
        "bad_input_has_its_exit_code_and_changes_nothing",
        refusals::bad_input,
    ),
    (
        "a_killed_import_leaves_a_working_store",
        refusals::killed_import,
    ),
    (
        "random_changes_with_redirects_and_metacopy_are_in_the_archives",
        scripts::random,
    ),
];

/// Where a scenario runs, and with what.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) ovl: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) quick: bool,
}

impl Place {
    pub(in crate::e2e) fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    pub(in crate::e2e) fn ovl(&self, home: &Path) -> Ovl {
        Ovl {
            program: self.ovl.clone(),
            home: home.to_owned(),
        }
    }
}

/// The program on one home.
pub(super) struct Ovl {
    program: PathBuf,
    pub(in crate::e2e) home: PathBuf,
}

impl Ovl {
    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--home")
            .arg(&self.home)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        let mut command = self.command(arguments);
        command
            .output()
            .with_context(|| format!("cannot run {command:?}"))
    }

    /// Runs a command that must succeed, and gives what it prints.
    pub(in crate::e2e) fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        crate::output(&mut self.command(arguments))
    }

    /// Runs a command that must fail with this exit code, and gives its message.
    pub(in crate::e2e) fn fails<S: AsRef<OsStr>>(
        &self,
        code: i32,
        arguments: &[S],
    ) -> Result<String> {
        let output = self.output(arguments)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let shown: Vec<_> = arguments
            .iter()
            .map(|one| one.as_ref().to_string_lossy())
            .collect();
        let found = output.status.code();
        ensure!(
            found == Some(code),
            "ovl {shown:?} ended with {found:?}, not {code}: {message}"
        );
        ensure!(output.stdout.is_empty(), "ovl {shown:?} printed something");
        ensure!(
            message.starts_with("ovl: ") && message.len() > 20,
            "ovl {shown:?} said {message:?}"
        );
        Ok(message)
    }

    pub(in crate::e2e) fn mount(&self, arguments: &[&str]) -> Result<PathBuf> {
        let printed = self.ok(&[&["mount"], arguments].concat())?;
        Ok(PathBuf::from(
            printed
                .strip_suffix('\n')
                .context("mount printed no line")?,
        ))
    }

    /// Nothing may be mounted, staged or in the trash.
    pub(in crate::e2e) fn assert_clean(&self) -> Result<()> {
        let mounts = mounts_below(&self.home)?;
        ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
        for name in ["staging", "trash", "holds"] {
            let left = std::fs::read_dir(self.home.join(".ovl").join(name))?.count();
            ensure!(left == 0, "{left} things are left in {name}");
        }
        let links = std::fs::read_dir(self.home.join("l"))?.count();
        let layers = self.ok(&["ls", "--json"])?;
        let layers: serde_json::Value = serde_json::from_str(&layers)?;
        let (whole, broken) = (layers["layers"].as_array(), layers["broken"].as_array());
        let layers = whole.map_or(0, Vec::len) + broken.map_or(0, Vec::len);
        ensure!(links == layers, "{links} links for {layers} layers");
        Ok(())
    }
}

/// Fails unless two mounted trees are the same, to the kernel and to the store's own reader.
fn assert_same(one: &Path, other: &Path) -> Result<()> {
    compare::assert_same(one, other)?;
    let tree = HostTree::default();
    let (one, other) = (snapshot_at(&tree, one)?, snapshot_at(&tree, other)?);
    ensure!(one.len() > 1, "the tree is empty");
    ensure!(one == other, "the store's reader sees other trees");
    Ok(())
}
