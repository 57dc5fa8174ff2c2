//! A Docker daemon of our own, and what it has put where.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::super::scenarios::{Ovl, Place};
use super::confine::{CGROUP, STATE};
use crate::output;

/// Not what the search path finds first: the client of the same package as the daemon.
const CLIENT: &str = "/usr/bin/docker";
const DAEMON: &str = "/usr/sbin/dockerd";

/// The longest that the daemon takes to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon and its root. Dropping it ends the daemon.
pub(super) struct Docker {
    root: PathBuf,
    log: PathBuf,
    daemon: Option<Child>,
}

/// What a container has above the layers of its image.
pub(super) struct ContainerLayers {
    /// What the container writes to.
    pub(super) own: String,
    /// Where Docker has put the names that it mounts something on.
    pub(super) init: String,
}

impl Docker {
    /// Starts a daemon on the root in the scenario's directory.
    pub(super) fn start(place: &Place) -> Result<Self> {
        let mut docker = Self {
            root: place.dir.join("docker"),
            log: place.dir.join("dockerd.log"),
            daemon: None,
        };
        docker.start_again()?;
        Ok(docker)
    }

    /// Starts the daemon after [`stop`](Self::stop).
    pub(super) fn start_again(&mut self) -> Result<()> {
        // A daemon that was killed has left its own here.
        if Path::new(STATE).exists() {
            fs::remove_dir_all(STATE)?;
        }
        fs::create_dir(STATE)?;
        let log = File::options().append(true).create(true).open(&self.log)?;
        let mut command = Command::new(DAEMON);
        command
            .arg("--data-root")
            .arg(&self.root)
            .args(["--exec-root", &format!("{STATE}/exec")])
            .args(["--pidfile", &format!("{STATE}/pid")])
            .args(["--host", &host(), "--storage-driver", "overlay2"])
            .args(["--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false"])
            .args(["--bridge=none", "--cgroup-parent", CGROUP])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let daemon = environment(&mut command)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let daemon = self.daemon.insert(daemon);
        let start = Instant::now();
        while !client(&["version"]).output()?.status.success() {
            if let Some(status) = daemon.try_wait()? {
                self.daemon = None;
                bail!("dockerd ended with {status}: {}", self.last_words());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "dockerd does not answer: {}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks the daemon to end, and waits until it has.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        let ended = end(&mut daemon);
        if !matches!(&ended, Ok(true)) {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        ensure!(ended?, "dockerd does not end: {}", self.last_words());
        Ok(())
    }

    /// What stands at the end of the daemon's log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Runs a command that must succeed, and gives what it prints.
    pub(super) fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        let answer = output(&mut client(arguments));
        answer.with_context(|| format!("the daemon's log ends with:\n{}", self.last_words()))
    }

    /// The same with a file as standard input.
    pub(super) fn ok_reading<S: AsRef<OsStr>>(
        &self,
        arguments: &[S],
        input: &Path,
    ) -> Result<String> {
        output(client(arguments).stdin(File::open(input)?))
    }

    /// The home that the daemon's overlay2 driver uses.
    pub(super) fn home(&self) -> PathBuf {
        self.root.join("overlay2")
    }

    /// The program under test on that home.
    pub(super) fn ovl(&self, place: &Place) -> Ovl {
        place.ovl(&self.home())
    }

    /// The driver's ids of an image's layers, the lowest first.
    pub(super) fn image_layers(&self, image: &str) -> Result<Vec<String>> {
        let format = "{{range .RootFS.Layers}}{{println .}}{{end}}";
        let diffs = self.ok(&["image", "inspect", "--format", format, image])?;
        let known = self.layer_records()?;
        let (mut parent, mut layers) = (String::new(), Vec::new());
        for diff in diffs.lines().filter(|line| !line.is_empty()) {
            let record = known.get(&(parent, diff.to_owned()));
            let (chain, layer) = record.with_context(|| format!("no record of {diff}"))?;
            layers.push(layer.clone());
            parent = chain.clone();
        }
        ensure!(!layers.is_empty(), "{image} has no layers");
        Ok(layers)
    }

    /// What Docker notes of each image layer: by the parent's chain id and the diff id, its own
    /// chain id and the driver's id.
    fn layer_records(&self) -> Result<BTreeMap<(String, String), (String, String)>> {
        let records = self.root.join("image/overlay2/layerdb/sha256");
        let mut known = BTreeMap::new();
        for record in fs::read_dir(records)? {
            let record = record?;
            let field = |name: &str| fs::read_to_string(record.path().join(name));
            // The lowest layer has none.
            let parent = field("parent").unwrap_or_default();
            let chain = format!("sha256:{}", record.file_name().to_string_lossy());
            known.insert((parent, field("diff")?), (chain, field("cache-id")?));
        }
        Ok(known)
    }

    /// The driver's ids of a container's layers.
    pub(super) fn container_layers(&self, container: &str) -> Result<ContainerLayers> {
        let id = self.ok(&["inspect", "--format", "{{.Id}}", container])?;
        let record = self
            .root
            .join("image/overlay2/layerdb/mounts")
            .join(id.trim());
        Ok(ContainerLayers {
            own: fs::read_to_string(record.join("mount-id"))?,
            init: fs::read_to_string(record.join("init-id"))?,
        })
    }

    /// Makes a container of the image that runs the script, runs it to its end, and gives what it
    /// prints.
    pub(super) fn run(&self, name: &str, image: &str, script: &str) -> Result<String> {
        self.create(name, image, script)?;
        self.ok(&["start", "--attach", name])
    }

    /// Makes a container of the image that would run the script.
    pub(super) fn create(&self, name: &str, image: &str, script: &str) -> Result<()> {
        self.create_with(&[], name, image, script)
    }

    /// The same with more options.
    pub(super) fn create_with(
        &self,
        options: &[&str],
        name: &str,
        image: &str,
        script: &str,
    ) -> Result<()> {
        let script = format!("set -e\n{script}");
        let common = ["create", "--network=none", "--name", name];
        let command = [image, "/bin/sh", "-c", &script];
        let arguments = [&common[..], options, &command].concat();
        self.ok(&arguments).map(drop)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It stops its own containerd; should it not, the process namespace ends both.
            if !matches!(end(&mut daemon), Ok(true)) {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }
}

/// Whether the daemon ends in good order when it is asked to.
fn end(daemon: &mut Child) -> Result<bool> {
    let pid = Pid::from_raw(daemon.id().try_into()?).context("a process has a number")?;
    kill_process(pid, Signal::TERM)?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = daemon.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

fn host() -> String {
    format!("unix://{STATE}/socket")
}

fn client<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(CLIENT);
    command.args(["--host", &host()]).args(arguments);
    environment(command.stdin(Stdio::null()));
    command
}

/// What a user has set for their own Docker must not reach this one.
fn environment(command: &mut Command) -> &mut Command {
    for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"] {
        command.env_remove(name);
    }
    command.env("HOME", STATE).env("DOCKER_CONFIG", STATE)
}
