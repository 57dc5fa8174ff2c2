use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tar::{EntryType, Header};
use tempfile::TempDir;

/// A directory with a home in it, which need not exist.
pub(crate) struct Store {
    dir: TempDir,
}

/// Whether this machine lets the program work: as root, or in a user namespace. Says so when not.
pub(crate) fn store(test: &str) -> Option<Store> {
    let store = Store {
        dir: tempfile::tempdir().unwrap(),
    };
    // Whatever it finds, it has to get as far as looking for a home.
    let output = store.run(&["status"]);
    if output.status.code() == Some(6) {
        let reason = String::from_utf8_lossy(&output.stderr).into_owned();
        eprintln!("SKIPPED: 1 test did not run: {test}: {reason}");
        return None;
    }
    Some(store)
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
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        // Overlay needs a file system that can be an upper layer; the home of the tests may not be.
        let home = self.path("home");
        let home = home.to_str().unwrap();
        let setup = format!(
            "set -eu; mkdir -p {home}; mount -t tmpfs t {home}; ovl() {{ {} --home {home}/h \"$@\"; }}; {script}",
            env!("CARGO_BIN_EXE_ovl")
        );
        let output = command
            .args(["sh", "-c", &setup])
            .env("OVL", env!("CARGO_BIN_EXE_ovl"))
            .env_remove("OVL_HOME")
            .output()
            .ok()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let refused = errors.contains("unshare:") || errors.contains("mount:");
        if refused {
            eprintln!("SKIPPED: 1 test did not run: no mounts here: {errors}");
            return None;
        }
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
