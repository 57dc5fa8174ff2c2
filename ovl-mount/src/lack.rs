use std::fmt;

/// Why layers cannot be given to the kernel one by one, by [`LayersByFd`](crate::Strategy) or
/// [`LowerdirPlus`](crate::Strategy). `mount(2)` needs nothing that could be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lack {
    /// Nobody has said why.
    Unknown,
    /// The caller may not ask: without the privilege to mount, or behind a filter that forbids
    /// `fsopen(2)`.
    Privilege,
    /// The kernel has no overlayfs.
    Overlayfs,
    /// The kernel does not have the setting `lowerdir+` (Linux 6.8).
    LowerdirPlus,
    /// The kernel does not take open directories as layers (Linux 6.13).
    Fds,
    /// The kernel does not have a system call, or a filter says so.
    NoCall(Call),
    /// A filter forbids a system call.
    Forbidden(Call),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $call:ident = $name:literal,)*) => {
        /// A system call without which layers cannot be given one by one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Call {
            $($(#[$doc])* $call,)*
        }

        impl Lack {
            /// The reason, as a clause.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    Self::Unknown => "the kernel was not asked",
                    Self::Privilege => {
                        "the caller may not mount, or a filter of system calls forbids fsopen(2)"
                    }
                    Self::Overlayfs => "the kernel has no overlayfs",
                    Self::LowerdirPlus => {
                        "the kernel does not know the setting lowerdir+, which came with Linux 6.8"
                    }
                    Self::Fds => {
                        "the kernel takes no open directories as layers, as Linux does since 6.13"
                    }
                    $(
                        Self::NoCall(Call::$call) => concat!(
                            "the kernel does not have ", $name,
                            ", or a filter of system calls hides it",
                        ),
                        Self::Forbidden(Call::$call) => {
                            concat!("a filter of system calls forbids ", $name)
                        }
                    )*
                }
            }
        }
    };
}

calls! {
    /// `fsopen(2)` (Linux 5.2).
    Fsopen = "fsopen(2)",
    /// `fsconfig(2)` (Linux 5.2).
    Fsconfig = "fsconfig(2)",
    /// `fsconfig(2)` with a file descriptor.
    FsconfigFd = "fsconfig(2) with FSCONFIG_SET_FD",
    /// `fsmount(2)` (Linux 5.2).
    Fsmount = "fsmount(2)",
    /// `move_mount(2)` (Linux 5.2).
    MoveMount = "move_mount(2)",
    /// `openat2(2)` (Linux 5.6).
    Openat2 = "openat2(2)",
}
