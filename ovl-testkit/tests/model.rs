//! The store against its model, by chance: some hundred scripts with the other tests, and as many as
//! there is time for with `cargo xtask fuzz model`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Error, Kernel, MountRequest, OpenOptions, ProcessId, UpkeepOptions};
use ovl_quota::Bytes;
use ovl_testkit::model::{Machine, MockMachine, Script, Step, Summary, replay, scripts, shrink};
use ovl_testkit::{Faulty, KernelProfile, MockKernel, Survivors};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// How long to go on, in seconds, and with it that this is a run of `cargo xtask fuzz`.
const SECONDS: &str = "OVL_FUZZ_SECONDS";
/// How many scripts there are in a run of the tests.
const CASES: &str = "OVL_MODEL_CASES";
const STEPS: usize = 60;

/// Runs scripts, and panics with the smallest that fails.
fn run(mut runner: TestRunner, profile: &KernelProfile) -> Summary {
    let summary = RefCell::new(Summary::default());
    let run = |script: &[Step]| replay(&mut MockMachine::new(profile.clone()), script);
    let result = runner.run(&scripts(STEPS), |script| {
        let done = run(&script.0);
        let done = done.map_err(|failure| TestCaseError::fail(failure.to_string()))?;
        summary.borrow_mut().add(&done);
        Ok(())
    });
    match result {
        Ok(()) => summary.into_inner(),
        Err(TestError::Fail(_, script)) => {
            let script = shrink(&script.0, |fewer| run(fewer).is_err());
            panic!("{}", run(&script.0).unwrap_err());
        }
        Err(error) => panic!("{error}"),
    }
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        // Steps depend on those before; they are taken out without drawing anew.
        max_shrink_iters: 0,
        ..Config::default()
    }
}

#[test]
fn any_script_does_what_the_model_predicts() {
    // With quotas of two kinds, and with none.
    let profiles = [
        KernelProfile::modern(),
        KernelProfile::xfs(),
        KernelProfile::rootless(),
    ];
    if let Ok(seconds) = env::var(SECONDS) {
        let (start, time) = (
            Instant::now(),
            Duration::from_secs(seconds.parse().unwrap()),
        );
        let mut scripts = 0;
        for profile in profiles.iter().cycle() {
            // Every runner has a seed of its own.
            run(TestRunner::new(config(64)), profile);
            scripts += 64;
            if start.elapsed() >= time {
                break;
            }
        }
        let line = format!(
            "fuzz model: {scripts} scripts in {} s, no failure\n",
            start.elapsed().as_secs()
        );
        return io::stderr().write_all(line.as_bytes()).unwrap();
    }
    let cases = env::var(CASES).map_or(600, |text| text.parse().unwrap());
    let mut summary = Summary::default();
    for profile in &profiles {
        // The same scripts each time: a run of the tests says whether a change is good.
        let same = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let runner = TestRunner::new_with_rng(config(cases / 3), same);
        summary.add(&run(runner, profile));
    }
    println!("model: {cases} scripts, {summary:?}");
    // Chance has to reach what there is to prove: here is about a fifth of what it does.
    let least = [
        ("Create", 150),
        ("CreateWritable", 80),
        ("Import", 150),
        ("Apply", 60),
        ("Copy", 60),
        ("Mount", 300),
        ("Unmount", 80),
        ("UnmountAll", 10),
        ("SetLimit", 20),
        ("Remove", 90),
        ("Reclaim", 15),
        ("Gc", 15),
        ("Check", 15),
        ("Repair", 15),
        ("Reopen", 60),
        ("Kill", 15),
        ("Reboot", 10),
        ("CutPower", 30),
        ("Damage", 40),
        ("NoLower", 5),
        ("BadLower", 5),
        ("ShortLower", 5),
        ("NoLink", 5),
        ("NoLinkEntry", 5),
        ("NoMark", 5),
        ("BadHolds", 5),
        ("MakeDir", 80),
        ("MakeFile", 90),
        ("MakeSymlink", 25),
        ("Rename", 40),
        ("Delete", 40),
        ("DeleteAll", 15),
        ("SetMode", 40),
        ("SetOwner", 20),
        ("SetColour", 20),
        ("Fill", 30),
    ];
    let at_least = |counts: &BTreeMap<String, u64>, what: &str, least: u64| {
        let found = counts.get(what).copied().unwrap_or(0);
        let least = least * u64::from(cases) / 600;
        assert!(found >= least, "{found} times {what}: {summary:#?}");
    };
    for (step, least) in least {
        at_least(&summary.done, step, least);
    }
    // What a full project is called, by either kind of quota.
    for refusal in ["QuotaExceeded", "StorageFull"] {
        at_least(&summary.refused, refusal, 6);
    }
    for faults in [&summary.kills, &summary.errors] {
        for step in ["Mount", "Reopen"] {
            at_least(faults, step, 6);
        }
        let sum: u64 = faults.values().sum();
        at_least(&BTreeMap::from([("all".to_owned(), sum)]), "all", 60);
    }
}

/// What a failure prints is such a test: this is one, and it passes in `printed.rs`.
#[test]
fn what_a_failure_prints_is_a_test() {
    use ovl_testkit::model::{Against::*, Archive, Edit::*, Harm::*, Put::*, Step::*};
    let archive = Archive {
        hide: vec!["y"],
        opaque: vec!["x"],
        put: vec![
            Dir {
                path: "x",
                mode: 0o755,
            },
            File {
                path: "x/y",
                contents: 1,
            },
            Symlink { path: "z" },
        ],
        cut: false,
    };
    let none = Archive {
        hide: vec![],
        opaque: vec![],
        put: vec![],
        cut: true,
    };
    let script = Script(vec![
        Import {
            user: 0,
            layer: "a",
            parent: None,
            archive,
        },
        Create {
            user: 1,
            layer: "b",
            parent: Some("a"),
        },
        Apply {
            user: 1,
            layer: "b",
            archive: none,
        },
        Mount {
            user: 0,
            layer: "b",
            own: true,
            noexec: false,
        },
        Write {
            layer: "b",
            edits: vec![
                MakeFile {
                    path: "y",
                    contents: 2,
                },
                Rename { from: "y", to: "z" },
            ],
        },
        Kill { user: 0 },
        Copy {
            user: 0,
            from: "b",
            base: Layer("a"),
            to: "c",
        },
        Damage {
            user: 1,
            layer: "b",
            harm: NoLower,
        },
        CutPower { seed: 7 },
        Reboot,
    ]);
    let machine = MockMachine::new(KernelProfile::xfs());
    let printed = script.as_test(&machine.constructor());
    assert_eq!(printed, include_str!("printed.rs"));
    // So it is printed when a store does what the model does not expect.
    let failure = replay(&mut Forgetful(machine), &script.0).unwrap_err();
    let printed = failure.to_string();
    let test = failure.script.as_test(&failure.machine);
    assert!(printed.ends_with(&test), "{printed}");
    assert!(test.contains("KernelProfile::xfs()"), "{test}");
}

/// Whose processes lose all mounts when one is killed.
struct Forgetful(MockMachine);

impl Machine for Forgetful {
    fn home(&self) -> &Path {
        self.0.home()
    }

    fn constructor(&self) -> String {
        self.0.constructor()
    }

    fn start(&mut self) -> Kernel {
        self.0.start()
    }

    fn kill(&mut self, process: ProcessId) -> bool {
        self.0.cut_power(0) && self.0.kill(process)
    }

    fn reboot(&mut self) -> bool {
        self.0.reboot()
    }
}

#[test]
fn an_archive_over_itself_leaves_no_mark_in_a_base_layer() {
    use ovl_testkit::model::{Archive, Edit::*, Put::*, Step::*};
    let mut machine = MockMachine::new(KernelProfile::modern());
    #[rustfmt::skip]
    let script = [
        Create { user: 0, layer: "c", parent: None },
        Apply { user: 0, layer: "c", archive: Archive { hide: vec![], opaque: vec![], put: vec![Dir { path: "x", mode: 493 }], cut: false } },
        Apply { user: 0, layer: "c", archive: Archive { hide: vec![], opaque: vec!["x"], put: vec![], cut: false } },
        Mount { user: 1, layer: "c", own: true, noexec: false },
        Write { layer: "c", edits: vec![MakeDir { path: "x/x", mode: 448 }, Delete { path: "x" }] },
        Kill { user: 1 },
    ];
    replay(&mut machine, &script).unwrap();
}

/// Found by such a script: nobody but `gc` with Docker stopped took the link away.
#[test]
fn a_layer_that_fails_after_its_link_was_made_leaves_no_link() {
    let kernel = Faulty::new(MockKernel::new(KernelProfile::modern()).kernel());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    let layer = CreateLayer::new("layer".parse().unwrap());
    let mut calls = 0;
    kernel.order_where(move |call, _| {
        calls += u32::from(call == "create_symlink" || calls > 0);
        (calls == 2).then_some(5)
    });
    store.create(&layer).unwrap_err();
    assert!(kernel.has_fired());
    kernel.heal();
    assert!(store.check().unwrap().is_clean());
}

/// Found by such a script: the directory of removed layers was not on disk when a layer was moved to
/// it, and nobody knew the link of that layer any more.
#[test]
fn a_layer_removed_in_a_new_home_leaves_nothing_after_a_power_cut() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    let id = "layer".parse().unwrap();
    store.create(&CreateLayer::new(id)).unwrap();
    store.remove(&"layer".parse().unwrap(), false).unwrap();
    kernel.crash(&Survivors::Nothing);
    let options = OpenOptions::new();
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    store.gc(UpkeepOptions::new()).unwrap();
    let report = store.check().unwrap();
    assert!(report.is_clean(), "{report:#?}");
}

/// Found by such a script: a scan for one layer made the index current, and the note that this layer
/// itself stands on another was lost.
#[test]
fn a_scan_for_a_layer_notes_what_that_stands_on() {
    let kernel = MockKernel::new(KernelProfile::modern());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    let (base, top) = ("base".parse().unwrap(), "top".parse().unwrap());
    store.create(&CreateLayer::new(base)).unwrap();
    let layer = CreateLayer::new(top).parent(Some("base".parse().unwrap()));
    store.create(&layer).unwrap();
    kernel.crash(&Survivors::Nothing);
    let options = OpenOptions::new();
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    store.mount(&layer.id, &MountRequest::new()).unwrap();
    let error = store.remove(&"base".parse().unwrap(), true).unwrap_err();
    assert!(matches!(error, Error::HasChildren { .. }), "{error}");
}

/// Found by such a script: the directory of a layer that was reclaimed came back in its project, and
/// with it a layer that had the id by then lost its limit.
#[test]
fn a_layer_that_comes_back_takes_no_limit_from_whoever_has_its_project() {
    let kernel = MockKernel::new(KernelProfile::xfs());
    let options = OpenOptions::new().create(true);
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    let (old, new) = ("old".parse().unwrap(), "new".parse().unwrap());
    let limited = |id| CreateLayer::new(id).size(Some(Bytes::new(3 << 20)));
    store.create_writable(&limited(old)).unwrap();
    let project = |id| {
        let quota = store.quota(&id).unwrap();
        quota.map(|quota| quota.project)
    };
    let first = project("old".parse().unwrap());
    store.remove(&"old".parse().unwrap(), false).unwrap();
    store.reclaim().unwrap();
    store.create_writable(&limited(new)).unwrap();
    assert_eq!(
        project("new".parse().unwrap()),
        first,
        "the id is used again"
    );
    kernel.crash(&Survivors::Nothing);
    let options = OpenOptions::new();
    let store = Overlay2::open(kernel.kernel(), "/home".as_ref(), options).unwrap();
    store.reclaim().unwrap();
    let quota = store.quota(&"new".parse().unwrap()).unwrap().unwrap();
    assert_eq!(quota.usage.unwrap().limits.bytes, Some(Bytes::new(3 << 20)));
}
