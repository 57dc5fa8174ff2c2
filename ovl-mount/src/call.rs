//! What the kernel is told about one overlay, strategy by strategy.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use ovl_layout::{LayerId, Layout, names};

use crate::backend::MountFeatures;
use crate::plan::{
    Access, MAX_SETTING_LEN, MountData, OverlayCall, OverlaySpec, PlanError, Setting, Strategy,
};

/// What relative paths start at.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Base {
    Absolute,
    Home,
}

/// The calls that would mount one overlay.
pub(crate) struct Calls<'a> {
    layout: &'a Layout,
    spec: &'a OverlaySpec<'a>,
    features: &'a MountFeatures,
}

impl<'a> Calls<'a> {
    pub(crate) fn new(
        layout: &'a Layout,
        spec: &'a OverlaySpec<'a>,
        features: &'a MountFeatures,
    ) -> Self {
        Self {
            layout,
            spec,
            features,
        }
    }

    /// Paths of the layers themselves, never of the links to them.
    pub(crate) fn layers(&self, ids: &[LayerId]) -> OverlayCall {
        let diff = |id: &LayerId| Path::new(id.as_str()).join(names::DIFF);
        let own = (self.spec.access == Access::ReadOnly).then_some(self.spec.id);
        let mut settings = self.options();
        settings.extend(
            own.into_iter()
                .chain(ids)
                .map(|id| Setting::Directory("lowerdir+", diff(id))),
        );
        if let Some((upper, work)) = self.upper_and_work(Base::Home) {
            settings.push(Setting::Directory("upperdir", upper));
            settings.push(Setting::Directory("workdir", work));
        }
        settings.extend(self.context());
        OverlayCall::Layers {
            home: self.layout.home().to_owned(),
            settings,
        }
    }

    /// Absolute where every value fits, since the mount table shows what is given here.
    pub(crate) fn settings(&self) -> Result<OverlayCall, PlanError> {
        self.settings_from(Base::Absolute)
            .or_else(|_| self.settings_from(Base::Home))
    }

    /// Docker's string: `overlay2.Get` in moby, plus the explicit options.
    pub(crate) fn data(&self, base: Base) -> Result<OverlayCall, PlanError> {
        let mut data = Vec::new();
        for setting in self.options() {
            match setting {
                Setting::Flag(key) => data.extend_from_slice(key.as_bytes()),
                Setting::Text(key, value) => {
                    data.extend_from_slice(key.as_bytes());
                    data.push(b'=');
                    data.extend_from_slice(value.as_bytes());
                }
                // Options are no directories.
                Setting::Directory(..) => continue,
            }
            data.push(b',');
        }
        data.extend_from_slice(b"lowerdir=");
        let mut lowers = 0;
        for lower in self.lowers(base) {
            if lowers > 0 {
                data.push(b':');
            }
            push_escaped(&mut data, lower.as_os_str());
            lowers += 1;
        }
        if let Some((upper, work)) = self.upper_and_work(base) {
            data.extend_from_slice(b",upperdir=");
            push_escaped(&mut data, upper.as_os_str());
            data.extend_from_slice(b",workdir=");
            push_escaped(&mut data, work.as_os_str());
        }
        if let Some(label) = self.spec.label {
            data.extend_from_slice(format!(",context=\"{label}\"").as_bytes());
        }
        let (len, limit) = (data.len(), self.features.data_limit.bytes());
        if len > limit {
            let strategy = match base {
                Base::Absolute => Strategy::MountAbsolute,
                Base::Home => Strategy::MountRelative,
            };
            return Err(PlanError::DataTooLong {
                strategy,
                len,
                limit,
                lowers,
            });
        }
        let data = CString::new(data).map_err(|_| PlanError::Nul {
            path: self.layout.home().to_owned(),
        })?;
        Ok(OverlayCall::Data {
            data: MountData(data),
            working_dir: self.working_dir(base),
        })
    }

    /// The settings that come before the layers, in Docker's order.
    fn options(&self) -> Vec<Setting> {
        let writable = self.spec.access == Access::Writable;
        self.spec.options.settings(self.features, writable)
    }

    fn path(&self, base: Base, parts: [&str; 2]) -> PathBuf {
        let relative: PathBuf = parts.iter().collect();
        match base {
            Base::Absolute => self.layout.home().join(relative),
            Base::Home => relative,
        }
    }

    fn own(&self, base: Base, name: &str) -> PathBuf {
        self.path(base, [self.spec.id.as_str(), name])
    }

    /// Lower directories, uppermost first.
    fn lowers(&self, base: Base) -> impl Iterator<Item = PathBuf> {
        let own = (self.spec.access == Access::ReadOnly).then(|| self.own(base, names::DIFF));
        let links = self.spec.chain.links().iter();
        own.into_iter()
            .chain(links.map(move |link| self.path(base, [names::LINK_DIR, link.as_str()])))
    }

    fn upper_and_work(&self, base: Base) -> Option<(PathBuf, PathBuf)> {
        (self.spec.access == Access::Writable)
            .then(|| (self.own(base, names::DIFF), self.own(base, names::WORK)))
    }

    fn context(&self) -> Option<Setting> {
        let label = self.spec.label?;
        Some(Setting::Text("context", label.as_str().into()))
    }

    fn working_dir(&self, base: Base) -> Option<PathBuf> {
        (base == Base::Home).then(|| self.layout.home().to_owned())
    }

    fn settings_from(&self, base: Base) -> Result<OverlayCall, PlanError> {
        let mut settings = self.options();
        // Taken verbatim by the kernel, unlike the two below.
        settings.extend(
            self.lowers(base)
                .map(|lower| Setting::Text("lowerdir+", lower.into())),
        );
        if let Some((upper, work)) = self.upper_and_work(base) {
            settings.push(Setting::Text("upperdir", backslash_doubled(&upper)));
            settings.push(Setting::Text("workdir", backslash_doubled(&work)));
        }
        settings.extend(self.context());
        for setting in &settings {
            let Setting::Text(key, value) = setting else {
                continue;
            };
            if value.len() > MAX_SETTING_LEN {
                let (len, limit) = (value.len(), MAX_SETTING_LEN);
                return Err(PlanError::SettingTooLong { key, len, limit });
            }
        }
        Ok(OverlayCall::Settings {
            settings,
            working_dir: self.working_dir(base),
        })
    }
}

/// A backslash before `\`, `,` and `:` means the byte itself in all three path options.
fn push_escaped(data: &mut Vec<u8>, path: &OsStr) {
    for &byte in path.as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            data.push(b'\\');
        }
        data.push(byte);
    }
}

/// `upperdir` and `workdir` still take a backslash as an escape in `fsconfig(2)`; an undoubled one
/// can name another existing directory.
fn backslash_doubled(path: &Path) -> OsString {
    let mut value = Vec::with_capacity(path.as_os_str().len());
    for &byte in path.as_os_str().as_bytes() {
        if byte == b'\\' {
            value.push(b'\\');
        }
        value.push(byte);
    }
    OsString::from_vec(value)
}
