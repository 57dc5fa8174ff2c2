//! What the kernel is told about one overlay, strategy by strategy.

use std::borrow::Cow;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use ovl_layout::{LINK_ID_LEN, LayerId, Layout, names};

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
        let diff = |id: &LayerId| relative([id.as_str(), names::DIFF]);
        let own = (self.spec.access == Access::ReadOnly).then_some(self.spec.id);
        let mut settings = self.options();
        settings.reserve(ids.len() + BESIDES);
        settings.extend(
            own.into_iter()
                .chain(ids)
                .map(|id| Setting::Directory("lowerdir+", diff(id))),
        );
        if let Some((upper, work)) = self.upper_and_work() {
            settings.push(Setting::Directory("upperdir", relative(upper)));
            settings.push(Setting::Directory("workdir", relative(work)));
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
        // Ids and link ids need no escapes.
        let prefix = escaped(&self.prefix(base));
        let depth = self.spec.chain.depth() + BESIDES;
        data.reserve(depth * (prefix.len() + names::LINK_DIR.len() + LINK_ID_LEN + 2));
        let push = |data: &mut Vec<u8>, parts| {
            data.extend_from_slice(&prefix);
            push_path(data, parts);
        };
        let mut lowers = 0;
        for lower in self.lowers() {
            if lowers > 0 {
                data.push(b':');
            }
            push(&mut data, lower);
            lowers += 1;
        }
        if let Some((upper, work)) = self.upper_and_work() {
            data.extend_from_slice(b",upperdir=");
            push(&mut data, upper);
            data.extend_from_slice(b",workdir=");
            push(&mut data, work);
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

    /// What stands in front of every directory: of absolute ones the home.
    fn prefix(&self, base: Base) -> Cow<'a, [u8]> {
        let home = self.layout.home().as_os_str().as_bytes();
        match base {
            Base::Home => Cow::Borrowed(b""),
            Base::Absolute if home.is_empty() || home.ends_with(b"/") => Cow::Borrowed(home),
            Base::Absolute => Cow::Owned([home, b"/"].concat()),
        }
    }

    /// Lower directories, uppermost first.
    fn lowers(&self) -> impl Iterator<Item = [&'a str; 2]> + use<'a> {
        let own = self.spec.access == Access::ReadOnly;
        let links = self.spec.chain.links().iter();
        let own = own.then_some([self.spec.id.as_str(), names::DIFF]);
        own.into_iter()
            .chain(links.map(|link| [names::LINK_DIR, link.as_str()]))
    }

    fn upper_and_work(&self) -> Option<([&'a str; 2], [&'a str; 2])> {
        let id = self.spec.id.as_str();
        (self.spec.access == Access::Writable).then_some(([id, names::DIFF], [id, names::WORK]))
    }

    fn context(&self) -> Option<Setting> {
        let label = self.spec.label?;
        Some(Setting::Text("context", label.as_str().into()))
    }

    fn working_dir(&self, base: Base) -> Option<PathBuf> {
        (base == Base::Home).then(|| self.layout.home().to_owned())
    }

    fn settings_from(&self, base: Base) -> Result<OverlayCall, PlanError> {
        let prefix = self.prefix(base);
        let label = self.spec.label.map_or(0, |label| label.as_str().len());
        // Before anything is made of them.
        let len = |parts: [&str; 2]| prefix.len() + parts[0].len() + 1 + parts[1].len();
        let doubled = |parts| len(parts) + backslashes(&prefix);
        let upper_and_work = self.upper_and_work();
        let (upper, work) = upper_and_work.unzip();
        let lens = self.lowers().map(|lower| ("lowerdir+", len(lower)));
        let lens = lens.chain(upper.map(|upper| ("upperdir", doubled(upper))));
        let lens = lens.chain(work.map(|work| ("workdir", doubled(work))));
        for (key, len) in lens.chain([("context", label)]) {
            if len > MAX_SETTING_LEN {
                let limit = MAX_SETTING_LEN;
                return Err(PlanError::SettingTooLong { key, len, limit });
            }
        }
        let mut settings = self.options();
        settings.reserve(self.spec.chain.depth() + BESIDES);
        // Taken verbatim by the kernel, unlike the two below.
        settings.extend(self.lowers().map(|parts| {
            let mut value = Vec::with_capacity(len(parts));
            value.extend_from_slice(&prefix);
            push_path(&mut value, parts);
            Setting::Text("lowerdir+", OsString::from_vec(value))
        }));
        for (key, parts) in [("upperdir", upper), ("workdir", work)] {
            if let Some(parts) = parts {
                let mut value = backslash_doubled(&prefix);
                push_path(&mut value, parts);
                settings.push(Setting::Text(key, OsString::from_vec(value)));
            }
        }
        settings.extend(self.context());
        Ok(OverlayCall::Settings {
            settings,
            working_dir: self.working_dir(base),
        })
    }
}

/// Settings besides options and lower directories: the layer's own, upper, work and label.
const BESIDES: usize = 4;

/// Two names, neither of which can hold a byte that means something.
fn push_path(value: &mut Vec<u8>, parts: [&str; 2]) {
    value.extend_from_slice(parts[0].as_bytes());
    value.push(b'/');
    value.extend_from_slice(parts[1].as_bytes());
}

fn relative(parts: [&str; 2]) -> PathBuf {
    let mut value = Vec::with_capacity(parts[0].len() + 1 + parts[1].len());
    push_path(&mut value, parts);
    OsString::from_vec(value).into()
}

/// A backslash before `\`, `,` and `:` means the byte itself in all three path options.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(path.len() * 2);
    for &byte in path {
        if matches!(byte, b'\\' | b',' | b':') {
            value.push(b'\\');
        }
        value.push(byte);
    }
    value
}

fn backslashes(path: &[u8]) -> usize {
    path.iter().filter(|&&byte| byte == b'\\').count()
}

/// `upperdir` and `workdir` still take a backslash as an escape in `fsconfig(2)`; an undoubled one
/// can name another existing directory.
fn backslash_doubled(path: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(path.len() + backslashes(path) + LayerId::MAX_LEN + 8);
    for &byte in path {
        if byte == b'\\' {
            value.push(b'\\');
        }
        value.push(byte);
    }
    value
}
