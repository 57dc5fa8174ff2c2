use std::fmt;
use std::io::{self, Read};
use std::ops::Range;

use super::buffers::Piece;
use super::decode::Compression;
use super::header::{self, BLOCK, Header};
use super::limits::ReadLimits;
use super::pax::{self, Pax};
use super::sparse::{self, ContentMap, OldMap, PaxMap, Runs};
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
/// Accepts what Docker accepts, sparse files in all of GNU tar's formats included, except archives
/// that readers disagree about, and the compressions bzip2 and xz.
pub struct ArchiveReader<R> {
    stream: Stream<R>,
    limits: ReadLimits,
    entries: u64,
    // Of the current entry: its runs of data, the first of them that is not read yet, how far the
    // contents are read, and what of it is in the archive, all, unread, and after the content.
    size: u64,
    runs: Vec<Range<u64>>,
    run: usize,
    position: u64,
    stored: u64,
    content_left: u64,
    padding: u64,
    // Holes of all entries so far, in bytes.
    holes: u64,
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
            runs: Vec::new(),
            run: 0,
            position: 0,
            stored: 0,
            content_left: 0,
            padding: 0,
            holes: 0,
            at: Place::default(),
            state: State::Entries,
            extension: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Bytes taken from the source so far, compressed as they are.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.stream.compressed_bytes()
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

    /// Reads some of the current entry's content; 0 only at its end, or for an empty buffer. The
    /// holes of a sparse file are read as zeros, however large they are: see
    /// [`skip_hole`](Self::skip_hole).
    ///
    /// # Errors
    /// As [`next_entry`](Self::next_entry); [`BadReason::Truncated`] when the archive ends inside
    /// the content.
    pub fn read_payload(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        self.guarded(|reader| {
            let run = reader.next_run();
            let up_to = |end: u64| {
                let left = usize::try_from(end - reader.position);
                left.map_or(buffer.len(), |left| left.min(buffer.len()))
            };
            if reader.position < run.start {
                let len = up_to(run.start);
                buffer[..len].fill(0);
                reader.position += len as u64;
                return Ok(len);
            }
            let want = up_to(run.end);
            let len = reader.stream.read(&mut buffer[..want])?;
            reader.position += len as u64;
            reader.content_left -= len as u64;
            if len == 0 && want > 0 {
                return Err(reader.truncated_content());
            }
            Ok(len)
        })
    }

    /// Takes some data of the current entry's content, holes skipped, and says where in the content
    /// it begins; `None` at its end. To be held are pieces of at most
    /// [`HOLDABLE`](super::HOLDABLE) at a time.
    pub(crate) fn next_piece(&mut self) -> Result<Option<(u64, Piece)>, ArchiveError> {
        self.guarded(|reader| {
            let run = reader.next_run();
            reader.position = reader.position.max(run.start);
            let left = run.end - reader.position;
            if left == 0 {
                return Ok(None);
            }
            let Some(piece) = reader.stream.take(left)? else {
                return Err(reader.truncated_content());
            };
            let at = reader.position;
            reader.position += piece.len() as u64;
            reader.content_left -= piece.len() as u64;
            Ok(Some((at, piece)))
        })
    }

    /// Skips the hole where the current entry's content is to be read next, and gives its length in
    /// bytes; 0 where there is none. What [`read_payload`](Self::read_payload) gives next is data.
    pub fn skip_hole(&mut self) -> u64 {
        let hole = self.next_run().start.saturating_sub(self.position);
        self.position += hole;
        hole
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
            compressed_bytes: self.stream.compressed_bytes(),
            entries: self.entries,
            compression: self.stream.compression().unwrap_or(Compression::None),
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

    /// The run of data at or after the position, empty at the end of the content.
    fn next_run(&mut self) -> Range<u64> {
        let position = self.position;
        while self
            .runs
            .get(self.run)
            .is_some_and(|run| run.end <= position)
        {
            self.run += 1;
        }
        let end = self.size..self.size;
        self.runs.get(self.run).cloned().unwrap_or(end)
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
        self.position = self.size;
        Ok(())
    }

    fn truncated_content(&self) -> Fault {
        let found = self.stored - self.content_left;
        BadReason::Truncated {
            part: "the entry's content",
            expected: self.stored,
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
            let extension_bytes = extensions.bytes;
            let (entry, sparse) = build_entry(&header, extensions, &mut self.at)?;
            self.stream.consume(BLOCK);
            return self.accept(entry, sparse, extension_bytes).map(Some);
        }
    }

    /// Counts an entry and prepares for its content.
    fn accept(
        &mut self,
        mut entry: ArchiveEntry,
        sparse: Sparse,
        extension_bytes: u64,
    ) -> Result<ArchiveEntry, Fault> {
        self.check_room(entry.stored)?;
        if self.entries >= self.limits.max_entries {
            return Err(BadReason::EntryLimit {
                max: self.limits.max_entries,
            }
            .into());
        }
        self.runs.clear();
        match sparse {
            Sparse::No => self.runs.push(0..entry.size),
            Sparse::Old(map) => {
                let runs = self.read_old_map(map, extension_bytes)?;
                self.runs = runs.finish(entry.stored)?;
            }
            Sparse::Pax(PaxMap::Whole(runs)) => self.runs = runs.finish(entry.stored)?,
            Sparse::Pax(PaxMap::InContent(size)) => {
                let runs = self.read_content_map(size, &mut entry.stored, extension_bytes)?;
                self.runs = runs.finish(entry.stored)?;
            }
        }
        self.holes = self.holes.saturating_add(entry.size - entry.stored);
        self.check_room(entry.stored)?;
        self.entries += 1;
        self.size = entry.size;
        (self.run, self.position) = (0, 0);
        self.stored = entry.stored;
        self.content_left = entry.stored;
        self.padding = padding(entry.stored);
        Ok(entry)
    }

    /// Holes count as the zeros that they stand for: a limit on bytes is one on the bytes of the
    /// files too.
    fn check_room(&self, stored: u64) -> Result<(), BadReason> {
        let max = self.limits.max_output_bytes;
        let used = self.stream.offset().saturating_add(self.holes);
        match used.saturating_add(stored) > max {
            true => Err(BadReason::OutputLimit { max }),
            false => Ok(()),
        }
    }

    /// The rest of an old map, which is between the header and the content.
    fn read_old_map(&mut self, mut map: OldMap, mut bytes: u64) -> Result<Runs, Fault> {
        while map.extended {
            let block = self.map_block(&mut bytes)?;
            map.extend(&block)?;
        }
        Ok(map.runs)
    }

    /// The map at the beginning of the content, which becomes that much shorter.
    fn read_content_map(
        &mut self,
        real_size: u64,
        stored: &mut u64,
        mut bytes: u64,
    ) -> Result<Runs, Fault> {
        let mut map = ContentMap::new(real_size);
        loop {
            *stored = stored
                .checked_sub(BLOCK as u64)
                .ok_or_else(|| sparse::bad("the map does not end before the content does"))?;
            let block = self.map_block(&mut bytes)?;
            if map.block(&block)? {
                return Ok(map.runs);
            }
        }
    }

    /// A block of a sparse map, which counts as an extension header: it is held in memory.
    fn map_block(&mut self, bytes: &mut u64) -> Result<[u8; BLOCK], Fault> {
        *bytes = bytes.saturating_add(BLOCK as u64);
        let max = self.limits.max_extension_bytes;
        if *bytes > max {
            return Err(BadReason::ExtensionTooLarge { size: *bytes, max }.into());
        }
        let mut block = [0; BLOCK];
        let found = self.stream.read_full(&mut block)?;
        if found < BLOCK {
            return Err(BadReason::Truncated {
                part: "a sparse map",
                expected: BLOCK as u64,
                found: found as u64,
            }
            .into());
        }
        Ok(block)
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

/// How the holes of an entry are told.
enum Sparse {
    No,
    Old(OldMap),
    Pax(PaxMap),
}

/// Merges a header with the extension headers before it. `stored` of the entry still includes a map
/// that is part of the content.
fn build_entry(
    header: &Header<'_>,
    extensions: Extensions,
    at: &mut Place,
) -> Result<(ArchiveEntry, Sparse), BadReason> {
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
    let sparse_name = pax.sparse.as_ref().and_then(|records| records.name.clone());
    let problem = match &sparse_name {
        Some(_) if long_name.is_some() => Some("a GNU.sparse.name and a GNU long name"),
        _ => problem,
    };
    // The other names of a sparse file are for readers that know nothing of it.
    let path = pax.path.filter(|path| !path.is_empty()).or(long_name);
    let path = sparse_name.or(path).unwrap_or_else(|| header.path());
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
        b'0' | b'7' | b'S' if path.ends_with(b"/") => return Err(BadReason::TrailingSlash),
        // 7 is a file that some system once laid out contiguously.
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        b'1' => EntryKind::HardLink { target: target()? },
        b'2' => EntryKind::Symlink { target: target()? },
        b'3' => EntryKind::CharDevice(header.device()?),
        b'4' => EntryKind::BlockDevice(header.device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
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
    let sparse = match (header.typeflag(), pax.sparse) {
        (b'S', Some(_)) => return Err(sparse::bad("maps in two formats")),
        (b'S', None) if pax.size.is_some() => {
            return Err(sparse::bad(
                "a PAX size for a file in the old sparse format",
            ));
        }
        (b'S', None) => Sparse::Old(OldMap::parse(header.block())?),
        (_, Some(_)) if kind != EntryKind::Regular => {
            return Err(sparse::bad("a map of something that is not a regular file"));
        }
        (_, Some(records)) => Sparse::Pax(records.map()?),
        (_, None) => Sparse::No,
    };
    let real_size = match &sparse {
        Sparse::No => size,
        Sparse::Old(map) => map.runs.size(),
        Sparse::Pax(PaxMap::Whole(runs)) => runs.size(),
        Sparse::Pax(PaxMap::InContent(size)) => *size,
    };
    let entry = ArchiveEntry {
        index: at.index,
        offset: at.offset,
        path,
        kind,
        size: real_size,
        stored: size,
        mode: header.mode()?,
        uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
        gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
        mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
        xattrs: pax.xattrs,
    };
    Ok((entry, sparse))
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
