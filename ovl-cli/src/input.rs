//! Archives that come in, with a progress bar for those that take long.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ovl_diff::Progress;

use crate::fail::Failure;

/// An archive and, where it is known, its length in bytes.
pub(crate) struct Input {
    reader: Box<dyn Read>,
    len: Option<u64>,
}

impl Input {
    /// Opens a file, or standard input for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self {
                reader: Box::new(io::stdin().lock()),
                len: None,
            });
        }
        let failed = |error| Failure::io("open the archive", path, &error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self {
            reader: Box::new(file),
            len,
        })
    }

    /// Gives the archive to `work` together with what shows its progress.
    pub(crate) fn with_progress<T>(
        self,
        work: impl FnOnce(Box<dyn Read>, &mut dyn FnMut(Progress)) -> T,
    ) -> T {
        let mut bar = Bar {
            start: Instant::now(),
            len: self.len,
            bar: None,
        };
        let result = work(self.reader, &mut |progress| bar.show(progress));
        if let Some(bar) = bar.bar {
            bar.finish_and_clear();
        }
        result
    }
}

struct Bar {
    start: Instant,
    len: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Shows nothing for the first second, nor where nobody looks.
    fn show(&mut self, progress: Progress) {
        if self.bar.is_none() {
            // The clock is asked now and then only.
            let early = !progress.entries.is_multiple_of(64)
                || self.start.elapsed() < Duration::from_secs(1);
            if early || !io::stderr().is_terminal() {
                return;
            }
        }
        let bar = self.bar.get_or_insert_with(|| new_bar(self.len));
        bar.set_position(progress.input_bytes);
        bar.set_message(format!("{} entries", progress.entries));
    }
}

fn new_bar(len: Option<u64>) -> ProgressBar {
    let (bar, template) = match len {
        Some(len) => (
            ProgressBar::new(len),
            "{wide_bar} {bytes}/{total_bytes} {msg} {eta}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes} {msg} {elapsed}",
        ),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
