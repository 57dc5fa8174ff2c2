//! The scripts that `cargo xtask e2e` runs on the mock and on the real kernel, on kinds of the mock.

use ovl_testkit::conformance::Subject;
use ovl_testkit::differential::{Transcript, run};
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
    let (mut done, mut refused) = (0, 0);
    for number in 0..40 {
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
        let ends = |end: &str| {
            one.lines()
                .iter()
                .filter(|line| line.ends_with(end))
                .count()
        };
        done += ends(": ok");
        refused += one
            .lines()
            .iter()
            .filter(|line| line.contains(": errno "))
            .count();
    }
    assert!(
        done > 500 && refused > 500,
        "{done} done, {refused} refused"
    );
}
