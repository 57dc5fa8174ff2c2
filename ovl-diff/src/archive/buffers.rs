//! Buffers that are shared by threads, a bounded number of them, and used again.

use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::header::BLOCK;

/// Bytes that one buffer takes of a stream.
const LEN: usize = 128 * 1024;
/// Before them, for what is left of the buffer before: less than a block.
const HEADROOM: usize = BLOCK;
/// Buffers of one archive: 8 MiB. Reader, decoder and digest need about 20, and whoever holds
/// pieces of them may hold [`HOLDABLE`] and still ask for more.
const MAX: usize = 64;
/// Buffers that a thread may hold pieces of while it reads on.
pub(crate) const HOLDABLE: usize = 40;

/// The buffers of one archive.
#[derive(Default)]
pub(super) struct Buffers {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    free: Vec<Box<[u8]>>,
    made: usize,
    /// Threads that wait for one: waking nobody is a system call too.
    waiting: usize,
}

impl Buffers {
    /// A buffer that nobody else has; waits for one when all are in use.
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        let mut state = self.state();
        let bytes = loop {
            if let Some(bytes) = state.free.pop() {
                break bytes;
            }
            if state.made < MAX {
                state.made += 1;
                break vec![0; HEADROOM + LEN].into_boxed_slice();
            }
            state.waiting += 1;
            let woken = self.returned.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        };
        let home = Arc::clone(self);
        Buffer { bytes, home }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them; goes back when it is dropped.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    home: Arc<Buffers>,
}

impl Buffer {
    /// Where to read into.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADROOM..]
    }

    /// The first `len` bytes of the room, with `rest` in front of them, and how far that goes.
    pub(super) fn filled(mut self, rest: &[u8], len: usize) -> (Piece, usize) {
        let start = HEADROOM - rest.len();
        self.bytes[start..HEADROOM].copy_from_slice(rest);
        let range = start..HEADROOM + len;
        let buffer = Arc::new(self);
        (Piece { buffer, range }, rest.len())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.home.state();
        state.free.push(bytes);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.home.returned.notify_one();
        }
    }
}

/// A part of a buffer, which stays as it is until all parts are dropped.
#[derive(Clone)]
pub(crate) struct Piece {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Piece {
    /// The part from `start` on, within this one.
    pub(super) fn after(&self, start: usize) -> Self {
        let mut rest = self.clone();
        rest.skip(start);
        rest
    }

    /// Takes the first bytes off.
    pub(super) fn split(&mut self, len: usize) -> Self {
        let mut first = self.clone();
        first.range.end = (first.range.start + len).min(self.range.end);
        self.range.start = first.range.end;
        first
    }

    /// Drops the first bytes.
    pub(super) fn skip(&mut self, len: usize) {
        self.range.start = (self.range.start + len).min(self.range.end);
    }
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer.bytes[self.range.clone()]
    }
}
