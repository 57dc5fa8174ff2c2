//! Project ids: which exist, and which comes next.

use std::collections::BTreeSet;

use ovl_quota::{IdsExhausted, ProjectId, ProjectIds, ProjectRange};
use proptest::prelude::*;

fn id(number: u32) -> ProjectId {
    ProjectId::new(number).unwrap()
}

fn range(first: u32, last: u32) -> ProjectRange {
    ProjectRange::new(id(first), id(last)).unwrap()
}

#[test]
fn the_numbers_for_no_project_and_the_invalid_project_are_no_ids() {
    assert_eq!(ProjectId::new(0), None);
    assert_eq!(ProjectId::new(u32::MAX), None);
    assert_eq!(ProjectId::MIN.get(), 1);
    assert_eq!(ProjectId::MAX.get(), u32::MAX - 1);
    assert_eq!(u32::from(id(7)), 7);
    assert_eq!(id(7).to_string(), "7");
}

#[test]
fn ranges_are_never_empty() {
    assert_eq!(ProjectRange::new(id(5), id(4)), None);
    let one = range(5, 5);
    assert!(one.contains(id(5)) && !one.contains(id(4)) && !one.contains(id(6)));
}

#[test]
fn ids_start_where_docker_starts() {
    let first = |base| ProjectRange::after_base(base).map(|range| range.first().get());
    assert_eq!(first(None), Some(2));
    assert_eq!(first(Some(id(1_048_576))), Some(1_048_578));
    assert_eq!(first(Some(id(u32::MAX - 3))), Some(u32::MAX - 1));
    assert_eq!(first(Some(id(u32::MAX - 2))), None);
    assert_eq!(first(Some(ProjectId::MAX)), None);
}

#[test]
fn ids_end_with_the_range_and_come_back_when_released() {
    let mut ids = ProjectIds::new(range(8, 10));
    let taken: Vec<u32> = (0..3).map(|_| ids.allocate().unwrap().get()).collect();
    assert_eq!(taken, [8, 9, 10]);
    let error = ids.allocate().unwrap_err();
    assert!(matches!(error, IdsExhausted { range: r, .. } if r == range(8, 10)));
    assert_eq!(
        error.to_string(),
        "all project ids from 8 to 10 are in use; remove layers, or use a wider range"
    );
    assert!(ids.release(id(9)));
    assert!(!ids.release(id(9)), "already free");
    assert_eq!(ids.allocate(), Ok(id(9)));
    assert!(ids.allocate().is_err());
}

#[test]
fn the_last_id_of_all_is_handed_out() {
    let mut ids = ProjectIds::new(range(u32::MAX - 2, u32::MAX - 1));
    assert_eq!(ids.allocate(), Ok(id(u32::MAX - 2)));
    assert_eq!(ids.allocate(), Ok(ProjectId::MAX));
    assert!(ids.allocate().is_err());
    assert!(ids.release(ProjectId::MAX));
    assert_eq!(ids.allocate(), Ok(ProjectId::MAX));
}

#[test]
fn observed_ids_are_passed_over_and_others_outside_the_range_ignored() {
    let mut ids = ProjectIds::new(range(2, 9));
    assert!(ids.observe(id(2)) && ids.observe(id(4)));
    assert!(!ids.observe(id(4)), "known");
    assert!(!ids.observe(id(1)) && !ids.observe(id(10)), "outside");
    assert_eq!(ids.used(), 2);
    assert_eq!(ids.allocate(), Ok(id(3)));
    assert_eq!(ids.allocate(), Ok(id(5)));
    assert!(!ids.release(id(10)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate,
    Observe(u32),
    Release(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Allocate),
        1 => (1_u32..16).prop_map(Step::Observe),
        2 => (1_u32..16).prop_map(Step::Release),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn no_id_in_use_is_handed_out_and_the_smallest_free_one_is(script in steps()) {
        let range = range(3, 12);
        let mut ids = ProjectIds::new(range);
        let mut used = BTreeSet::new();
        for step in script {
            match step {
                Step::Allocate => {
                    let free = (3..=12).find(|number| !used.contains(number));
                    let got = ids.allocate().ok().map(ProjectId::get);
                    prop_assert_eq!(got, free);
                    used.extend(got);
                }
                Step::Observe(number) => {
                    let expected = (3..=12).contains(&number) && used.insert(number);
                    prop_assert_eq!(ids.observe(id(number)), expected);
                }
                Step::Release(number) => {
                    prop_assert_eq!(ids.release(id(number)), used.remove(&number));
                }
            }
            prop_assert_eq!(ids.used(), used.len());
            for number in 1..16 {
                prop_assert_eq!(ids.is_used(id(number)), used.contains(&number));
            }
        }
    }
}
