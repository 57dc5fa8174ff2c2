#[test]
#[allow(unused_imports)]
fn regression() {
    use ovl_testkit::KernelProfile;
    use ovl_testkit::model::{
        Against::*, Archive, Edit::*, Harm::*, MockMachine, Put::*, Step::*, replay,
    };
    let mut machine = MockMachine::new(KernelProfile::xfs());
    #[rustfmt::skip]
    let script = [
        Import { user: 0, layer: "a", parent: None, archive: Archive { hide: vec!["y"], opaque: vec!["x"], put: vec![Dir { path: "x", mode: 493 }, File { path: "x/y", contents: 1 }, Symlink { path: "z" }], cut: false } },
        Create { user: 1, layer: "b", parent: Some("a") },
        Apply { user: 1, layer: "b", archive: Archive { hide: vec![], opaque: vec![], put: vec![], cut: true } },
        Mount { user: 0, layer: "b", own: true, noexec: false },
        Write { layer: "b", edits: vec![MakeFile { path: "y", contents: 2 }, Rename { from: "y", to: "z" }] },
        Kill { user: 0 },
        Copy { user: 0, from: "b", base: Layer("a"), to: "c" },
        Damage { user: 1, layer: "b", harm: NoLower },
        CutPower { seed: 7 },
        Reboot,
    ];
    replay(&mut machine, &script).unwrap();
}
