//! A virtual machine, by QEMU without hardware support: nothing that a host may lack.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::kernel::Kernel;
use crate::e2e::FsKind;
use crate::run;

/// Programs that the host needs, and the Debian packages that have them.
pub(super) const TOOLS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("apt-get", "apt"),
    ("dpkg", "dpkg"),
    ("setpriv", "util-linux"),
];

/// Room on a disk; the file behind it is sparse.
const DISK_LEN: u64 = 2 << 30;
/// A guest that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(600);

/// A new, empty disk that can keep project quotas.
pub(super) fn make_disk(fs: FsKind, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(format!("{}.image", fs.name()));
    File::create(&path)?.set_len(DISK_LEN)?;
    let mut mkfs = match fs {
        FsKind::Xfs => Command::new("mkfs.xfs"),
        FsKind::Ext4 => {
            let mut mkfs = Command::new("mkfs.ext4");
            mkfs.args(["-F", "-O", "quota,project", "-E", "quotatype=prjquota"]);
            mkfs
        }
        FsKind::Tmpfs => bail!("a tmpfs has no disk"),
    };
    run(mkfs.arg("-q").arg(&path))?;
    Ok(path)
}

/// A running guest; dropping it ends it.
#[derive(Debug)]
pub(super) struct Machine {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Machine {
    /// Boots a guest whose first process gets these arguments, none of which may hold a space or be
    /// `--`. The disks are `vda` and on.
    pub(super) fn boot(
        kernel: &Kernel,
        initramfs: &Path,
        disks: &[String],
        arguments: &[String],
    ) -> Result<Self> {
        let append = format!(
            "console=ttyS0 quiet loglevel=3 panic=-1 -- {}",
            arguments.join(" ")
        );
        // Longer ones are cut off silently.
        ensure!(
            append.len() < 2048,
            "the kernel's command line has {} bytes",
            append.len()
        );
        // Whatever ends this process ends the guest.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi"]);
        qemu.args(["-cpu", "max", "-smp", "2", "-m", "1024"]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
        qemu.args(["-serial", "stdio"]);
        qemu.arg("-kernel").arg(&kernel.image);
        qemu.arg("-initrd").arg(initramfs);
        qemu.arg("-append").arg(append);
        for disk in disks {
            qemu.args(["-drive", disk]);
        }
        let mut process = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the virtual machine")?;
        let output = process.stdout.take().context("the console is a pipe")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, lines })
    }

    /// The next line of the console; `None` when the guest has ended.
    pub(super) fn line(&self) -> Result<Option<String>> {
        match self.lines.recv_timeout(SILENCE) {
            Ok(line) => Ok(Some(line)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the guest has said nothing for {} s", SILENCE.as_secs())
            }
        }
    }
}

/// What came of listening for a while.
#[derive(Debug)]
pub(super) enum Heard {
    Line(String),
    Nothing,
    /// The guest has ended.
    End,
}

impl Machine {
    /// Listens to the console for so long.
    pub(super) fn hear(&self, patience: Duration) -> Heard {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Heard::Line(line),
            Err(mpsc::RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(mpsc::RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// Ends the guest at once, and gives what it has said by then. The last line may be cut off.
    pub(super) fn kill(mut self) -> Result<Vec<String>> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(self.lines.iter().collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A disk of a machine that need not survive it.
pub(super) fn scratch_drive(image: &Path) -> String {
    format!(
        "file={},if=virtio,format=raw,cache=unsafe,discard=unmap",
        image.display()
    )
}
