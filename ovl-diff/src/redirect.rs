//! What overlayfs writes down where contents are not below their own name.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt as _;

/// Longest way that is followed, in bytes: that of any path.
const MAX_LEN: usize = 4096;

/// Why the contents of an object that are elsewhere cannot be found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unresolved {
    /// No layer below has what the attribute names.
    Nowhere,
    /// The attribute has a value that no kernel writes.
    Malformed,
    /// The names of several layers add up to a path of more than 4096 bytes.
    TooLong,
    /// The file carries a digest of its data, which is not verified here.
    Digest,
    /// The file has several names, and it is not written down which of them its data has.
    HardLinked,
    /// The data found is not that of the file.
    Size {
        /// Bytes that the file has.
        expected: u64,
        /// Bytes that were found.
        found: u64,
    },
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("no layer below has what it names"),
            Self::Malformed => f.write_str("its value is not one that a kernel writes"),
            Self::TooLong => write!(f, "it leads to a path of more than {MAX_LEN} bytes"),
            Self::Digest => f.write_str("it has a digest, which only a mount with verity checks"),
            Self::HardLinked => {
                f.write_str("the file has several names, and it does not say which its data has")
            }
            Self::Size { expected, found } => write!(
                f,
                "the data below has {found} bytes where the file has {expected}"
            ),
        }
    }
}

/// What an [`io::Error`] of [`io::ErrorKind::Unsupported`] holds then.
#[derive(Debug)]
pub(crate) struct UnresolvedAttribute {
    pub(crate) attribute: &'static str,
    pub(crate) reason: Unresolved,
}

impl fmt::Display for UnresolvedAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attribute, reason } = self;
        write!(
            f,
            "the attribute {attribute} says that its contents are elsewhere, but {reason}"
        )
    }
}

impl std::error::Error for UnresolvedAttribute {}

/// The error for an object whose contents cannot be found.
pub(crate) fn unresolved(attribute: &'static str, reason: Unresolved) -> io::Error {
    let source = UnresolvedAttribute { attribute, reason };
    io::Error::new(io::ErrorKind::Unsupported, source)
}

/// By which names the layers below have an object: its own, until a layer says otherwise.
#[derive(Debug)]
pub(crate) struct Way {
    names: Vec<OsString>,
    /// From the roots of the layers, and not from the directory that the object is in.
    absolute: bool,
    /// How many of the names this layer has gone.
    gone: usize,
    redirects: usize,
    /// The last name of the way is what a redirect of the object itself said.
    elsewhere: bool,
    ends: bool,
}

impl Way {
    pub(crate) fn new(name: &OsStr) -> Self {
        Self {
            names: vec![name.to_owned()],
            absolute: false,
            gone: 0,
            redirects: 0,
            elsewhere: false,
            ends: false,
        }
    }

    pub(crate) fn is_absolute(&self) -> bool {
        self.absolute
    }

    /// How often it has changed.
    pub(crate) fn redirects(&self) -> usize {
        self.redirects
    }

    /// Whether the layer gone last has the object and gives it another name below.
    pub(crate) fn leads_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Whether nothing further down shows.
    pub(crate) fn ends(&self) -> bool {
        self.ends
    }

    /// Something on the way is opaque.
    pub(crate) fn end(&mut self) {
        self.ends = true;
    }

    /// Begins a layer.
    pub(crate) fn start(&mut self) {
        (self.gone, self.elsewhere) = (0, false);
    }

    /// The next name, and whether it is the last.
    pub(crate) fn step(&mut self) -> (OsString, bool) {
        let name = self.names[self.gone].clone();
        self.gone += 1;
        (name, self.gone == self.names.len())
    }

    /// The directory gone to last has this name below.
    pub(crate) fn redirect(&mut self, value: &[u8]) -> Result<(), Unresolved> {
        let rest = self.names.split_off(self.gone);
        self.elsewhere = rest.is_empty();
        match value.strip_prefix(b"/") {
            Some(path) => {
                let names = path.split(|&byte| byte == b'/').map(name);
                self.names = names.collect::<Result<_, _>>()?;
                // What is opaque on the way here is not on the way there.
                (self.absolute, self.ends) = (true, false);
            }
            None => {
                self.names.pop();
                self.names.push(name(value)?);
            }
        }
        self.gone = self.names.len();
        self.names.extend(rest);
        self.redirects += 1;
        match self.names.iter().map(|name| name.len() + 1).sum::<usize>() {
            0..=MAX_LEN => Ok(()),
            _ => Err(Unresolved::TooLong),
        }
    }

    /// The same for the object at the end of the way.
    pub(crate) fn redirect_last(&mut self, value: &[u8]) -> Result<(), Unresolved> {
        self.gone = self.names.len();
        self.redirect(value)
    }
}

fn name(bytes: &[u8]) -> Result<OsString, Unresolved> {
    let valid =
        !matches!(bytes, b"" | b"." | b"..") && bytes.iter().all(|byte| !matches!(byte, 0 | b'/'));
    match valid {
        true => Ok(OsString::from_vec(bytes.to_vec())),
        false => Err(Unresolved::Malformed),
    }
}

/// Whether the value of a metacopy attribute carries a digest: version, length, flags, algorithm,
/// and the digest itself.
pub(crate) fn has_digest(value: &[u8]) -> Result<bool, Unresolved> {
    match *value {
        [] => Ok(false),
        [0, len, 0, algorithm, ref digest @ ..] if usize::from(len) == value.len() => {
            match (algorithm, digest) {
                (0, []) => Ok(false),
                (0, _) => Err(Unresolved::Malformed),
                _ => Ok(true),
            }
        }
        _ => Err(Unresolved::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(way: &mut Way) -> Vec<OsString> {
        way.start();
        let mut names = Vec::new();
        loop {
            let (name, last) = way.step();
            names.push(name);
            if last {
                return names;
            }
        }
    }

    #[test]
    fn a_relative_redirect_changes_the_last_name_and_an_absolute_one_all() {
        let mut way = Way::new(OsStr::new("c"));
        gone(&mut way);
        way.redirect(b"b").unwrap();
        assert!(!way.is_absolute() && way.leads_elsewhere());
        assert_eq!(gone(&mut way), ["b"]);
        way.redirect(b"/x/y").unwrap();
        assert!(way.is_absolute());
        way.start();
        assert_eq!(way.step(), (OsString::from("x"), false));
        way.redirect(b"z").unwrap();
        assert!(!way.leads_elsewhere());
        assert_eq!(way.step(), (OsString::from("y"), true));
        assert_eq!(gone(&mut way), ["z", "y"]);
    }

    #[test]
    fn values_that_no_kernel_writes_are_refused() {
        for value in [
            &b""[..],
            b"/",
            b"a/b",
            b"..",
            b"/a//b",
            b"/a/",
            b"/a/..",
            b"a\0",
        ] {
            let mut way = Way::new(OsStr::new("c"));
            gone(&mut way);
            assert_eq!(way.redirect(value), Err(Unresolved::Malformed), "{value:?}");
        }
        let mut way = Way::new(OsStr::new("c"));
        gone(&mut way);
        let long = [&b"/a"[..]; 2049].concat();
        assert_eq!(way.redirect(&long), Err(Unresolved::TooLong));
    }

    #[test]
    fn a_digest_is_recognised() {
        assert_eq!(has_digest(b""), Ok(false));
        assert_eq!(has_digest(&[0, 4, 0, 0]), Ok(false));
        let digest = [&[0, 36, 0, 1][..], &[7; 32]].concat();
        assert_eq!(has_digest(&digest), Ok(true));
        assert_eq!(has_digest(&digest[..35]), Err(Unresolved::Malformed));
        assert_eq!(has_digest(&[1, 4, 0, 0]), Err(Unresolved::Malformed));
    }
}
