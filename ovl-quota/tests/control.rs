//! `QuotaControl` over a file system in memory.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use ovl_quota::{
    Bytes, Enforcement, Limits, LimitsError, ProjectId, ProjectRange, QuotaBackend, QuotaControl,
    QuotaError, UnsupportedReason,
};
use proptest::prelude::*;

use crate::mock::MockQuota;

const HOME: &str = "/home";

fn id(number: u32) -> ProjectId {
    ProjectId::new(number).unwrap()
}

fn mib(number: u64) -> Limits {
    Limits::UNLIMITED.bytes(Some(Bytes::new(number << 20)))
}

fn mock() -> Arc<MockQuota> {
    Arc::new(MockQuota::new(Path::new(HOME)))
}

fn probe(mock: &Arc<MockQuota>) -> Result<QuotaControl, QuotaError> {
    QuotaControl::probe(Arc::clone(mock) as Arc<dyn QuotaBackend>, Path::new(HOME))
}

fn add(mock: &MockQuota, name: &str) -> PathBuf {
    let dir = Path::new(HOME).join(name);
    mock.add_dir(&dir);
    dir
}

fn reason(result: Result<QuotaControl, QuotaError>) -> UnsupportedReason {
    match result {
        Err(QuotaError::Unsupported { home, reason, .. }) => {
            assert_eq!(home, Path::new(HOME));
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_home_without_enforcement_is_refused_with_what_was_found_and_what_to_do() {
    let mock = mock();
    for (found, advice) in [
        (Enforcement::Unsupported, "use XFS or ext4"),
        (Enforcement::Off, "prjquota"),
        (Enforcement::AccountingOnly, "not enforced"),
    ] {
        mock.state().enforcement = found;
        let error = probe(&mock).unwrap_err();
        assert!(error.to_string().contains(advice), "{error}");
        assert!(error.to_string().contains(HOME), "{error}");
        assert_eq!(reason(Err(error)), UnsupportedReason::NotEnforced(found));
    }
}

#[test]
fn a_home_with_the_inherit_flag_is_refused_with_the_command_that_clears_it() {
    let mock = mock();
    mock.assign_project(Path::new(HOME), Some(id(100))).unwrap();
    let error = probe(&mock).unwrap_err();
    assert!(
        error.to_string().ends_with("`chattr -P -- /home`"),
        "{error}"
    );
    assert_eq!(reason(Err(error)), UnsupportedReason::HomeInherits);

    mock.state()
        .dirs
        .insert(HOME.into(), (Some(id(100)), false));
    let control = probe(&mock).unwrap();
    assert_eq!(
        control.range().first(),
        id(102),
        "its project alone sets the base"
    );
}

#[test]
fn a_home_whose_project_leaves_no_ids_is_refused() {
    let mock = mock();
    mock.state()
        .dirs
        .insert(HOME.into(), (Some(ProjectId::MAX), false));
    assert_eq!(
        reason(probe(&mock)),
        UnsupportedReason::NoIdsAfter(ProjectId::MAX)
    );
    let range = ProjectRange::new(id(5), ProjectId::MAX).unwrap();
    let control = QuotaControl::probe_in(mock, Path::new(HOME), range).unwrap();
    assert_eq!(control.range(), range);
}

#[test]
fn a_caller_without_the_privilege_is_told_which() {
    let mock = mock();
    // project_of, enforcement, inherits, then used_ids.
    mock.state().fail = Some((3, 1, libc::EPERM));
    let error = probe(&mock).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("CAP_SYS_ADMIN in the initial user namespace"),
        "{error}"
    );
    assert_eq!(reason(Err(error)), UnsupportedReason::NotPermitted);
}

#[test]
fn other_failures_of_the_probe_name_operation_and_path_and_keep_the_source() {
    for nth in 0..5 {
        let mock = mock();
        mock.state().fail = Some((nth, 1, libc::EIO));
        let error = probe(&mock).unwrap_err();
        assert!(matches!(&error, QuotaError::Io { path, .. } if path == Path::new(HOME)));
        let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.raw_os_error(), Some(libc::EIO));
        assert!(!error.to_string().contains(&source.to_string()), "{error}");
    }
}

#[test]
fn each_directory_gets_a_project_of_its_own_and_keeps_it() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let (a, b) = (add(&mock, "a"), add(&mock, "b"));
    assert_eq!(control.usage(&a).unwrap(), None);

    assert_eq!(control.limit(&a, mib(5)).unwrap(), id(2));
    assert_eq!(control.limit(&b, Limits::UNLIMITED).unwrap(), id(3));
    assert_eq!(control.limit(&a, mib(7).inodes(Some(10))).unwrap(), id(2));

    let usage = control.usage(&a).unwrap().unwrap();
    assert_eq!(usage.limits, mib(7).inodes(Some(10)));
    assert_eq!(usage.inodes, 1);
    assert!(control.usage(&b).unwrap().unwrap().limits.is_unlimited());
    assert_eq!(mock.state().dirs[&a], (Some(id(2)), true));

    assert_eq!(control.limit(&a, Limits::UNLIMITED).unwrap(), id(2));
    assert!(control.usage(&a).unwrap().unwrap().limits.is_unlimited());
}

#[test]
fn one_byte_is_a_limit_and_none_is_refused_before_anything_is_done() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let dir = add(&mock, "a");
    let zero = Limits::UNLIMITED.bytes(Some(Bytes::ZERO));
    let error = control.limit(&dir, zero).unwrap_err();
    assert!(matches!(error, QuotaError::Limits(LimitsError::ZeroBytes)));
    assert_eq!(mock.state().dirs[&dir], (None, false));

    control
        .limit(&dir, Limits::UNLIMITED.bytes(Some(Bytes::new(1))))
        .unwrap();
    let usage = control.usage(&dir).unwrap().unwrap();
    assert_eq!(usage.limits.bytes, Some(Bytes::new(512)));
}

#[test]
fn a_directory_is_tagged_before_limits_are_set_and_untagged_after_they_are_lifted() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let dir = add(&mock, "a");
    let writes = |mock: &MockQuota| {
        let calls = std::mem::take(&mut mock.state().calls);
        calls
            .into_iter()
            .filter(|call| call.contains("set_") || call.contains("assign"))
            .collect()
    };
    let _: Vec<_> = writes(&mock);
    control.limit(&dir, mib(1)).unwrap();
    let done: Vec<_> = writes(&mock);
    assert_eq!(done, ["assign_project", "set_limits"]);
    control.release(&dir).unwrap();
    let done: Vec<_> = writes(&mock);
    assert_eq!(done, ["set_limits", "assign_project"]);
}

#[test]
fn a_released_id_is_used_again_only_when_its_files_are_gone() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let (a, b, c) = (add(&mock, "a"), add(&mock, "b"), add(&mock, "c"));
    control.limit(&a, mib(1)).unwrap();
    mock.state().files.insert(id(2), (8192, 1));

    assert_eq!(control.release(&a).unwrap(), Some(id(2)));
    assert_eq!(control.release(&a).unwrap(), None);
    assert!(mock.state().limits.is_empty());
    assert_eq!(mock.state().dirs[&a], (None, false));
    assert_eq!(
        control.limit(&b, mib(1)).unwrap(),
        id(3),
        "files of project 2 are left"
    );

    mock.state().files.clear();
    assert_eq!(control.limit(&c, mib(1)).unwrap(), id(2));
}

#[test]
fn ids_are_found_again_after_a_restart() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let (a, b) = (add(&mock, "a"), add(&mock, "b"));
    control.limit(&a, mib(1)).unwrap();
    drop(control);

    let control = probe(&mock).unwrap();
    assert_eq!(control.adopt(&a).unwrap(), Some(id(2)));
    assert_eq!(control.adopt(&b).unwrap(), None);
    assert_eq!(control.limit(&b, mib(1)).unwrap(), id(3));
    assert_eq!(control.usage(&a).unwrap().unwrap().limits, mib(1));
}

#[test]
fn projects_of_others_on_the_file_system_are_passed_over() {
    let mock = mock();
    mock.state().files.insert(id(2), (4096, 1));
    mock.state().limits.insert(id(3), mib(1));
    let control = probe(&mock).unwrap();
    // This one came after the probe.
    mock.state().files.insert(id(4), (4096, 1));
    assert_eq!(control.limit(&add(&mock, "a"), mib(1)).unwrap(), id(5));
    assert_eq!(mock.state().limits[&id(3)], mib(1));
}

#[test]
fn a_directory_of_a_foreign_project_is_not_touched() {
    let mock = mock();
    let dir = add(&mock, "a");
    mock.assign_project(&dir, Some(id(1))).unwrap();
    let control = probe(&mock).unwrap();
    let error = control.limit(&dir, mib(1)).unwrap_err();
    assert!(matches!(error, QuotaError::ForeignProject { project, .. } if project == id(1)));
    assert_eq!(control.release(&dir).unwrap(), None);
    assert_eq!(mock.state().dirs[&dir], (Some(id(1)), true));
    assert!(mock.state().limits.is_empty());
}

#[test]
fn a_tagged_directory_without_the_inherit_flag_gets_it() {
    let mock = mock();
    let dir = add(&mock, "a");
    mock.state().dirs.insert(dir.clone(), (Some(id(9)), false));
    let control = probe(&mock).unwrap();
    assert_eq!(control.limit(&dir, mib(1)).unwrap(), id(9));
    assert_eq!(mock.state().dirs[&dir], (Some(id(9)), true));
}

#[test]
fn a_full_range_is_reported_and_nothing_is_tagged() {
    let mock = mock();
    let range = ProjectRange::new(id(7), id(8)).unwrap();
    let backend = Arc::clone(&mock) as Arc<dyn QuotaBackend>;
    let control = QuotaControl::probe_in(backend, Path::new(HOME), range).unwrap();
    // Not ours, and not there when the control began.
    mock.state().files.insert(id(7), (4096, 1));
    let (a, b) = (add(&mock, "a"), add(&mock, "b"));
    assert_eq!(control.limit(&a, mib(1)).unwrap(), id(8));
    let error = control.limit(&b, mib(1)).unwrap_err();
    assert!(matches!(error, QuotaError::IdsExhausted(_)));
    assert_eq!(mock.state().dirs[&b], (None, false));

    mock.state().files.clear();
    assert_eq!(
        control.limit(&b, mib(1)).unwrap(),
        id(7),
        "passed over is not lost"
    );
}

/// A control with the only id 7, over a file system where usage tells nothing about directories.
fn one_id(mock: &Arc<MockQuota>) -> QuotaControl {
    mock.state().dirs_count = false;
    let range = ProjectRange::new(id(7), id(7)).unwrap();
    QuotaControl::probe_in(Arc::clone(mock) as _, Path::new(HOME), range).unwrap()
}

#[test]
fn an_adopted_id_is_not_given_away_even_if_its_usage_is_zero() {
    let mock = mock();
    let (a, b) = (add(&mock, "a"), add(&mock, "b"));
    mock.assign_project(&a, Some(id(7))).unwrap();
    let control = one_id(&mock);
    assert_eq!(control.adopt(&a).unwrap(), Some(id(7)));
    let error = control.limit(&b, mib(1)).unwrap_err();
    assert!(matches!(error, QuotaError::IdsExhausted(_)));
}

#[test]
fn the_project_of_the_home_is_not_given_away_even_if_the_range_has_it() {
    let mock = mock();
    mock.state().dirs.insert(HOME.into(), (Some(id(7)), false));
    let control = one_id(&mock);
    let error = control.limit(&add(&mock, "a"), mib(1)).unwrap_err();
    assert!(matches!(error, QuotaError::IdsExhausted(_)));
}

#[test]
fn a_failed_limit_leaves_the_directory_without_a_project_and_the_id_free() {
    // project_of and usage, then assign_project, then set_limits.
    for calls_before in [2, 3] {
        let mock = mock();
        let control = one_id(&mock);
        let (a, b) = (add(&mock, "a"), add(&mock, "b"));
        mock.state().fail = Some((calls_before, 1, libc::EIO));
        let error = control.limit(&a, mib(1)).unwrap_err();
        assert!(
            matches!(&error, QuotaError::Io { path, .. } if *path == a),
            "{error:?}"
        );
        assert_eq!(mock.state().dirs[&a], (None, false));
        assert_eq!(control.limit(&b, mib(1)).unwrap(), id(7));
    }
}

#[test]
fn an_id_that_cannot_be_taken_off_a_directory_stays_in_use() {
    let mock = mock();
    let control = one_id(&mock);
    let (a, b) = (add(&mock, "a"), add(&mock, "b"));
    // set_limits, and then assign_project that would undo.
    mock.state().fail = Some((3, 2, libc::EIO));
    control.limit(&a, mib(1)).unwrap_err();
    assert_eq!(mock.state().dirs[&a], (Some(id(7)), true));
    let error = control.limit(&b, mib(1)).unwrap_err();
    assert!(matches!(error, QuotaError::IdsExhausted(_)));
    assert_eq!(
        control.limit(&a, mib(1)).unwrap(),
        id(7),
        "repeated, it is done"
    );
}

#[test]
fn a_write_past_a_limit_is_one_typed_error_on_both_file_systems() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let dir = add(&mock, "a");
    control.limit(&dir, mib(64).inodes(Some(100))).unwrap();
    mock.state().files.insert(id(2), (63 << 20, 9));
    for errno in [libc::ENOSPC, libc::EDQUOT] {
        let source = io::Error::from_raw_os_error(errno);
        let error = control.over_quota(&dir, &source, Bytes::ZERO).unwrap();
        let QuotaError::OverQuota { project, usage, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(
            (*project, usage.bytes, usage.limits),
            (id(2), Bytes::new(63 << 20), mib(64).inodes(Some(100)))
        );
        assert_eq!(
            error.to_string(),
            "/home/a is over the quota of its project 2: 63 MiB and 10 inodes in use, limit: 64 \
             MiB and 100 inodes; remove files, or raise the limit"
        );
    }
}

#[test]
fn a_full_file_system_is_not_taken_for_a_quota() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let (a, b, c) = (add(&mock, "a"), add(&mock, "b"), add(&mock, "c"));
    control.limit(&a, mib(64).inodes(Some(10))).unwrap();
    control.limit(&b, Limits::UNLIMITED).unwrap();
    let over = |dir: &Path, errno, wanted| {
        control
            .over_quota(
                dir,
                &io::Error::from_raw_os_error(errno),
                Bytes::new(wanted),
            )
            .is_some()
    };
    assert!(!over(&a, libc::ENOSPC, 0), "much is left");
    assert!(over(&a, libc::ENOSPC, 65 << 20), "but not that much");
    assert!(
        over(&a, libc::EDQUOT, 0),
        "ext4 says EDQUOT for nothing else"
    );
    assert!(!over(&a, libc::EIO, 65 << 20));
    for dir in [&b, &c] {
        assert!(
            !over(dir, libc::ENOSPC, 1) && !over(dir, libc::EDQUOT, 1),
            "no limit"
        );
    }
    mock.state().files.insert(id(2), (0, 9));
    assert!(over(&a, libc::ENOSPC, 0), "no inode is left");
}

#[test]
fn threads_never_get_the_same_project() {
    let mock = mock();
    let control = probe(&mock).unwrap();
    let dirs: Vec<_> = (0..64)
        .map(|number| add(&mock, &number.to_string()))
        .collect();
    let got: Vec<ProjectId> = thread::scope(|scope| {
        let workers: Vec<_> = dirs
            .chunks(16)
            .map(|dirs| {
                let control = &control;
                scope.spawn(move || -> Vec<_> {
                    dirs.iter()
                        .map(|dir| control.limit(dir, mib(1)).unwrap())
                        .collect()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 64);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Limit(usize, u64),
    Release(usize),
    /// Removes a directory that was released, or leaves its files behind.
    Remove(usize, bool),
    /// XFS gets round to freeing files.
    Settle,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..6, 0_u64..4).prop_map(|(dir, mib)| Step::Limit(dir, mib)),
        2 => (0_usize..6).prop_map(Step::Release),
        2 => (0_usize..6, any::<bool>()).prop_map(|(dir, left)| Step::Remove(dir, left)),
        1 => Just(Step::Settle),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// No two directories share a project, no limit belongs to a project without a directory, and no
/// directory has a project that has files of a removed one.
fn check(mock: &MockQuota, left_behind: &BTreeSet<ProjectId>) -> Result<(), TestCaseError> {
    let state = mock.state();
    let held: Vec<_> = state
        .dirs
        .values()
        .filter_map(|(project, _)| *project)
        .collect();
    let distinct: BTreeSet<_> = held.iter().copied().collect();
    prop_assert_eq!(held.len(), distinct.len(), "{:?}", held);
    prop_assert!(
        state.limits.keys().all(|id| distinct.contains(id)),
        "{:?}",
        state.limits
    );
    prop_assert!(left_behind.is_disjoint(&distinct), "{:?}", left_behind);
    Ok(())
}

proptest! {
    #[test]
    fn projects_stay_distinct_and_limits_never_leak(
        script in steps(),
        failures in prop::collection::vec((0_usize..40, any::<bool>()), 0..6),
    ) {
        let mock = mock();
        let dirs: Vec<_> = (0..6).map(|number| add(&mock, &number.to_string())).collect();
        let mut control = probe(&mock).unwrap();
        let mut left_behind = BTreeSet::new();
        let mut failures = failures.into_iter();
        for step in script {
            if mock.state().fail.is_none() {
                let errno = |no_space| if no_space { libc::ENOSPC } else { libc::EIO };
                mock.state().fail = failures.next().map(|(nth, kind)| (nth, 1, errno(kind)));
            }
            match step {
                Step::Limit(dir, mib_or_none) => {
                    if !mock.state().dirs.contains_key(&dirs[dir]) {
                        mock.add_dir(&dirs[dir]);
                    }
                    let had = mock.state().dirs[&dirs[dir]].0;
                    let limits = if mib_or_none == 0 { Limits::UNLIMITED } else { mib(mib_or_none) };
                    if let Ok(project) = control.limit(&dirs[dir], limits) {
                        prop_assert_eq!(mock.state().dirs[&dirs[dir]], (Some(project), true));
                        prop_assert!(had.is_none_or(|had| had == project));
                        mock.state().files.entry(project).or_insert((4096, 1));
                    }
                }
                Step::Release(dir) => drop(control.release(&dirs[dir])),
                Step::Remove(dir, leave_files) => {
                    let before = mock.state().dirs.get(&dirs[dir]).and_then(|(project, _)| *project);
                    if let Ok(Some(project)) = control.release(&dirs[dir]) {
                        prop_assert_eq!(Some(project), before);
                        mock.state().dirs.remove(&dirs[dir]);
                        if leave_files && mock.state().files.contains_key(&project) {
                            left_behind.insert(project);
                        } else {
                            mock.state().files.remove(&project);
                        }
                    }
                }
                Step::Settle => {
                    left_behind.clear();
                    let mut state = mock.state();
                    let held: BTreeSet<_> = state.dirs.values().filter_map(|(id, _)| *id).collect();
                    state.files.retain(|id, _| held.contains(id));
                }
                Step::Restart => {
                    mock.state().fail = None;
                    control = probe(&mock).unwrap();
                    for dir in &dirs {
                        drop(control.adopt(dir));
                    }
                }
            }
            check(&mock, &left_behind)?;
        }
    }
}
