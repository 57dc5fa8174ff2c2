use std::fmt;
use std::io::{self, Read};

use super::decode::Compression;
use super::header::{self, BLOCK, Header};
use super::limits::ReadLimits;
use super::pax::{self, Pax};
use super::stream::{Block, Stream};
use super::summary::{ArchiveSummary, ArchiveWarning};
use super::{ArchiveEntry, ArchiveError, BadArchive, BadReason, EntryKind, Fault};

/// Reads a layer archive entry by entry: plain, gzip or zstd, told by the first bytes.
///
/// The archive need not be seekable. Memory is bounded by the limits, whatever the archive says.
/// Nothing is judged here that only the tree can tell, such as where a name leads.
///
/// ```no_run
/// use std::fs::File;
///
/// use ovl_diff::{ArchiveReader, ReadLimits};
///
/// let mut archive = ArchiveReader::new(File::open("layer.tar.gz")?, ReadLimits::default());
/// while let Some(entry) = archive.next_entry()? {
///     println!("{:10} {}", entry.size, String::from_utf8_lossy(&entry.path));
/// }
/// println!("{}", archive.finish()?.diff_id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Compatibility
/// Accepts what Docker accepts, except archives that readers disagree about, sparse members, and the
/// compressions bzip2 and xz.
pub struct ArchiveReader<R> {
    stream: Stream<R>,
    limits: ReadLimits,
    entries: u64,
    // Of the current entry: bytes of content that are not read yet, and of content and padding.
    size: u64,
    content_left: u64,
    padding: u64,
    at: Place,
    state: State,
    // The data of extension headers.
    extension: Vec<u8>,
    warnings: Vec<ArchiveWarning>,
}

/// Whom to blame; kept apart from the entries, which belong to the caller.
#[derive(Default)]
struct Place {
    index: u64,
    offset: u64,
    name: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Entries,
    Ended,
    Failed,
}

/// The extension headers before an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl Extensions {
    fn are_pending(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

impl<R: Read> ArchiveReader<R> {
    /// A reader at the start of an archive. Nothing is read yet; `reader` needs no buffer.
    pub fn new(reader: R, limits: ReadLimits) -> Self {
        Self {
            stream: Stream::new(reader, limits),
            limits,
            entries: 0,
            size: 0,
            content_left: 0,
            padding: 0,
            at: Place::default(),
            state: State::Entries,
            extension: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Bytes taken from the source so far, compressed as they are.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.stream.decoder().compressed_bytes()
    }

    /// Reads the next entry, skipping what is left of the content before; `None` at the end of the
    /// archive.
    ///
    /// # Errors
    /// [`ArchiveError::Bad`] for anything wrong with the archive up to here, [`ArchiveError::Io`]
    /// when its source fails. Either is final: all later calls fail too.
    pub fn next_entry(&mut self) -> Result<Option<ArchiveEntry>, ArchiveError> {
        self.guarded(|reader| match reader.state {
            State::Ended => Ok(None),
            _ => {
                reader.skip_content()?;
                reader.read_entry()
            }
        })
    }

    /// Reads some of the current entry's content; 0 only at its end, or for an empty buffer. Large
    /// buffers (64 KiB and more) are filled without copying.
    ///
    /// # Errors
    /// As [`next_entry`](Self::next_entry); [`BadReason::Truncated`] when the archive ends inside
    /// the content.
    pub fn read_payload(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        self.guarded(|reader| {
            let want = usize::try_from(reader.content_left)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            let len = reader.stream.read(&mut buffer[..want])?;
            reader.content_left -= len as u64;
            if len == 0 && want > 0 {
                return Err(reader.truncated_content());
            }
            Ok(len)
        })
    }

    /// Reads the rest of the archive, entries included, to the last byte of its source. Only then
    /// are all checksums checked and the digest complete.
    ///
    /// # Errors
    /// As [`next_entry`](Self::next_entry).
    pub fn finish(mut self) -> Result<ArchiveSummary, ArchiveError> {
        while self.next_entry()?.is_some() {}
        self.guarded(|reader| {
            reader.at = Place {
                index: reader.entries,
                offset: reader.stream.offset(),
                name: Vec::new(),
            };
            if let Some(offset) = reader.stream.drain()? {
                reader
                    .warnings
                    .push(ArchiveWarning::TrailingData { offset });
            }
            Ok(())
        })?;
        Ok(ArchiveSummary {
            uncompressed_bytes: self.stream.offset(),
            compressed_bytes: self.stream.decoder().compressed_bytes(),
            entries: self.entries,
            compression: self
                .stream
                .decoder()
                .compression()
                .unwrap_or(Compression::None),
            warnings: self.warnings,
            diff_id: self.stream.diff_id(),
        })
    }

    /// Adds the place to a failure and refuses to go on after one.
    fn guarded<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, ArchiveError> {
        let result = match self.state {
            State::Failed => Err(io::Error::other("reading this archive has failed before").into()),
            _ => step(self),
        };
        result.map_err(|fault| {
            self.state = State::Failed;
            match fault {
                Fault::Io(source) => ArchiveError::Io {
                    offset: self.stream.offset(),
                    source,
                },
                Fault::Bad(reason) => {
                    let Place {
                        index,
                        offset,
                        ref name,
                    } = self.at;
                    BadArchive {
                        index,
                        offset,
                        name: name.clone(),
                        reason,
                    }
                    .into()
                }
            }
        })
    }

    fn skip_content(&mut self) -> Result<(), Fault> {
        self.content_left -= self.stream.skip(self.content_left)?;
        if self.content_left > 0 {
            return Err(self.truncated_content());
        }
        let found = self.stream.skip(self.padding)?;
        if found < self.padding {
            let (part, expected) = ("the padding after the entry's content", self.padding);
            return Err(BadReason::Truncated {
                part,
                expected,
                found,
            }
            .into());
        }
        self.padding = 0;
        Ok(())
    }

    fn truncated_content(&self) -> Fault {
        let found = self.size - self.content_left;
        BadReason::Truncated {
            part: "the entry's content",
            expected: self.size,
            found,
        }
        .into()
    }

    /// Reads the headers of one entry, at the start of a block.
    fn read_entry(&mut self) -> Result<Option<ArchiveEntry>, Fault> {
        self.at.index = self.entries;
        let mut extensions = Extensions::default();
        loop {
            self.at.offset = self.stream.offset();
            self.at.name.clear();
            let first = self.at.offset == 0;
            let block = match self.stream.block()? {
                Block::Full(block) => block,
                Block::Partial(start) if first && !header::claims_to_be_tar(start) => {
                    return Err(BadReason::NotAnArchive {
                        hint: header::guess(start),
                    }
                    .into());
                }
                Block::Partial(start) => {
                    let (part, found) = ("a header", start.len() as u64);
                    return Err(BadReason::Truncated {
                        part,
                        expected: BLOCK as u64,
                        found,
                    }
                    .into());
                }
                Block::End if first => {
                    return Err(BadReason::NotAnArchive {
                        hint: header::guess(&[]),
                    }
                    .into());
                }
                Block::End => return self.end(&extensions, 0),
            };
            if is_zero(block) {
                self.stream.consume(BLOCK);
                return match self.stream.block()? {
                    Block::End => self.end(&extensions, 1),
                    Block::Full(block) if is_zero(block) => {
                        self.stream.consume(BLOCK);
                        self.end(&extensions, 2)
                    }
                    _ => Err(BadReason::BadEof.into()),
                };
            }
            self.at.name.extend_from_slice(header::raw_name(block));
            let header = Header::parse(block).map_err(|reason| match reason {
                _ if first && !header::claims_to_be_tar(block) => BadReason::NotAnArchive {
                    hint: header::guess(block),
                },
                reason => reason,
            })?;
            let typeflag = header.typeflag();
            if matches!(typeflag, b'x' | b'g' | b'L' | b'K') {
                let size = header.size()?;
                self.stream.consume(BLOCK);
                self.read_extension(typeflag, size, &mut extensions)?;
                continue;
            }
            let entry = build_entry(&header, extensions, &mut self.at)?;
            self.stream.consume(BLOCK);
            return self.accept(entry).map(Some);
        }
    }

    /// Counts an entry and prepares for its content.
    fn accept(&mut self, entry: ArchiveEntry) -> Result<ArchiveEntry, Fault> {
        let max = self.limits.max_output_bytes;
        if entry.size > max.saturating_sub(self.stream.offset()) {
            return Err(BadReason::OutputLimit { max }.into());
        }
        if self.entries >= self.limits.max_entries {
            return Err(BadReason::EntryLimit {
                max: self.limits.max_entries,
            }
            .into());
        }
        self.entries += 1;
        self.size = entry.size;
        self.content_left = entry.size;
        self.padding = padding(entry.size);
        Ok(entry)
    }

    fn end(&mut self, extensions: &Extensions, found: u8) -> Result<Option<ArchiveEntry>, Fault> {
        if extensions.are_pending() {
            return Err(BadReason::DanglingExtension.into());
        }
        if found < 2 {
            self.warnings
                .push(ArchiveWarning::MissingEndBlocks { found });
        }
        self.state = State::Ended;
        Ok(None)
    }

    fn read_extension(
        &mut self,
        typeflag: u8,
        size: u64,
        extensions: &mut Extensions,
    ) -> Result<(), Fault> {
        let repeated = match typeflag {
            b'x' => extensions.pax.is_some(),
            b'L' => extensions.long_name.is_some(),
            b'K' => extensions.long_link.is_some(),
            _ if extensions.are_pending() => {
                let problem = "a global PAX header between an extension header and its entry";
                return Err(BadReason::AmbiguousExtension { problem }.into());
            }
            _ => false,
        };
        if repeated {
            return Err(BadReason::RepeatedExtension { typeflag }.into());
        }
        let max = self.limits.max_extension_bytes;
        extensions.bytes = extensions.bytes.saturating_add(size);
        let too_large = BadReason::ExtensionTooLarge {
            size: extensions.bytes,
            max,
        };
        let Some(len) = usize::try_from(size)
            .ok()
            .filter(|_| extensions.bytes <= max)
        else {
            return Err(too_large.into());
        };
        // In steps, so that without a limit memory still grows only with what is there.
        self.extension.clear();
        while self.extension.len() < len {
            let start = self.extension.len();
            self.extension.resize(len.min(start + (1 << 20)), 0);
            let end = start + self.stream.read_full(&mut self.extension[start..])?;
            if end < self.extension.len() {
                let (part, found) = ("an extension header", end as u64);
                return Err(BadReason::Truncated {
                    part,
                    expected: size,
                    found,
                }
                .into());
            }
        }
        let found = self.stream.skip(padding(size))?;
        if found < padding(size) {
            let (part, expected) = ("the padding after an extension header", padding(size));
            return Err(BadReason::Truncated {
                part,
                expected,
                found,
            }
            .into());
        }
        match typeflag {
            b'x' => extensions.pax = Some(Pax::parse(&self.extension)?),
            b'L' => extensions.long_name = Some(long_text("path", &self.extension)?),
            b'K' => extensions.long_link = Some(long_text("linkpath", &self.extension)?),
            _ => pax::check_global(&self.extension)?,
        }
        Ok(())
    }
}

impl<R> fmt::Debug for ArchiveReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveReader")
            .field("limits", &self.limits)
            .field("entries", &self.entries)
            .field("offset", &self.stream.offset())
            .finish_non_exhaustive()
    }
}

/// Merges a header with the extension headers before it.
fn build_entry(
    header: &Header<'_>,
    extensions: Extensions,
    at: &mut Place,
) -> Result<ArchiveEntry, BadReason> {
    let Extensions {
        pax,
        long_name,
        long_link,
        ..
    } = extensions;
    let pax = pax.unwrap_or_default();
    // There is no rule which of the two wins, and readers differ.
    let problem = match () {
        () if pax.path.is_some() && long_name.is_some() => Some("a PAX path and a GNU long name"),
        () if pax.link.is_some() && long_link.is_some() => {
            Some("a PAX linkpath and a GNU long link")
        }
        () => None,
    };
    let path = pax.path.filter(|path| !path.is_empty()).or(long_name);
    let path = path.unwrap_or_else(|| header.path());
    at.name.clear();
    at.name.extend_from_slice(&path);
    if let Some(problem) = problem {
        return Err(BadReason::AmbiguousExtension { problem });
    }
    if path.is_empty() {
        return Err(BadReason::EmptyName { field: "path" });
    }

    let link = pax.link.filter(|link| !link.is_empty()).or(long_link);
    let target = || match link.unwrap_or_else(|| header.link().to_vec()) {
        target if target.is_empty() => Err(BadReason::EmptyName { field: "linkpath" }),
        target => Ok(target),
    };
    let kind = match header.typeflag() {
        // Before ustar there was no type for directories.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        b'0' | b'7' if path.ends_with(b"/") => return Err(BadReason::TrailingSlash),
        // 7 is a file that some system once laid out contiguously.
        0 | b'0' | b'7' => EntryKind::Regular,
        b'1' => EntryKind::HardLink { target: target()? },
        b'2' => EntryKind::Symlink { target: target()? },
        b'3' => EntryKind::CharDevice(header.device()?),
        b'4' => EntryKind::BlockDevice(header.device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err(BadReason::SparseUnsupported),
        typeflag => return Err(BadReason::UnsupportedType { typeflag }),
    };

    let own_size = header.size()?;
    let size = pax.size.unwrap_or(own_size);
    if own_size != 0 && own_size != size {
        return Err(BadReason::SizeConflict {
            header: own_size,
            pax: size,
        });
    }
    if size != 0 && kind != EntryKind::Regular {
        return Err(BadReason::PayloadOnSpecial { size });
    }
    Ok(ArchiveEntry {
        index: at.index,
        offset: at.offset,
        path,
        kind,
        size,
        mode: header.mode()?,
        uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
        gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
        mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
        xattrs: pax.xattrs,
    })
}

/// The data of a GNU long name: text and the NULs after it.
fn long_text(field: &'static str, data: &[u8]) -> Result<Vec<u8>, BadReason> {
    let len = data
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    match &data[..len] {
        [] => Err(BadReason::EmptyName { field }),
        text if text.contains(&0) => Err(BadReason::NulInName { field }),
        text => Ok(text.to_vec()),
    }
}

/// Zeros after content of `size` bytes, up to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block[0] == 0 && block.iter().all(|byte| *byte == 0)
}
