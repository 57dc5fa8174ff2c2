//! The conformance suite on every kind of mock kernel.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ovl_testkit::conformance::{Skip, Subject, cases};
use ovl_testkit::{KernelProfile, MockKernel};

/// They take seconds, and depend on nothing but how the kernel can be told about layers.
const DEEP: [&str; 2] = [
    "a_stack_of_499_layers_mounts_by_every_strategy_without_a_length",
    "docker_deep_layer_read_of_128",
];

/// Runs all cases, each on a kernel of its own, and names those that fail. Gives what they left
/// out.
fn run(profile: &KernelProfile) -> Vec<(&'static str, Skip)> {
    run_some(profile, |_| true)
}

/// All but those: what they use, [`KernelProfile::modern`] and
/// [`KernelProfile::large_pages`] have between them.
fn run_shallow(profile: &KernelProfile) -> Vec<(&'static str, Skip)> {
    run_some(profile, |name| !DEEP.contains(&name))
}

fn subject(kernel: &MockKernel) -> Subject {
    let editor = kernel.clone();
    Subject::new(kernel.kernel(), "/scratch").editing(move |path, edit| editor.edit(path, edit))
}

fn run_some(profile: &KernelProfile, chosen: impl Fn(&str) -> bool) -> Vec<(&'static str, Skip)> {
    let (mut failed, mut skips) = (Vec::new(), Vec::new());
    let all = cases();
    assert!(all.len() > 50, "the suite has {} cases", all.len());
    for deep in DEEP {
        assert!(all.iter().any(|case| case.name == deep), "{deep}");
    }
    for case in all.into_iter().filter(|case| chosen(case.name)) {
        let kernel = MockKernel::new(profile.clone());
        kernel.mkdir_all("/scratch".as_ref()).unwrap();
        let subject = subject(&kernel);
        if catch_unwind(AssertUnwindSafe(|| (case.run)(&subject))).is_err() {
            failed.push(case.name);
        }
        skips.extend(subject.skips().into_iter().map(|skip| (case.name, skip)));
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
    skips
}

fn left_out(skips: &[(&str, Skip)], part: Option<&str>) -> bool {
    skips.iter().any(|(_, skip)| skip.part.as_deref() == part)
}

#[test]
fn all_cases_hold_on_a_modern_kernel() {
    assert_eq!(run(&KernelProfile::modern()), []);
}

#[test]
fn all_cases_hold_where_layers_cannot_be_open_directories() {
    let skips = run_shallow(&KernelProfile::named_layers());
    assert!(left_out(&skips, Some("layers-by-fd")), "{skips:?}");
    assert!(!left_out(&skips, Some("lowerdir-plus")), "{skips:?}");
}

#[test]
fn all_cases_hold_without_the_new_mount_api() {
    let skips = run_shallow(&KernelProfile::legacy());
    for part in [None, Some("layers-by-fd"), Some("lowerdir-plus")] {
        assert!(left_out(&skips, part), "{part:?}: {skips:?}");
    }
}

#[test]
fn all_cases_hold_on_linux_4_19() {
    let skips = run_shallow(&KernelProfile::linux_4_19());
    assert!(left_out(&skips, Some("lowerdir-plus")), "{skips:?}");
    let volatile = |(_, skip): &&(&str, Skip)| skip.reason.contains("volatile");
    assert!(skips.iter().filter(volatile).count() >= 8, "{skips:?}");
    run_shallow(&KernelProfile::linux_4_4());
}

#[test]
fn all_cases_hold_where_mounts_write_redirects_unless_told_otherwise() {
    assert_eq!(run_shallow(&KernelProfile::redirect_on()), []);
}

#[test]
fn all_cases_hold_where_files_take_only_the_attributes_of_root() {
    let skips = run_shallow(&KernelProfile::legacy_tmpfs());
    assert!(left_out(&skips, Some("user attributes")), "{skips:?}");
    assert!(!left_out(&skips, Some("trusted attributes")), "{skips:?}");
}

#[test]
fn all_cases_hold_in_a_user_namespace() {
    let skips = run_shallow(&KernelProfile::rootless());
    assert!(left_out(&skips, None), "{skips:?}");
}

#[test]
fn all_cases_hold_with_large_pages() {
    let skips = run(&KernelProfile::large_pages());
    assert!(left_out(&skips, Some("lowerdir-plus")), "{skips:?}");
}

#[test]
fn all_cases_hold_on_xfs() {
    assert_eq!(run_shallow(&KernelProfile::xfs()), []);
}

#[test]
fn all_cases_hold_in_a_user_namespace_with_many_ids() {
    let mut profile = KernelProfile::rootless();
    profile.identity.uids = vec![0..1, 1..300_000];
    profile.identity.gids = profile.identity.uids.clone();
    let skips = run_shallow(&profile);
    assert!(left_out(&skips, None), "{skips:?}");
}

#[test]
fn random_changes_are_what_diffs_say() {
    let kernel = MockKernel::new(KernelProfile::modern());
    kernel.mkdir_all("/scratch".as_ref()).unwrap();
    let subject = subject(&kernel);
    let written = ovl_testkit::conformance::run_scripts(&subject, 100..356);
    assert!(
        written.redirects > 128 && written.metacopies > 128,
        "{written:?}"
    );
}
