//! What a script runs on.

use std::path::{Path, PathBuf};

use ovl_driver::{Kernel, ProcessId, SystemBackend as _};

use crate::mock::{KernelProfile, MockKernel, Survivors};
use crate::random::Random;

/// A kernel with processes on it, for [`replay`](super::replay).
pub trait Machine {
    /// Where the home is to be made: an absolute path at which there is nothing.
    fn home(&self) -> &Path;

    /// The expression that makes such a machine, in a test that a failure prints. It may use
    /// `MockMachine` and `KernelProfile`.
    fn constructor(&self) -> String {
        constructor("modern")
    }

    /// The kernel as a process sees it, a new one where there can be several.
    fn start(&mut self) -> Kernel;

    /// Ends a process as `kill -9` does. `false`, and nothing done, where that cannot be: scripts
    /// leave out what needs it.
    fn kill(&mut self, process: ProcessId) -> bool;

    /// Starts the machine anew, with all that was written. `false` where that cannot be.
    fn reboot(&mut self) -> bool;

    /// Cuts the power, and starts the machine anew with what was synced and as much of the rest as
    /// chance wants by `seed`. `false`, and nothing done, where that cannot be.
    fn cut_power(&mut self, seed: u64) -> bool {
        let _ = seed;
        false
    }
}

pub(super) fn constructor(profile: &str) -> String {
    format!("MockMachine::new(KernelProfile::{profile}())")
}

/// A [`MockKernel`] as a [`Machine`].
#[derive(Debug)]
pub struct MockMachine {
    kernel: MockKernel,
    constructor: String,
    home: PathBuf,
    next: u32,
}

impl MockMachine {
    /// A new kernel of this kind.
    #[must_use]
    pub fn new(profile: KernelProfile) -> Self {
        let known = [
            ("modern", KernelProfile::modern()),
            ("legacy", KernelProfile::legacy()),
            ("legacy_tmpfs", KernelProfile::legacy_tmpfs()),
            ("named_layers", KernelProfile::named_layers()),
            ("rootless", KernelProfile::rootless()),
            ("large_pages", KernelProfile::large_pages()),
            ("xfs", KernelProfile::xfs()),
        ];
        let name = known.iter().find(|(_, known)| *known == profile);
        let constructor = match name {
            Some((name, _)) => constructor(name),
            // No constructor makes it: whoever pastes this has changed one, and knows how.
            None => format!("MockMachine::new(/* {profile:?} */ KernelProfile::modern())"),
        };
        Self {
            kernel: MockKernel::new(profile),
            constructor,
            home: PathBuf::from("/home"),
            next: 2000,
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &MockKernel {
        &self.kernel
    }
}

impl Machine for MockMachine {
    fn home(&self) -> &Path {
        &self.home
    }

    fn constructor(&self) -> String {
        self.constructor.clone()
    }

    fn start(&mut self) -> Kernel {
        self.next += 1;
        self.kernel.as_process(self.next).kernel()
    }

    fn kill(&mut self, process: ProcessId) -> bool {
        let known = self.kernel.is_alive(process).unwrap_or(false);
        self.kernel.kill(process.pid);
        known
    }

    fn reboot(&mut self) -> bool {
        self.kernel.reboot();
        true
    }

    fn cut_power(&mut self, seed: u64) -> bool {
        let mut random = Random::new(seed);
        let changes = random.below(self.kernel.pending_changes() + 1);
        let survivors = match random.below(8) {
            0 => Survivors::Nothing,
            1 => Survivors::Everything,
            // Not anything: the index of children relies on names reaching the disk in their order.
            _ => Survivors::Journal { changes, seed },
        };
        self.kernel.crash(&survivors);
        true
    }
}
