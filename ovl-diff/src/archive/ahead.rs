//! Decoding on a thread of its own, so that it overlaps with what is done with its output.
//!
//! The source is read by the thread that asks for output, and only once the decoder has used up all
//! that was read before: a source that has nothing to say keeps nothing back, and neither thread
//! ever waits for it without need.

use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::Fault;
use super::buffers::{Buffer, Buffers};
use super::decode::{Compression, Decoder, read_some};

/// Compressed bytes that the decoder gets at once, if the source gives as many.
const FEED: usize = 1 << 20;
/// Buffers that are decoded before anybody asks.
const AHEAD: usize = 4;

/// A decoder that runs ahead of its reader.
pub(super) struct Ahead<R> {
    input: R,
    compression: Compression,
    consumed: u64,
    ended: bool,
    /// `None` only while it is dropped, which ends the thread.
    channels: Option<Channels>,
    thread: Option<JoinHandle<()>>,
}

struct Channels {
    output: Receiver<Message>,
    feed: SyncSender<Vec<u8>>,
}

/// What the thread says.
enum Message {
    /// All that it was given is used up. Brings back the memory of it.
    Hungry(Vec<u8>),
    Data {
        buffer: Buffer,
        len: usize,
        /// Compressed bytes used so far.
        consumed: u64,
    },
    End {
        consumed: u64,
    },
    Failed(Fault),
}

/// The source of the decoder on the thread.
pub(super) struct Fed {
    output: SyncSender<Message>,
    feed: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    taken: usize,
}

impl<R: Read> Ahead<R> {
    /// Moves a decoder that knows its compression to a thread, or gives it back where there is
    /// none to be had.
    pub(super) fn start(
        decoder: Box<Decoder<R>>,
        compression: Compression,
        buffers: &Arc<Buffers>,
    ) -> Result<Self, Box<Decoder<R>>> {
        let (to_reader, output) = sync_channel(AHEAD);
        let (feed, from_reader) = sync_channel(1);
        let (start, started) = sync_channel::<Decoder<Fed>>(1);
        let (buffers, sender) = (Arc::clone(buffers), to_reader.clone());
        let run = move || {
            if let Ok(decoder) = started.recv() {
                decode(decoder, &buffers, &sender);
            }
        };
        let Ok(thread) = Builder::new().name("ovl-decode".to_owned()).spawn(run) else {
            return Err(decoder);
        };
        let consumed = decoder.compressed_bytes();
        let fed = Fed {
            output: to_reader,
            feed: from_reader,
            bytes: Vec::new(),
            taken: 0,
        };
        let (decoder, input) = decoder.exchange_source(fed);
        // It waits for nothing else.
        let _ = start.send(decoder);
        Ok(Self {
            input,
            compression,
            consumed,
            ended: false,
            channels: Some(Channels { output, feed }),
            thread: Some(thread),
        })
    }

    /// The next buffer and how much of it is filled; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(Buffer, usize)>, Fault> {
        while !self.ended
            && let Some(channels) = &self.channels
        {
            match channels.output.recv() {
                Ok(Message::Data {
                    buffer,
                    len,
                    consumed,
                }) => {
                    self.consumed = consumed;
                    return Ok(Some((buffer, len)));
                }
                Ok(Message::Hungry(mut bytes)) => {
                    bytes.resize(FEED, 0);
                    let len = read_some(&mut self.input, &mut bytes)?;
                    bytes.truncate(len);
                    // It can only have panicked, which shows next.
                    let _ = channels.feed.send(bytes);
                }
                Ok(Message::End { consumed }) => {
                    (self.consumed, self.ended) = (consumed, true);
                }
                Ok(Message::Failed(fault)) => return Err(fault),
                Err(_) => {
                    self.channels = None;
                    if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                        resume_unwind(panic);
                    }
                    return Err(io::Error::other("the decoder has stopped").into());
                }
            }
        }
        Ok(None)
    }
}

impl<R> Ahead<R> {
    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Bytes of the source that what was handed out was decoded from.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.consumed
    }
}

impl<R> Drop for Ahead<R> {
    fn drop(&mut self) {
        self.channels = None;
        if let Some(thread) = self.thread.take() {
            // Nobody asks for what it decodes any more, or whether it could.
            let _ = thread.join();
        }
    }
}

fn decode(mut decoder: Decoder<Fed>, buffers: &Arc<Buffers>, output: &SyncSender<Message>) {
    loop {
        let mut buffer = buffers.take();
        let read = decoder.read(buffer.room());
        let consumed = decoder.compressed_bytes();
        let message = match read {
            Ok(0) => Message::End { consumed },
            Ok(len) => Message::Data {
                buffer,
                len,
                consumed,
            },
            Err(fault) => Message::Failed(fault),
        };
        let last = !matches!(message, Message::Data { .. });
        // Nobody listens when the reader was dropped.
        if output.send(message).is_err() || last {
            return;
        }
    }
}

impl Read for Fed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.bytes.len() {
            let dropped = || io::Error::other("the reader was dropped");
            let bytes = std::mem::take(&mut self.bytes);
            let hungry = self.output.send(Message::Hungry(bytes));
            hungry.map_err(|_| dropped())?;
            self.bytes = self.feed.recv().map_err(|_| dropped())?;
            self.taken = 0;
        }
        let len = out.len().min(self.bytes.len() - self.taken);
        out[..len].copy_from_slice(&self.bytes[self.taken..self.taken + len]);
        self.taken += len;
        Ok(len)
    }
}
