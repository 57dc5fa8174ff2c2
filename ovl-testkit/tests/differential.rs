//! The scripts that `cargo xtask e2e` runs on the mock and on the real kernel, on kinds of the mock.

use ovl_testkit::conformance::Subject;
use ovl_testkit::differential::{Counts, Transcript, run};
use ovl_testkit::{KernelProfile, MockKernel};

fn transcript(profile: KernelProfile, number: u64) -> Transcript {
    let kernel = MockKernel::new(profile);
    kernel.mkdir_all("/scratch".as_ref()).unwrap();
    let subject = Subject::new(kernel.kernel(), "/scratch");
    let subject = subject.editing(move |path, edit| kernel.edit(path, edit));
    run(&subject, number).unwrap()
}

#[test]
fn a_script_gives_the_same_however_layers_are_told_to_the_kernel() {
    const SCRIPTS: u64 = 40;
    let mut counts = Counts::default();
    for number in 0..SCRIPTS {
        let one = transcript(KernelProfile::modern(), number);
        for other in [
            KernelProfile::legacy(),
            KernelProfile::named_layers(),
            KernelProfile::large_pages(),
            KernelProfile::linux_4_19(),
            KernelProfile::redirect_on(),
        ] {
            if let Some(words) = one.difference(&transcript(other.clone(), number)) {
                panic!("script {number} on {other:?}:\n{words}");
            }
        }
        counts.add(&one);
    }
    let missing = counts.missing(SCRIPTS as usize);
    assert_eq!(missing, [""; 0], "too little was done: {counts:?}");
    let refused: usize = counts.refused.values().sum();
    assert!(refused > 500, "{counts:?}");
}
