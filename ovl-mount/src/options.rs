use std::fmt;
use std::str::FromStr;

use crate::backend::MountFeatures;
use crate::plan::Setting;

/// Options of one mount: a typed set, so that no option can smuggle in a layer or a path.
///
/// The default is Docker's string: nothing but `index=off` and, in a user namespace, `userxattr`,
/// which every plan adds where the kernel knows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverlayOptions {
    /// Whether directory renames leave redirects behind, and whether redirects are followed.
    pub redirect_dir: Option<RedirectDir>,
    /// Whether a change of metadata alone copies a file's data up.
    pub metacopy: Option<Switch>,
    /// How inode numbers stay unique over several file systems.
    pub xino: Option<Xino>,
    /// Device nodes are not devices.
    pub nodev: bool,
    /// Setuid, setgid and file capabilities have no effect.
    pub nosuid: bool,
    /// Nothing is executable.
    pub noexec: bool,
    /// Nothing written through the mount is ever synced, not even at its end. What a machine that
    /// stops leaves behind cannot be told from what was written. Only a writable overlay has
    /// anything to sync: plans of others leave it out.
    pub volatile: bool,
}

impl OverlayOptions {
    /// The options for a chain in which every layer is ours: no redirect is written or followed and
    /// no data stays below, whatever the kernel's build-time defaults. A plan leaves out what says so
    /// where the kernel does not know it: it would refuse the mount.
    #[must_use]
    pub fn explicit(self) -> Self {
        // The kernel refuses metacopy without redirects.
        let redirect_dir = match self.metacopy {
            Some(Switch::On) => RedirectDir::On,
            _ => RedirectDir::NoFollow,
        };
        Self {
            redirect_dir: self.redirect_dir.or(Some(redirect_dir)),
            metacopy: self.metacopy.or(Some(Switch::Off)),
            ..self
        }
    }

    /// Adds one option as the command line writes it.
    ///
    /// ```
    /// use ovl_mount::OverlayOptions;
    ///
    /// let options = OverlayOptions::default().with("nodev")?.with("redirect_dir=on")?;
    /// assert!(options.nodev);
    /// assert!(OverlayOptions::default().with("upperdir=/etc").is_err());
    /// # Ok::<(), ovl_mount::OptionError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OptionError`] for an option that is not in the set, or a value that it does not take.
    pub fn with(mut self, text: &str) -> Result<Self, OptionError> {
        let unknown = || OptionError {
            option: text.to_owned(),
        };
        match text.split_once('=') {
            None if text == "nodev" => self.nodev = true,
            None if text == "nosuid" => self.nosuid = true,
            None if text == "noexec" => self.noexec = true,
            None if text == "volatile" => self.volatile = true,
            Some(("redirect_dir", value)) => {
                self.redirect_dir = Some(value.parse().map_err(|()| unknown())?);
            }
            Some(("metacopy", value)) => {
                self.metacopy = Some(value.parse().map_err(|()| unknown())?);
            }
            Some(("xino", value)) => self.xino = Some(value.parse().map_err(|()| unknown())?),
            _ => return Err(unknown()),
        }
        Ok(self)
    }

    /// The settings that come before the layers, in Docker's order.
    pub(crate) fn settings(&self, features: &MountFeatures, writable: bool) -> Vec<Setting> {
        let mut settings = Vec::new();
        if features.index {
            settings.push(Setting::Text("index", "off".into()));
        }
        if features.user_namespace {
            settings.push(Setting::Flag("userxattr"));
        }
        let mut text = |key, value: Option<&'static str>| {
            settings.extend(value.map(|value| Setting::Text(key, value.into())));
        };
        // What asks for nothing is left out where it is not known; what asks for something is for
        // the kernel to refuse.
        let redirect_dir = self
            .redirect_dir
            .filter(|value| features.redirect_dir || *value != RedirectDir::NoFollow);
        let metacopy = self
            .metacopy
            .filter(|value| features.metacopy || *value != Switch::Off);
        text("redirect_dir", redirect_dir.map(RedirectDir::as_str));
        text("metacopy", metacopy.map(Switch::as_str));
        text("xino", self.xino.map(Xino::as_str));
        if self.volatile && writable {
            settings.push(Setting::Flag("volatile"));
        }
        settings
    }
}

/// The options as [`OverlayOptions::with`] takes them, separated by commas.
impl fmt::Display for OverlayOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(
            self.redirect_dir
                .map(|value| format!("redirect_dir={}", value.as_str())),
        );
        words.extend(
            self.metacopy
                .map(|value| format!("metacopy={}", value.as_str())),
        );
        words.extend(self.xino.map(|value| format!("xino={}", value.as_str())));
        for (set, word) in [
            (self.nodev, "nodev"),
            (self.nosuid, "nosuid"),
            (self.noexec, "noexec"),
            (self.volatile, "volatile"),
        ] {
            words.extend(set.then(|| word.to_owned()));
        }
        f.write_str(&words.join(","))
    }
}

/// An option outside the set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{option:?} is not a mount option; there are nodev, nosuid, noexec, volatile, redirect_dir=on|follow|nofollow, metacopy=on|off and xino=on|off|auto"
)]
#[non_exhaustive]
pub struct OptionError {
    /// The refused text.
    pub option: String,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// The value as the kernel takes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($word => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
    };
}

words! {
    /// Values of `redirect_dir`. There is no `off`: what it means depends on a module parameter,
    /// and it conflicts with `userxattr`.
    RedirectDir {
        /// Renaming a directory of a lower layer works and leaves a redirect.
        On = "on",
        /// Redirects are followed, none is made.
        Follow = "follow",
        /// Redirects are neither followed nor made.
        NoFollow = "nofollow",
    }
}

words! {
    /// A plain switch.
    Switch {
        /// On.
        On = "on",
        /// Off.
        Off = "off",
    }
}

words! {
    /// Values of `xino`.
    Xino {
        /// Inode numbers carry the layer's number.
        On = "on",
        /// They do not.
        Off = "off",
        /// Where the numbers have room.
        Auto = "auto",
    }
}
