use std::fmt;
use std::str::FromStr;

/// Where overlayfs keeps its private extended attributes.
///
/// A property of the home: a layer written with one namespace shows deleted files again when it is
/// mounted with the other.
///
/// # References
///
/// `Documentation/filesystems/overlayfs.rst`, "User xattr".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XattrNamespace {
    /// `trusted.overlay.`: needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.`: the mount option `userxattr`, for user namespaces.
    User,
}

impl XattrNamespace {
    /// The prefix of every private attribute, with its final dot.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// Marks an opaque directory (`y`) or one that holds xattr whiteouts (`x`).
    #[must_use]
    pub const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Names where a renamed directory's lower contents are.
    #[must_use]
    pub const fn redirect(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.redirect",
            Self::User => "user.overlay.redirect",
        }
    }

    /// Marks a file whose data is still in a lower layer.
    #[must_use]
    pub const fn metacopy(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.metacopy",
            Self::User => "user.overlay.metacopy",
        }
    }

    /// Marks an empty file that stands for a whiteout.
    #[must_use]
    pub const fn whiteout(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.whiteout",
            Self::User => "user.overlay.whiteout",
        }
    }

    /// The namespace as settings and JSON write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::User => "user",
        }
    }
}

impl fmt::Display for XattrNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for XattrNamespace {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "trusted" => Ok(Self::Trusted),
            "user" => Ok(Self::User),
            _ => Err(()),
        }
    }
}
