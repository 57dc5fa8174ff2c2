//! The asynchronous driver on a mock kernel; the conformance suite runs there in ovl-testkit.

use ovl_testkit::{KernelProfile, MockKernel};

use crate::asynchronous::CASES;

#[test]
fn the_asynchronous_cases_hold_on_a_mock() {
    for (name, run) in CASES {
        eprintln!("{name}");
        let kernel = MockKernel::new(KernelProfile::modern());
        kernel.mkdir_all("/scratch".as_ref()).unwrap();
        run(&kernel.kernel(), "/scratch".as_ref());
    }
}
