//! What a user does with the program, on real input.

mod crowds;
mod debian;
mod kill_storm;
mod lengths;
mod quotas;
mod refusals;
mod scripts;
mod shapes;
mod stacks;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use ovl_diff::HostTree;
use ovl_testkit::conformance::Skip;
use ovl_testkit::{ArchiveBuilder, snapshot_at};

pub(crate) use scripts::{ScriptsOptions, in_namespace};

use super::FsKind;
use super::compare;
use super::mounts::mounts_below;

/// A scenario.
pub(super) type Scenario = fn(&Place) -> Result<()>;

/// All scenarios by name.
pub(super) const ALL: [(&str, Scenario); 18] = [
    (
        "a_debian_root_is_changed_and_the_change_applied_elsewhere",
        debian::change_and_apply,
    ),
    (
        "stacks_of_128_mount_from_short_and_long_homes",
        stacks::of_128,
    ),
    (
        "stacks_of_1_to_128_mount_by_every_strategy",
        stacks::every_strategy,
    ),
    (
        "stacks_of_499_and_500_layers_mount_without_a_length",
        stacks::of_500,
    ),
    ("stacks_mount_from_homes_of_odd_names", stacks::odd_names),
    (
        "a_stack_mounted_in_a_shared_place_is_private",
        stacks::shared_place,
    ),
    (
        "the_deepest_absolute_stack_fits_and_one_more_is_refused",
        stacks::deepest_absolute,
    ),
    (
        "the_deepest_stacks_fit_for_homes_and_ids_of_any_length",
        lengths::deepest,
    ),
    (
        "bad_input_has_its_exit_code_and_changes_nothing",
        refusals::bad_input,
    ),
    (
        "a_killed_import_leaves_a_working_store",
        refusals::killed_import,
    ),
    ("a_store_survives_kill_9_at_any_moment", kill_storm::run),
    (
        "eight_processes_of_eight_threads_share_a_home",
        crowds::eight_of_eight,
    ),
    (
        "random_changes_with_redirects_and_metacopy_are_in_the_archives",
        scripts::random,
    ),
    (
        "scripts_do_the_same_on_the_mock_as_here",
        scripts::differential,
    ),
    (
        "random_changes_in_a_user_namespace_are_in_the_archives",
        scripts::random_in_namespace,
    ),
    (
        "a_sparse_file_of_4_gib_stays_sparse_on_disk_and_in_the_archive",
        shapes::sparse_file,
    ),
    (
        "a_layer_of_a_million_entries_takes_at_most_64_mib",
        shapes::many_entries,
    ),
    ("a_file_of_10_gib_takes_at_most_64_mib", shapes::large_file),
];

/// Scenarios that do something else each time, and for long.
pub(super) const OF_CHANCE: [&str; 3] = [
    "a_store_survives_kill_9_at_any_moment",
    "eight_processes_of_eight_threads_share_a_home",
    "random_changes_with_redirects_and_metacopy_are_in_the_archives",
];

/// Scenarios for a file system that enforces project quotas.
pub(super) const QUOTAS: [(&str, Scenario); 13] = [
    (
        "a_limit_of_5_mib_stops_writes_through_a_mount_there",
        quotas::writes_through_a_mount,
    ),
    (
        "a_limit_stops_direct_writes_unless_ext4_excepts_root",
        quotas::direct_writes,
    ),
    (
        "an_archive_that_does_not_fit_is_over_quota_and_leaves_nothing",
        quotas::the_stores_own_writes,
    ),
    (
        "a_limit_of_inodes_stops_files_directories_and_links",
        quotas::inodes,
    ),
    ("a_file_copied_up_counts", quotas::copy_up),
    (
        "limits_of_a_mounted_layer_change_at_once",
        quotas::live_changes,
    ),
    ("usage_is_what_the_files_take", quotas::usage),
    (
        "a_removed_layer_gives_its_project_back_and_others_keep_theirs",
        quotas::ids_after_removal,
    ),
    ("no_two_layers_share_a_project", quotas::no_id_twice),
    ("a_limit_of_one_byte_is_one_block", quotas::one_byte),
    (
        "projects_begin_after_a_base_that_is_set_or_the_homes_own",
        quotas::base_and_range,
    ),
    (
        "a_mounted_layer_without_project_is_in_nobodys_way",
        quotas::mounted_without,
    ),
    ("a_full_disk_is_not_over_quota", quotas::full_disk),
];

/// Those that cannot do without a Debian root and the programs of the host.
pub(super) const NEED_DEBIAN: [&str; 1] =
    ["a_debian_root_is_changed_and_the_change_applied_elsewhere"];

/// Where a scenario runs, and with what.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) ovl: PathBuf,
    /// Not where no Debian root can be made.
    pub(super) rootfs: Option<PathBuf>,
    pub(super) fs: FsKind,
    pub(super) quick: bool,
    /// What the scenarios of chance follow.
    pub(super) seed: u64,
    /// What the scenario has left out.
    pub(super) skips: RefCell<Vec<Skip>>,
}

impl Place {
    /// Tells that something is left out.
    fn skip(&self, skip: Skip) {
        self.skips.borrow_mut().push(skip);
    }

    /// The archive of a Debian root.
    pub(in crate::e2e) fn rootfs(&self) -> Result<&Path> {
        self.rootfs.as_deref().context("there is no Debian root")
    }

    /// An archive that takes a while to apply: a Debian root, or what is like one where there is
    /// none.
    fn large_archive(&self) -> Result<PathBuf> {
        if let Some(rootfs) = &self.rootfs {
            return Ok(rootfs.clone());
        }
        let mut archive = ArchiveBuilder::new();
        for dir in 0..40 {
            archive = archive.dir(&format!("dir-{dir}"), 0o755);
            for file in 0..50 {
                let contents = vec![b'x'; 40 * file];
                archive = archive.file(&format!("dir-{dir}/file-{file}"), &contents);
            }
        }
        let path = self.dir.join("large.tar");
        std::fs::write(&path, archive.finish())?;
        Ok(path)
    }

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
