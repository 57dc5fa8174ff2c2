//! The digest of a stream, on a thread of its own once the stream is known to be long.

use std::panic::resume_unwind;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use sha2::{Digest as _, Sha256};

use super::buffers::Piece;
use super::diff_id::DiffId;

/// A shorter stream is not worth a thread.
const SHORT: u64 = 1 << 20;
/// Pieces that wait for it.
const AHEAD: usize = 8;

#[derive(Default)]
pub(super) struct Digester {
    hasher: Sha256,
    hashed: u64,
    /// `None` where there is no thread, or while it is ended.
    pieces: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<Sha256>>,
    /// No thread could be had.
    alone: bool,
}

impl Digester {
    pub(super) fn update(&mut self, piece: Piece) {
        if let Some(pieces) = &self.pieces {
            // It can only have panicked, which shows in the end.
            let _ = pieces.send(piece);
            return;
        }
        self.hasher.update(&*piece);
        self.hashed += piece.len() as u64;
        if self.hashed >= SHORT && !self.alone {
            self.start();
        }
    }

    fn start(&mut self) {
        let (sender, receiver) = sync_channel::<Piece>(AHEAD);
        let mut hasher = self.hasher.clone();
        let run = move || {
            for piece in receiver {
                hasher.update(&*piece);
            }
            hasher
        };
        match Builder::new().name("ovl-digest".to_owned()).spawn(run) {
            Ok(thread) => (self.pieces, self.thread) = (Some(sender), Some(thread)),
            Err(_) => self.alone = true,
        }
    }

    pub(super) fn finish(mut self) -> DiffId {
        self.pieces = None;
        let hasher = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(hasher)) => hasher,
            Some(Err(panic)) => resume_unwind(panic),
            None => std::mem::take(&mut self.hasher),
        };
        DiffId::from_bytes(hasher.finalize().into())
    }
}

impl Drop for Digester {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            // Nobody asks for the digest any more.
            let _ = thread.join();
        }
    }
}
