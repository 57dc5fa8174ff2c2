//! Compressed bytes in, uncompressed bytes out: in this process, streaming, within limits.

use std::fmt;
use std::io::{self, Read};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name, is_error_kind};

use super::limits::ReadLimits;
use super::{BadReason, Fault};

/// Compressed bytes that are read at once.
const INPUT_BUFFER: usize = 128 * 1024;
/// Zeros after gzip data that are still padding: tapes, and what writes like one, have blocks.
const MAX_PADDING: u64 = 16 << 20;
/// `MAX_WBITS` of zlib.
const GZIP_WINDOW_BITS: u8 = 15;
/// 128 MiB, zstd's own default and the most that `zstd --long` writes without further options.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How an archive is compressed, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952), any number of members.
    Gzip,
    /// zstd (RFC 8878), any number of frames.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Decodes a stream whose compression its first bytes tell.
pub(super) struct Decoder<R> {
    input: Input<R>,
    codec: Option<Codec>,
    limits: ReadLimits,
    output: u64,
}

enum Codec {
    Plain,
    Gzip(Gzip),
    Zstd(Zstd),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(reader: R, limits: ReadLimits) -> Self {
        Self {
            input: Input::new(reader, limits.max_output_bytes),
            codec: None,
            limits,
            output: 0,
        }
    }

    /// Reads some uncompressed bytes; 0 only at the end or for an empty buffer. The end is reported
    /// only after trailers and trailing bytes were checked.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if out.is_empty() {
            return Ok(0);
        }
        let codec = match &mut self.codec {
            Some(codec) => codec,
            codec => codec.insert(Codec::recognise(&mut self.input)?),
        };
        let len = match codec {
            Codec::Plain => self.input.read(out)?,
            Codec::Gzip(gzip) => gzip.read(&mut self.input, out)?,
            Codec::Zstd(zstd) => zstd.read(&mut self.input, out)?,
        };
        let plain = matches!(codec, Codec::Plain);
        self.output += len as u64;
        let (output, compressed) = (self.output, self.input.consumed());
        let ReadLimits {
            max_output_bytes,
            max_ratio,
            ratio_floor_bytes,
            ..
        } = self.limits;
        if output > max_output_bytes {
            return Err(BadReason::OutputLimit {
                max: max_output_bytes,
            }
            .into());
        }
        if !plain && output > ratio_floor_bytes && output > compressed.saturating_mul(max_ratio) {
            return Err(BadReason::RatioLimit {
                compressed,
                output,
                max: max_ratio,
            }
            .into());
        }
        Ok(len)
    }
}

impl<R> Decoder<R> {
    /// The compression, once something was read.
    pub(super) fn compression(&self) -> Option<Compression> {
        self.codec.as_ref().map(|codec| match codec {
            Codec::Plain => Compression::None,
            Codec::Gzip(_) => Compression::Gzip,
            Codec::Zstd(_) => Compression::Zstd,
        })
    }

    /// Bytes of the source that were decoded.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.input.consumed()
    }

    /// Bytes that were made of them.
    pub(super) fn output(&self) -> u64 {
        self.output
    }

    /// The same decoder, in the middle of its work, with another source from now on.
    pub(super) fn exchange_source<S>(self, source: S) -> (Decoder<S>, R) {
        let (input, old) = self.input.exchange(source);
        let (codec, limits, output) = (self.codec, self.limits, self.output);
        let decoder = Decoder {
            input,
            codec,
            limits,
            output,
        };
        (decoder, old)
    }
}

impl Codec {
    fn recognise<R: Read>(input: &mut Input<R>) -> Result<Self, Fault> {
        let unsupported = |name| Err(BadReason::UnsupportedCompression { name }.into());
        match input.peek(10)? {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Gzip::new())),
            start if starts_zstd_frame(start) => Ok(Self::Zstd(Zstd::new()?)),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
            start if start.starts_with(b"BZh") && start.get(4..10) == Some(b"1AY&SY") => {
                unsupported("bzip2")
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4"),
            [b'L', b'Z', b'I', b'P', 1, ..] => unsupported("lzip"),
            _ => Ok(Self::Plain),
        }
    }
}

struct Gzip {
    inflate: Decompress,
    state: GzipState,
}

enum GzipState {
    Member,
    Between,
    End,
}

impl Gzip {
    fn new() -> Self {
        Self {
            inflate: Decompress::new_gzip(GZIP_WINDOW_BITS),
            state: GzipState::Member,
        }
    }

    fn read<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize, Fault> {
        loop {
            match self.state {
                GzipState::Member => {
                    let len = self.inflate(input, out)?;
                    if len > 0 {
                        return Ok(len);
                    }
                }
                GzipState::Between => match input.peek(2)? {
                    [] => self.state = GzipState::End,
                    [0x1f, 0x8b, ..] => {
                        self.inflate = Decompress::new_gzip(GZIP_WINDOW_BITS);
                        self.state = GzipState::Member;
                    }
                    // Tape blocks and some registries pad with zeros; gzip itself ignores them.
                    _ => {
                        let mut padding = 0;
                        while let rest @ [_, ..] = input.available()? {
                            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
                            let all = zeros == rest.len();
                            input.consume(zeros);
                            padding += zeros as u64;
                            if !all || padding > MAX_PADDING {
                                return Err(input.trailing_garbage(Compression::Gzip));
                            }
                        }
                        self.state = GzipState::End;
                    }
                },
                GzipState::End => return Ok(0),
            }
        }
    }

    /// Decodes until there is output or the member ends. Header, CRC and length are checked by the
    /// decoder.
    fn inflate<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize, Fault> {
        let corrupt = |detail: &str| BadReason::CorruptCompression {
            compression: Compression::Gzip,
            detail: detail.to_owned(),
        };
        loop {
            let source = input.available()?;
            let at_end = source.is_empty();
            let (read_before, written_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(source, out, FlushDecompress::None)
                .map_err(|error| corrupt(error.message().unwrap_or("invalid deflate data")))?;
            let read = (self.inflate.total_in() - read_before) as usize;
            let written = (self.inflate.total_out() - written_before) as usize;
            input.consume(read);
            if status == Status::StreamEnd {
                self.state = GzipState::Between;
                return Ok(written);
            }
            match (read, written) {
                (_, 1..) => return Ok(written),
                (0, 0) if at_end => return Err(input.truncated(Compression::Gzip)),
                (0, 0) => return Err(corrupt("the decoder makes no progress").into()),
                _ => {}
            }
        }
    }
}

struct Zstd {
    context: DCtx<'static>,
    in_frame: bool,
}

impl Zstd {
    fn new() -> Result<Self, Fault> {
        let mut context = DCtx::try_create()
            .ok_or(io::ErrorKind::OutOfMemory)
            .map_err(io::Error::from)?;
        context
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .map_err(zstd_fault)?;
        Ok(Self {
            context,
            in_frame: false,
        })
    }

    fn read<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> Result<usize, Fault> {
        loop {
            if !self.in_frame {
                match input.peek(4)? {
                    [] => return Ok(0),
                    start if starts_zstd_frame(start) => self.in_frame = true,
                    _ => return Err(input.trailing_garbage(Compression::Zstd)),
                }
            }
            let source = input.available()?;
            let at_end = source.is_empty();
            let mut source = InBuffer::around(source);
            let mut sink = OutBuffer::around(&mut *out);
            let hint = self
                .context
                .decompress_stream(&mut sink, &mut source)
                .map_err(zstd_fault)?;
            let (read, written) = (source.pos(), sink.pos());
            input.consume(read);
            // Documented: 0 means that a frame is complete and all of it was handed out.
            self.in_frame = hint != 0;
            match (read, written) {
                (_, 1..) => return Ok(written),
                (0, 0) if self.in_frame && at_end => return Err(input.truncated(Compression::Zstd)),
                (0, 0) if self.in_frame => {
                    let detail = "the decoder makes no progress".to_owned();
                    let compression = Compression::Zstd;
                    return Err(BadReason::CorruptCompression {
                        compression,
                        detail,
                    }
                    .into());
                }
                _ => {}
            }
        }
    }
}

/// Whether these bytes start a data frame or a skippable frame.
fn starts_zstd_frame(start: &[u8]) -> bool {
    matches!(
        start,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
    )
}

fn zstd_fault(code: usize) -> Fault {
    if is_error_kind(
        code,
        ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge,
    ) {
        return BadReason::WindowTooLarge {
            max_log: ZSTD_WINDOW_LOG,
        }
        .into();
    }
    if is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        return io::Error::from(io::ErrorKind::OutOfMemory).into();
    }
    let detail = get_error_name(code).to_owned();
    BadReason::CorruptCompression {
        compression: Compression::Zstd,
        detail,
    }
    .into()
}

/// The source with a buffer that can be looked into.
struct Input<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    total: u64,
    /// Most bytes of the source. Empty members, skippable frames and padding give no output, so the
    /// limit on that does not stop them.
    max: u64,
    ended: bool,
}

impl<R: Read> Input<R> {
    fn new(inner: R, max: u64) -> Self {
        let buffer = vec![0; INPUT_BUFFER].into_boxed_slice();
        Self {
            inner,
            buffer,
            start: 0,
            end: 0,
            total: 0,
            // What does not compress grows a little.
            max: max.saturating_add(max / 16).saturating_add(1 << 20),
            ended: false,
        }
    }

    /// What is buffered: at least `want` bytes, or all that is left.
    fn peek(&mut self, want: usize) -> Result<&[u8], Fault> {
        if self.end - self.start < want {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < want && !self.ended {
                let len = read_some(&mut self.inner, &mut self.buffer[self.end..])?;
                self.end += len;
                self.total += len as u64;
                self.ended = len == 0;
                if self.total > self.max {
                    return Err(BadReason::OutputLimit { max: self.max }.into());
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// At least one byte, except at the end.
    fn available(&mut self) -> Result<&[u8], Fault> {
        self.peek(1)
    }

    /// Reads as is, past the buffer when that is empty.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if self.start == self.end {
            if self.ended {
                return Ok(0);
            }
            let len = read_some(&mut self.inner, out)?;
            self.total += len as u64;
            self.ended = len == 0;
            return Ok(len);
        }
        let len = out.len().min(self.end - self.start);
        out[..len].copy_from_slice(&self.buffer[self.start..self.start + len]);
        self.start += len;
        Ok(len)
    }
}

impl<R> Input<R> {
    fn exchange<S>(self, inner: S) -> (Input<S>, R) {
        let Self {
            inner: old,
            buffer,
            start,
            end,
            total,
            max,
            ended,
        } = self;
        let input = Input {
            inner,
            buffer,
            start,
            end,
            total,
            max,
            ended,
        };
        (input, old)
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
    }

    fn consumed(&self) -> u64 {
        self.total - (self.end - self.start) as u64
    }

    fn truncated(&self, compression: Compression) -> Fault {
        BadReason::TruncatedCompression {
            compression,
            compressed: self.consumed(),
        }
        .into()
    }

    fn trailing_garbage(&self, compression: Compression) -> Fault {
        BadReason::TrailingGarbage {
            compression,
            compressed: self.consumed(),
        }
        .into()
    }
}

/// Reads some bytes, whatever interrupts it.
pub(super) fn read_some(reader: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(out) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A broken reader must not make us slice out of bounds.
            Ok(len) if len > out.len() => {
                return Err(io::Error::other(
                    "the reader reports more bytes than it was asked for",
                ));
            }
            result => return result,
        }
    }
}
