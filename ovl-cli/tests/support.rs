use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::machine::{self, Answer};

/// Says past the test runner's capture that something was not tested.
pub(crate) fn skip(what: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let line = format!("\n*** SKIPPED in ovl-cli ({count} so far): {what}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// `None`, loudly, where the machine does not allow what a test needs.
pub(crate) fn allowed(test: &str, answer: &Answer) -> Option<()> {
    let told = answer
        .as_ref()
        .map_err(|why| skip(&format!("{test}: {why}")));
    told.ok().copied()
}

/// A directory with a home in it, which need not exist.
pub(crate) struct Store {
    test: &'static str,
    dir: TempDir,
}

/// `None` where the program cannot work: for neither root nor root of a user namespace.
pub(crate) fn store(test: &'static str) -> Option<Store> {
    allowed(test, machine::root())?;
    let dir = tempfile::tempdir().unwrap();
    Some(Store { test, dir })
}

impl Store {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovl"));
        command
            .env_remove("OVL_HOME")
            .arg("--home")
            .arg(self.path("home"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "ovl {arguments:?}: {:?}: {errors}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Must fail with this exit code and a message, and print nothing else.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(code),
            "ovl {arguments:?}: {errors}"
        );
        assert!(
            output.stdout.is_empty(),
            "ovl {arguments:?} printed something"
        );
        assert!(
            errors.len() > 20 && !errors.contains("panicked"),
            "ovl {arguments:?}: {errors}"
        );
        errors
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a shell script where mounts are allowed and vanish with it; `None` where they are not.
    pub(crate) fn script(&self, script: &str) -> Option<Output> {
        allowed(self.test, machine::mounts_on_tmpfs())?;
        // Overlay needs a file system that can be an upper layer; the home of the tests may not be.
        let home = self.path("home");
        let home = home.to_str().unwrap();
        let setup = format!(
            "set -eu; mkdir -p {home}; mount -t tmpfs t {home}; ovl() {{ {} --home {home}/h \"$@\"; }}; {script}",
            env!("CARGO_BIN_EXE_ovl")
        );
        let output = machine::in_namespaces()
            .args(["sh", "-c", &setup])
            .env("OVL", env!("CARGO_BIN_EXE_ovl"))
            .env_remove("OVL_HOME")
            .output()
            .unwrap();
        Some(output)
    }
}

/// An archive of regular files, with names as they are.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, contents) in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(contents.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        bytes.write_all(header.as_bytes()).unwrap();
        bytes.write_all(contents).unwrap();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

pub(crate) fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}
