//! Where an archive is written to, on a thread of its own once it is known to be long.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Builder};

/// Bytes that are collected before they are written: a small file takes no call of its own.
pub(crate) const BUFFER_LEN: usize = 256 * 1024;
/// As many buffers are not worth a thread.
const FEW: usize = 4;
/// Buffers of one archive: one that is filled, one that is written, and those in between.
const BUFFERS: usize = 4;

/// An output that takes whole buffers.
pub(crate) struct Output<'s, W> {
    /// `None` while the thread has it.
    direct: Option<W>,
    thread: Option<Thread<W>>,
    start: &'s dyn Fn() -> Option<Thread<W>>,
    /// Buffers that were written without a thread.
    few: usize,
    /// Buffers that there are.
    made: usize,
}

struct Thread<W> {
    output: SyncSender<W>,
    full: SyncSender<(Box<[u8]>, usize)>,
    empty: Receiver<Box<[u8]>>,
    /// The output again, and how the writing has ended.
    done: Receiver<(W, io::Result<()>)>,
}

/// Calls `body` with an output that may be written by another thread, which ends before it returns.
pub(crate) fn with_output<W: Write + Send, T>(
    output: W,
    body: impl FnOnce(Output<'_, W>) -> T,
) -> T {
    thread::scope(|scope| {
        let start = || {
            let (output, given) = sync_channel::<W>(1);
            let (full, to_write) = sync_channel(BUFFERS);
            let (written, empty) = sync_channel(BUFFERS);
            let (ended, done) = sync_channel(1);
            let run = move || {
                if let Ok(mut output) = given.recv() {
                    let result = write(&mut output, &to_write, &written);
                    drop(to_write);
                    // Nobody asks after a panic.
                    let _ = ended.send((output, result));
                }
            };
            let thread = Builder::new().name("ovl-output".to_owned());
            thread.spawn_scoped(scope, run).ok()?;
            Some(Thread {
                output,
                full,
                empty,
                done,
            })
        };
        body(Output {
            direct: Some(output),
            thread: None,
            start: &start,
            few: 0,
            made: 1,
        })
    })
}

impl<W: Write> Output<'_, W> {
    /// Writes the first `len` bytes of a buffer, some time before [`flush`](Self::flush) returns,
    /// and gives another one for it.
    pub(crate) fn put(&mut self, buffer: &mut Box<[u8]>, len: usize) -> io::Result<()> {
        if self.few == FEW && self.thread.is_none() {
            self.thread = (self.start)();
            if let Some(thread) = &self.thread
                && let Some(output) = self.direct.take()
            {
                // It waits for nothing else.
                let _ = thread.output.send(output);
            }
        }
        let Some(thread) = &self.thread else {
            self.few = (self.few + 1).min(FEW);
            let output = self.direct.as_mut().ok_or_else(stopped)?;
            return output.write_all(&buffer[..len]);
        };
        let next = match self.made < BUFFERS {
            true => {
                self.made += 1;
                Ok(vec![0; BUFFER_LEN].into_boxed_slice())
            }
            false => thread.empty.recv(),
        };
        let Ok(next) = next else {
            return self.settle().and_then(|()| Err(stopped()));
        };
        let full = std::mem::replace(buffer, next);
        match thread.full.send((full, len)) {
            Ok(()) => Ok(()),
            Err(_) => self.settle().and_then(|()| Err(stopped())),
        }
    }

    /// Returns when all is written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.settle()?;
        self.direct.as_mut().ok_or_else(stopped)?.flush()
    }

    /// Ends the thread and takes the output back.
    fn settle(&mut self) -> io::Result<()> {
        let Some(Thread { full, done, .. }) = self.thread.take() else {
            return Ok(());
        };
        drop(full);
        let (output, result) = done.recv().map_err(|_| stopped())?;
        // What comes after, if anything, is little.
        (self.direct, self.few, self.made) = (Some(output), 0, 1);
        result
    }
}

fn write<W: Write>(
    output: &mut W,
    full: &Receiver<(Box<[u8]>, usize)>,
    empty: &SyncSender<Box<[u8]>>,
) -> io::Result<()> {
    while let Ok((buffer, len)) = full.recv() {
        output.write_all(&buffer[..len])?;
        // There is room for all of them.
        let _ = empty.try_send(buffer);
    }
    Ok(())
}

fn stopped() -> io::Error {
    io::Error::other("the output has stopped")
}
