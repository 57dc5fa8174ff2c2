//! Every operation of the kernel fails once, with every error that it can give, or everything fails
//! from one on.

use std::env;
use std::fmt;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use ovl_driver::Durability;
use ovl_layout::LayerId;
use ovl_testkit::{Fault, Journal, KernelProfile, Operation};

use super::cases::{Case, LAYERS, MOUNTS, NO_FAULT, READING, SCRIPTS};
use super::scene::{Scene, World, is_between, is_same, kind, words};

/// What a case does when nothing fails.
struct Reference {
    /// Before the first step, and after each.
    worlds: Vec<World>,
    said: Vec<String>,
    journal: Journal,
    is_sound: bool,
    unheld: Vec<LayerId>,
}

/// How long to go on, in seconds, and with it that this is a run of `cargo xtask fuzz`.
const SECONDS: &str = "OVL_FUZZ_SECONDS";
const EIO: i32 = 5;

#[derive(Default)]
struct Counts {
    operations: u64,
    faults: u64,
    refused: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.faults += other.faults;
        self.refused += other.refused;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operations,
            faults,
            refused,
        } = self;
        write!(
            f,
            "{operations} operations, {faults} faults, {refused} told as errors"
        )
    }
}

/// What goes wrong at an operation of a case.
#[derive(Clone, Copy, Debug)]
enum Faults {
    /// It fails with each error that it can give.
    Each,
    /// It fails with one of them, at every so-manieth operation: the next one at the next.
    One(usize),
    /// It and all after it fail, at every so-manieth operation.
    From(usize),
}

impl Faults {
    fn at(self, index: usize, operation: &Operation) -> Vec<Fault> {
        let at = index as u64 + 1;
        let errors = operation.plausible_errors();
        let once = |&errno: &i32| Fault::Once { at, errno };
        match self {
            Self::Each => errors.iter().map(once).collect(),
            Self::One(step) if index.is_multiple_of(step) && !errors.is_empty() => {
                vec![once(&errors[index / step % errors.len()])]
            }
            Self::From(step) if index.is_multiple_of(step) => vec![Fault::From { at, errno: EIO }],
            Self::One(_) | Self::From(_) => Vec::new(),
        }
    }
}

fn prepared(case: &Case, home: &Scene) -> Scene {
    let scene = home.fork(Durability::Layer);
    (case.prepare)(&scene);
    scene
}

fn reference(case: &Case, prepared: &Scene) -> Reference {
    let scene = prepared.fork(Durability::Layer);
    let is_sound = scene.store.check().unwrap().is_sound();
    let unheld = scene.unheld(&scene.store).unwrap();
    let (mut worlds, mut said) = (vec![scene.look(&scene.store).unwrap()], Vec::new());
    for step in case.steps {
        said.push(step(&scene).unwrap_or_else(|error| panic!("{}: {error}", case.name)));
        worlds.push(scene.look(&scene.store).unwrap());
    }
    let scene = prepared.fork(Durability::Layer);
    scene.faulty.order(NO_FAULT);
    for step in case.steps {
        step(&scene).unwrap();
    }
    Reference {
        worlds,
        said,
        journal: scene.faulty.journal(),
        is_sound,
        unheld,
    }
}

/// One run with one fault. `Ok(true)` when a step said that it failed.
fn with_fault(
    case: &Case,
    prepared: &Scene,
    reference: &Reference,
    fault: Fault,
) -> Result<bool, String> {
    let scene = prepared.fork(Durability::Layer);
    scene.faulty.order(fault);
    let (mut done, mut failed) = (0, None);
    for (step, said) in case.steps.iter().zip(&reference.said) {
        match step(&scene) {
            Ok(now) if now == *said => done += 1,
            // It may know less, but nothing else.
            Ok(now) if now.is_empty() => done += 1,
            Ok(now) => return Err(format!("it says {now}\nand not {said}")),
            Err(error) => {
                failed = Some(words(&error));
                break;
            }
        }
    }
    let journal = scene.faulty.journal();
    let fired = scene.faulty.has_fired();
    scene.faulty.heal();
    let told = failed.clone().unwrap_or_else(|| "done".to_owned());
    let result = judge(case, &scene, reference, done, fault);
    match fired {
        true => result.map_err(|problem| format!("{problem}\n{told}, after\n{journal}")),
        false => Err(format!("the fault did not come:\n{journal}")),
    }?;
    Ok(failed.is_some())
}

fn judge(
    case: &Case,
    scene: &Scene,
    reference: &Reference,
    done: usize,
    fault: Fault,
) -> Result<(), String> {
    let store = scene.reopened()?;
    let worlds = &reference.worlds;
    let last = worlds.len() - 1;
    let found = scene.look(&store)?;
    match done == last {
        true => is_same(&found, &worlds[last])?,
        false => is_between(&found, &worlds[done], &worlds[done + 1])?,
    }
    let report = store.check().map_err(|error| words(&error))?;
    if reference.is_sound && !report.is_sound() {
        return Err(format!("the home is damaged: {report:#?}"));
    }
    let unheld = scene.unheld(&store)?;
    // Where everything fails, a mount cannot be taken back either.
    let goes_on = matches!(fault, Fault::From { .. });
    if !goes_on && unheld.iter().any(|id| !reference.unheld.contains(id)) {
        return Err(format!("nobody holds the mounts of {unheld:?}"));
    }
    for step in &case.steps[done..] {
        match step(scene) {
            Err(error) if !case.done.contains(&&*kind(&error)) => {
                return Err(format!("once more: {}", words(&error)));
            }
            _ => {}
        }
    }
    is_same(&scene.look(&store)?, &worlds[last])
        .map_err(|problem| format!("once more: {problem}"))?;
    scene.clean(&store)
}

fn run(cases: &[Case]) -> Counts {
    let home = Scene::new(Durability::Layer);
    run_on(&home, "modern", cases, Faults::Each)
}

fn run_on(home: &Scene, kernel: &str, cases: &[Case], faults: Faults) -> Counts {
    let mut counts = Counts::default();
    let mut problems = Vec::new();
    let keeps_limits = home.keeps_limits();
    let cases: Vec<_> = cases
        .iter()
        .filter(|case| keeps_limits || !case.limits)
        .collect();
    for case in &cases {
        let prepared = prepared(case, home);
        let reference = reference(case, &prepared);
        let before = counts.faults;
        for (index, operation) in reference.journal.operations().iter().enumerate() {
            counts.operations += 1;
            for fault in faults.at(index, operation) {
                counts.faults += 1;
                match with_fault(case, &prepared, &reference, fault) {
                    Ok(refused) => counts.refused += u64::from(refused),
                    Err(problem) => {
                        let name = case.name;
                        problems.push(format!("{name}, {fault:?}: {problem}"));
                    }
                }
            }
        }
        println!(
            "faults: {}: {} operations, {} faults",
            case.name,
            reference.journal.operations().len(),
            counts.faults - before
        );
    }
    let shown: Vec<_> = problems.iter().take(5).map(String::as_str).collect();
    assert!(
        problems.is_empty(),
        "{kernel}, {faults:?}: {} problems:\n{}",
        problems.len(),
        shown.join("\n\n")
    );
    println!(
        "faults: {kernel}, {faults:?}: {} cases, {counts}",
        cases.len()
    );
    counts
}

/// Everything on every kind of kernel.
fn all_of_it(time: Duration) {
    let start = Instant::now();
    let mut sum = Counts::default();
    let profiles = [
        ("xfs", KernelProfile::xfs()),
        ("rootless", KernelProfile::rootless()),
        ("modern", KernelProfile::modern()),
    ];
    'runs: for (name, profile) in profiles {
        let home = Scene::of(profile, Durability::Layer);
        for faults in [Faults::From(1), Faults::Each] {
            for cases in [READING, LAYERS, MOUNTS, SCRIPTS] {
                sum.add(&run_on(&home, name, cases, faults));
                if start.elapsed() >= time {
                    break 'runs;
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs();
    let line = format!("fuzz faults: {sum}, in {seconds} s, no failure\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

#[test]
fn whatever_fails_while_a_store_is_read_nothing_changes() {
    let counts = run(READING);
    assert!(counts.faults > 100, "{} faults", counts.faults);
}

#[test]
fn whatever_fails_layers_are_made_and_removed_as_a_whole() {
    let counts = run(LAYERS);
    assert!(counts.faults > 100, "{} faults", counts.faults);
}

#[test]
fn whatever_fails_nothing_stays_mounted_that_nobody_holds() {
    let counts = run(MOUNTS);
    assert!(counts.faults > 100, "{} faults", counts.faults);
}

#[test]
fn whatever_fails_in_a_script_it_can_go_on() {
    let counts = run(SCRIPTS);
    assert!(counts.faults > 100, "{} faults", counts.faults);
}

#[test]
fn whatever_fails_from_a_point_on_nothing_is_half_done() {
    if let Ok(seconds) = env::var(SECONDS) {
        return all_of_it(Duration::from_secs(seconds.parse().unwrap()));
    }
    let home = Scene::new(Durability::Layer);
    let mut counts = run_on(&home, "modern", MOUNTS, Faults::From(1));
    // `cargo xtask fuzz faults` takes every operation.
    counts.add(&run_on(&home, "modern", LAYERS, Faults::From(6)));
    assert!(counts.faults > 500, "{counts}");
}

/// `cargo xtask fuzz faults` takes every operation, with every error.
#[test]
fn whatever_fails_with_quotas_of_another_kind_or_with_none() {
    for (name, profile) in [
        ("xfs", KernelProfile::xfs()),
        ("rootless", KernelProfile::rootless()),
    ] {
        let home = Scene::of(profile, Durability::Layer);
        for (cases, step) in [(LAYERS, 4), (MOUNTS, 1)] {
            let counts = run_on(&home, name, cases, Faults::One(step));
            assert!(counts.faults > 100, "{name}: {counts}");
        }
    }
}
