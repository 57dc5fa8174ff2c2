//! The uncompressed stream: counted, hashed and buffered.

use std::io::Read;

use sha2::{Digest as _, Sha256};

use super::Fault;
use super::decode::Decoder;
use super::diff_id::DiffId;
use super::header::BLOCK;
use super::limits::ReadLimits;

/// Bytes that are decoded and hashed at once: digests and decoders are slow in small steps.
const BUFFER: usize = 128 * 1024;
/// From this length on a read goes into the caller's buffer directly.
const DIRECT: usize = 64 * 1024;

pub(super) struct Stream<R> {
    decoder: Decoder<R>,
    hasher: Sha256,
    // Decoded and hashed; start..end is not consumed yet.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
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
            decoder: Decoder::new(reader, limits),
            hasher: Sha256::new(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
        }
    }

    /// The next block, not consumed.
    pub(super) fn block(&mut self) -> Result<Block<'_>, Fault> {
        self.fill(BLOCK)?;
        let buffered = &self.buffer[self.start..self.end];
        Ok(match buffered.first_chunk() {
            Some(block) => Block::Full(block),
            None if buffered.is_empty() => Block::End,
            None => Block::Partial(buffered),
        })
    }

    /// Consumes bytes that [`block`](Self::block) showed.
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        self.offset += len as u64;
    }

    /// Reads some bytes; 0 only at the end or for an empty buffer.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if self.start == self.end {
            if out.len() >= DIRECT {
                let len = self.decoder.read(out)?;
                self.hasher.update(&out[..len]);
                self.offset += len as u64;
                return Ok(len);
            }
            self.fill(1)?;
        }
        let len = out.len().min(self.end - self.start);
        out[..len].copy_from_slice(&self.buffer[self.start..self.start + len]);
        self.consume(len);
        Ok(len)
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
            if self.fill(1)? == 0 {
                break;
            }
            let step = left.min((self.end - self.start) as u64);
            self.consume(step as usize);
            left -= step;
        }
        Ok(len - left)
    }

    /// Reads to the end and returns where the first byte is that is not zero.
    pub(super) fn drain(&mut self) -> Result<Option<u64>, Fault> {
        let mut first = None;
        while self.fill(1)? > 0 {
            if first.is_none() {
                let rest = &self.buffer[self.start..self.end];
                let place = rest.iter().position(|byte| *byte != 0);
                first = place.map(|place| self.offset + place as u64);
            }
            self.consume(self.end - self.start);
        }
        Ok(first)
    }

    /// Buffers at least `want` bytes, or all that is left, and returns how many are buffered.
    fn fill(&mut self, want: usize) -> Result<usize, Fault> {
        if self.end - self.start < want {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            while self.end < want {
                let len = self.decoder.read(&mut self.buffer[self.end..])?;
                if len == 0 {
                    break;
                }
                self.hasher.update(&self.buffer[self.end..self.end + len]);
                self.end += len;
            }
        }
        Ok(self.end - self.start)
    }
}

impl<R> Stream<R> {
    /// Bytes consumed so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn decoder(&self) -> &Decoder<R> {
        &self.decoder
    }

    /// The digest of everything that was decoded.
    pub(super) fn diff_id(self) -> DiffId {
        DiffId::from_bytes(self.hasher.finalize().into())
    }
}
