//! The uncompressed stream: counted, hashed and buffered.

use std::io::Read;
use std::sync::Arc;

use super::Fault;
use super::ahead::Ahead;
use super::buffers::{Buffer, Buffers, Piece};
use super::decode::{Compression, Decoder};
use super::diff_id::DiffId;
use super::digest::Digester;
use super::header::BLOCK;
use super::limits::ReadLimits;

/// What decodes to less is not worth a thread.
const SHORT: u64 = 1 << 20;

pub(super) struct Stream<R> {
    source: Source<R>,
    buffers: Arc<Buffers>,
    digester: Digester,
    /// Decoded, hashed, and not consumed yet.
    piece: Option<Piece>,
    offset: u64,
}

enum Source<R> {
    Here(Box<Decoder<R>>),
    Ahead(Ahead<R>),
    /// Only while it becomes the other.
    Moving,
}

/// What is at the place where a header may be.
pub(super) enum Block<'a> {
    Full(&'a [u8; BLOCK]),
    Partial(&'a [u8]),
    End,
}

impl<R: Read> Stream<R> {
    pub(super) fn new(reader: R, limits: ReadLimits) -> Self {
        Self {
            source: Source::Here(Box::new(Decoder::new(reader, limits))),
            buffers: Arc::default(),
            digester: Digester::default(),
            piece: None,
            offset: 0,
        }
    }

    /// The next block, not consumed.
    pub(super) fn block(&mut self) -> Result<Block<'_>, Fault> {
        self.fill(BLOCK)?;
        let buffered = self.buffered();
        Ok(match buffered.first_chunk() {
            Some(block) => Block::Full(block),
            None if buffered.is_empty() => Block::End,
            None => Block::Partial(buffered),
        })
    }

    /// Consumes bytes that [`block`](Self::block) showed.
    pub(super) fn consume(&mut self, len: usize) {
        if let Some(piece) = &mut self.piece {
            piece.skip(len);
        }
        self.offset += len as u64;
    }

    /// Reads some bytes; 0 only at the end or for an empty buffer.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let available = self.fill(1)?;
        let len = out.len().min(available);
        out[..len].copy_from_slice(&self.buffered()[..len]);
        self.consume(len);
        Ok(len)
    }

    /// Takes some bytes, at most `max`, without copying them; none only at the end.
    pub(super) fn take(&mut self, max: u64) -> Result<Option<Piece>, Fault> {
        let available = self.fill(1)?;
        let len = usize::try_from(max).map_or(available, |max| max.min(available));
        let Some(piece) = self.piece.as_mut().filter(|_| len > 0) else {
            return Ok(None);
        };
        self.offset += len as u64;
        Ok(Some(piece.split(len)))
    }

    /// Fills `out`, and returns how much of it when the archive ends before.
    pub(super) fn read_full(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        let mut found = 0;
        while found < out.len() {
            match self.read(&mut out[found..])? {
                0 => break,
                len => found += len,
            }
        }
        Ok(found)
    }

    /// Skips `len` bytes and returns how many of them there were.
    pub(super) fn skip(&mut self, len: u64) -> Result<u64, Fault> {
        let mut left = len;
        while left > 0 {
            let available = self.fill(1)?;
            if available == 0 {
                break;
            }
            let step = left.min(available as u64);
            self.consume(step as usize);
            left -= step;
        }
        Ok(len - left)
    }

    /// Reads to the end and returns where the first byte is that is not zero.
    pub(super) fn drain(&mut self) -> Result<Option<u64>, Fault> {
        let mut first = None;
        loop {
            let available = self.fill(1)?;
            if available == 0 {
                return Ok(first);
            }
            if first.is_none() {
                let place = self.buffered().iter().position(|byte| *byte != 0);
                first = place.map(|place| self.offset + place as u64);
            }
            self.consume(available);
        }
    }

    /// Buffers at least `want` bytes, at most a block, or all that is left, and returns how many
    /// are buffered.
    fn fill(&mut self, want: usize) -> Result<usize, Fault> {
        while self.buffered().len() < want {
            // Its buffer may be needed.
            self.piece.take_if(|piece| piece.is_empty());
            let Some((buffer, len)) = self.next()? else {
                break;
            };
            let (piece, known) = buffer.filled(self.buffered(), len);
            self.digester.update(piece.after(known));
            self.piece = Some(piece);
        }
        Ok(self.buffered().len())
    }

    fn next(&mut self) -> Result<Option<(Buffer, usize)>, Fault> {
        if let Source::Here(decoder) = &self.source
            && decoder.output() >= SHORT
            && let Some(compression) = decoder.compression()
            && compression != Compression::None
            && let Source::Here(decoder) = std::mem::replace(&mut self.source, Source::Moving)
        {
            self.source = match Ahead::start(decoder, compression, &self.buffers) {
                Ok(ahead) => Source::Ahead(ahead),
                Err(decoder) => Source::Here(decoder),
            };
        }
        match &mut self.source {
            Source::Here(decoder) => {
                let mut buffer = self.buffers.take();
                let len = decoder.read(buffer.room())?;
                Ok((len > 0).then_some((buffer, len)))
            }
            Source::Ahead(ahead) => ahead.next(),
            Source::Moving => Ok(None),
        }
    }
}

impl<R> Stream<R> {
    fn buffered(&self) -> &[u8] {
        self.piece.as_deref().unwrap_or_default()
    }

    /// Bytes consumed so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The compression, once something was read.
    pub(super) fn compression(&self) -> Option<Compression> {
        match &self.source {
            Source::Here(decoder) => decoder.compression(),
            Source::Ahead(ahead) => Some(ahead.compression()),
            Source::Moving => None,
        }
    }

    /// Bytes of the source that were decoded.
    pub(super) fn compressed_bytes(&self) -> u64 {
        match &self.source {
            Source::Here(decoder) => decoder.compressed_bytes(),
            Source::Ahead(ahead) => ahead.compressed_bytes(),
            Source::Moving => 0,
        }
    }

    /// The digest of everything that was decoded.
    pub(super) fn diff_id(self) -> DiffId {
        self.digester.finish()
    }
}
