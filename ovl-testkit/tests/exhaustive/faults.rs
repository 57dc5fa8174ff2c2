//! Every operation of the kernel fails once, with every error that it can give.

use ovl_driver::Durability;
use ovl_layout::LayerId;
use ovl_testkit::{Fault, Journal};

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

#[derive(Default)]
struct Counts {
    operations: u64,
    faults: u64,
    refused: u64,
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
    let result = judge(case, &scene, reference, done);
    match fired {
        true => result.map_err(|problem| format!("{problem}\n{told}, after\n{journal}")),
        false => Err(format!("the fault did not come:\n{journal}")),
    }?;
    Ok(failed.is_some())
}

fn judge(case: &Case, scene: &Scene, reference: &Reference, done: usize) -> Result<(), String> {
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
    if unheld.iter().any(|id| !reference.unheld.contains(id)) {
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
    let mut counts = Counts::default();
    let mut problems = Vec::new();
    for case in cases {
        let prepared = prepared(case, &home);
        let reference = reference(case, &prepared);
        let before = counts.faults;
        for (index, operation) in reference.journal.operations().iter().enumerate() {
            let at = index as u64 + 1;
            counts.operations += 1;
            for &errno in operation.plausible_errors() {
                counts.faults += 1;
                let fault = Fault::Once { at, errno };
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
        "{} problems:\n{}",
        problems.len(),
        shown.join("\n\n")
    );
    println!(
        "faults: {} cases, {} operations, {} faults, {} told as errors",
        cases.len(),
        counts.operations,
        counts.faults,
        counts.refused
    );
    counts
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
