//! Kernels of Debian, by the names of their packages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::output;

/// A Debian release, and what its kernels are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    /// The first numbers of its kernels' version; `newest` where they move on.
    pub(super) version: &'static str,
    suite: &'static str,
}

/// The oldest kernel that the quotas are tried on.
pub(super) const OLDEST: Release = Release {
    version: "6.1",
    suite: "bookworm",
};

/// All kernels that the package archive offers.
pub(super) const ALL: [Release; 3] = [
    OLDEST,
    Release {
        version: "6.12",
        suite: "trixie",
    },
    Release {
        version: "newest",
        suite: "trixie-backports",
    },
];

/// The package that depends on a release's newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Its package.
    pub(super) name: String,
    /// The compressed kernel.
    pub(super) image: PathBuf,
    /// Its loadable modules, as they come: compressed or not.
    modules: BTreeMap<String, PathBuf>,
    /// What is part of the kernel itself.
    builtin: Vec<String>,
}

impl Kernel {
    /// Takes a release's kernel from the cache below `dir`, or from the package archive.
    pub(super) fn fetch(release: Release, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let apt = Apt::find(release, dir)?;
        let name = apt.depends(META_PACKAGE)?;
        let name = name.into_iter().find(|name| is_kernel(name));
        let name = name.with_context(|| format!("{META_PACKAGE} depends on no kernel"))?;
        let unpacked = dir.join(&name);
        if !unpacked.exists() {
            apt.unpack(&name, dir, &unpacked)?;
        }
        Self::read(name, &unpacked)
    }

    fn read(name: String, dir: &Path) -> Result<Self> {
        let (mut image, mut modules, mut builtin) = (None, BTreeMap::new(), Vec::new());
        for below in ["boot", "lib/modules", "usr/lib/modules"] {
            let below = dir.join(below);
            if !below.exists() {
                continue;
            }
            for path in files_below(&below)? {
                match module_name(&path) {
                    Some(name) => drop(modules.insert(name, path)),
                    None if is_image(&path) => image = Some(path),
                    None if path.ends_with("modules.builtin") => {
                        let listed = fs::read_to_string(&path)?;
                        let listed = listed.lines().filter_map(|line| module_name(line.as_ref()));
                        builtin.extend(listed);
                    }
                    None => {}
                }
            }
        }
        Ok(Self {
            image: image.with_context(|| format!("{name} has no kernel"))?,
            name,
            modules,
            builtin,
        })
    }

    /// The named modules as the kernel takes them, and before each those that it needs. What is
    /// built in is left out.
    pub(super) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in names {
            self.collect(name, &mut found)?;
        }
        Ok(found)
    }

    fn collect(&self, name: &str, found: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let is_builtin = self.builtin.iter().any(|one| one == name);
        if is_builtin || found.iter().any(|(one, _)| one == name) {
            return Ok(());
        }
        let path = self.modules.get(name);
        let path = path.with_context(|| format!("{} has no module {name}", self.name))?;
        let module = match path.extension().and_then(OsStr::to_str) {
            Some("xz") => {
                let mut xz = Command::new("xz");
                let unpacked = xz.arg("-dc").arg(path).output().context(
                    "the modules are compressed with xz; install the Debian package xz-utils",
                )?;
                ensure!(unpacked.status.success(), "cannot unpack {path:?}");
                unpacked.stdout
            }
            _ => fs::read(path)?,
        };
        for needed in needed_by(&module) {
            self.collect(&needed, found)?;
        }
        found.push((name.to_owned(), module));
        Ok(())
    }
}

/// In `/boot` with its version, beside the modules without.
fn is_image(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::to_string_lossy);
    name.is_some_and(|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))
}

/// The name that a module's file stands for: it has `_` wherever the file has `-`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name);
    Some(name.strip_suffix(".ko")?.replace('-', "_"))
}

/// What a module says of itself in its section `.modinfo`: lines that end with NUL.
fn needed_by(module: &[u8]) -> Vec<String> {
    let mut lines = module.split(|byte| *byte == 0);
    let depends = lines.find_map(|line| line.strip_prefix(b"depends="));
    let depends = String::from_utf8_lossy(depends.unwrap_or_default());
    let names = depends.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

fn is_kernel(package: &str) -> bool {
    package
        .strip_prefix("linux-image-")
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let listed = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in listed {
        let path = entry?.path();
        match fs::symlink_metadata(&path)?.is_dir() {
            true => found.extend(files_below(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// The package tool, with the host's own lists or others.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// With the host's lists if its kernel is of that release, else with lists of its own.
    fn find(release: Release, dir: &Path) -> Result<Self> {
        let host = Self {
            options: Vec::new(),
        };
        let prefix = format!("linux-image-{}.", release.version);
        let known = host.depends(META_PACKAGE).unwrap_or_default();
        if known.iter().any(|name| name.starts_with(&prefix)) {
            return Ok(host);
        }
        Self::of_release(release.suite, dir)
    }

    fn of_release(suite: &str, dir: &Path) -> Result<Self> {
        let state = dir.join(format!("apt-{suite}"));
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(name))?;
        }
        let sources = state.join("sources.list");
        let mirror = mirror()?;
        fs::write(&sources, format!("deb {mirror} {suite} main\n"))?;
        let state = state.display();
        let apt = Self {
            options: vec![
                format!("Dir::State::Lists={state}/lists"),
                format!("Dir::Cache={state}/cache"),
                format!("Dir::Etc::SourceList={state}/sources.list"),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                "APT::Get::List-Cleanup=0".to_owned(),
                "Acquire::Languages=none".to_owned(),
                "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
            ],
        };
        output(apt.command("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("cannot read what {suite} offers"))?;
        Ok(apt)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        // What is read must be in no other language.
        command.env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// What a package needs.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let printed = output(command.args(["depends", "--important", package]))?;
        let names = printed
            .lines()
            .filter_map(|line| line.trim().split_once("Depends: "));
        Ok(names.map(|(_, name)| name.trim().to_owned()).collect())
    }

    /// Unpacks a kernel's packages into a directory that is there when it is whole.
    fn unpack(&self, package: &str, dir: &Path, into: &Path) -> Result<()> {
        let scratch = tempfile::tempdir_in(dir)?;
        let mut packages = vec![package.to_owned()];
        // Newer kernels come in pieces.
        let parts = self.depends(package)?.into_iter().filter(|name| {
            ["linux-base-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|part| name.starts_with(part))
        });
        packages.extend(parts);
        let mut download = self.command("apt-get");
        download.args(["-qq", "download"]).args(&packages);
        output(download.current_dir(scratch.path()))
            .with_context(|| format!("cannot download {}", packages.join(", ")))?;
        let root = scratch.path().join("root");
        let mut unpacked = 0;
        for file in fs::read_dir(scratch.path())? {
            let file = file?.path();
            if file.extension() == Some(OsStr::new("deb")) {
                output(Command::new("dpkg").arg("-x").arg(&file).arg(&root))?;
                unpacked += 1;
            }
        }
        if unpacked != packages.len() {
            bail!("{unpacked} packages came, not {}", packages.join(", "));
        }
        fs::rename(&root, into)?;
        Ok(())
    }
}

/// Where this host takes Debian's own packages from.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(ORIGIN)\t$(LABEL)\t$(CODENAME)\t$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let printed = output(&mut command)?;
    let mut lines = printed.lines().map(|line| line.split('\t').collect());
    let found = lines.find_map(|fields: Vec<&str>| match fields[..] {
        ["Debian", "Debian", codename, uri] if !codename.contains('-') => Some(uri.to_owned()),
        _ => None,
    });
    found.context("this host has no package archive of Debian; run `apt-get update` first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0";
        assert_eq!(needed_by(module), ["virtio", "virtio_ring"]);
        assert_eq!(needed_by(b"\x7fELF\0depends=\0"), [""; 0]);
    }

    #[test]
    fn modules_have_names_whatever_their_files_are_called() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("a/quota-v2.ko.xz").as_deref(), Some("quota_v2"));
        assert_eq!(name("kernel/fs/ext4/ext4.ko").as_deref(), Some("ext4"));
        assert_eq!(name("modules.builtin"), None);
    }

    #[test]
    fn kernels_are_told_from_packages_that_depend_on_them() {
        assert!(is_kernel("linux-image-6.1.0-1-cloud-amd64"));
        assert!(!is_kernel("linux-image-cloud-amd64"));
    }
}
