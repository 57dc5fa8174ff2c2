//! System calls that a filter takes away, as an old kernel or a container's profile does.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A call, or one use of it, for which the code has another way or a reason to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Denied {
    Fsopen,
    Openat2,
    /// `fsconfig` with a file descriptor.
    #[value(name = "SET_FD")]
    SetFd,
    Statx,
    #[value(name = "quotactl_fd")]
    QuotactlFd,
    #[value(name = "open_tree")]
    OpenTree,
    #[value(name = "mount_setattr")]
    MountSetattr,
    Fsmount,
    #[value(name = "move_mount")]
    MoveMount,
    #[cfg(target_arch = "x86_64")]
    Ustat,
}

impl Denied {
    fn call(self) -> i64 {
        match self {
            Self::Fsopen => libc::SYS_fsopen,
            Self::Openat2 => libc::SYS_openat2,
            Self::SetFd => libc::SYS_fsconfig,
            Self::Statx => libc::SYS_statx,
            Self::QuotactlFd => libc::SYS_quotactl_fd,
            Self::OpenTree => libc::SYS_open_tree,
            Self::MountSetattr => libc::SYS_mount_setattr,
            Self::Fsmount => libc::SYS_fsmount,
            Self::MoveMount => libc::SYS_move_mount,
            #[cfg(target_arch = "x86_64")]
            Self::Ustat => libc::SYS_ustat,
        }
    }

    /// Which uses; none means all.
    fn rules(self) -> Result<Vec<SeccompRule>> {
        const FSCONFIG_SET_FD: u64 = 5;
        if self != Self::SetFd {
            return Ok(Vec::new());
        }
        let command = SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            FSCONFIG_SET_FD,
        )?;
        Ok(vec![SeccompRule::new(vec![command])?])
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What a denied call answers: a kernel that does not have it, or a profile that forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Answer {
    #[value(name = "ENOSYS")]
    Enosys,
    #[value(name = "EPERM")]
    Eperm,
}

impl Answer {
    pub(crate) const BOTH: [Self; 2] = [Self::Enosys, Self::Eperm];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Enosys => "ENOSYS",
            Self::Eperm => "EPERM",
        }
    }

    fn number(self) -> u32 {
        let number = match self {
            Self::Enosys => libc::ENOSYS,
            Self::Eperm => libc::EPERM,
        };
        number.unsigned_abs()
    }
}

/// One run: what is denied, and how.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    pub(crate) calls: Vec<Denied>,
    pub(crate) answer: Answer,
}

impl Denial {
    /// All at once with both answers, and where there is time for it each alone.
    pub(crate) fn runs(calls: &[Denied], each: bool) -> Vec<Self> {
        let mut sets = vec![calls.to_vec()];
        if each && calls.len() > 1 {
            sets.extend(calls.iter().map(|call| vec![*call]));
        }
        let runs = sets.into_iter().flat_map(|calls| {
            Answer::BOTH.map(|answer| Self {
                calls: calls.clone(),
                answer,
            })
        });
        runs.collect()
    }

    /// The calls, as on the command line.
    pub(crate) fn list(&self) -> String {
        let names: Vec<_> = self.calls.iter().map(ToString::to_string).collect();
        names.join(",")
    }
}

/// Denies the calls to this process and to all that it starts, for good. Only while there is one
/// thread.
pub(crate) fn apply(calls: &[Denied], answer: Answer) -> Result<()> {
    let mut rules = BTreeMap::new();
    for call in calls {
        rules.insert(call.call(), call.rules()?);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(answer.number()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program).context("cannot set the filter of system calls")
}
