//! The contents of a file: pages, so that holes stay holes.

use std::collections::BTreeMap;
use std::ops::Range;

pub(super) const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
}

impl Data {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Allocated blocks of 512 bytes.
    pub(super) fn blocks(&self) -> u64 {
        self.pages.len() as u64 * (PAGE / 512)
    }

    /// How many bytes can be written here where there is room for so many more pages, if those that
    /// are next to each other are made at once, up to a number of them.
    pub(super) fn fitting(&self, offset: u64, len: usize, at_once: u64, room: u64) -> usize {
        let (mut left, range) = (room, pages(offset, len));
        let mut page = range.start;
        while page < range.end {
            let ahead = page..range.end.min(page + at_once);
            let there = self.pages.range(ahead.clone()).next();
            let end = there.map_or(ahead.end, |(&there, _)| there);
            if end - page > left {
                let fits = (page * PAGE).saturating_sub(offset);
                return usize::try_from(fits).unwrap_or(len);
            }
            left -= end - page;
            // The page that is there takes what is written into it.
            page = end.max(page + 1);
        }
        len
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let mut done = 0;
        while done < len {
            let (page, at) = place(offset + done as u64);
            let step = (PAGE_LEN - at).min(len - done);
            match self.pages.get(&page) {
                Some(bytes) => buffer[done..done + step].copy_from_slice(&bytes[at..at + step]),
                None => buffer[done..done + step].fill(0),
            }
            done += step;
        }
        len
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut done = 0;
        while done < bytes.len() {
            let (page, at) = place(offset + done as u64);
            let len = (PAGE_LEN - at).min(bytes.len() - done);
            let target = self.pages.entry(page).or_insert_with(|| vec![0; PAGE_LEN]);
            target[at..at + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        let (last, at) = place(len);
        self.pages
            .retain(|page, _| *page < last || (*page == last && at > 0));
        if let Some(bytes) = self.pages.get_mut(&last) {
            bytes[at..].fill(0);
        }
        self.len = len;
    }

    /// Leaves the first half, and zeros.
    pub(super) fn tear(&mut self) {
        let len = self.len;
        self.set_len(len / 2);
        self.len = len;
    }

    pub(super) fn next_extent(&self, offset: u64) -> Option<Range<u64>> {
        if offset >= self.len {
            return None;
        }
        let (&first, _) = self.pages.range(place(offset).0..).next()?;
        let mut end = first + 1;
        while self.pages.contains_key(&end) {
            end += 1;
        }
        Some((first * PAGE).max(offset)..(end * PAGE).min(self.len))
    }
}

fn place(offset: u64) -> (u64, usize) {
    (offset / PAGE, usize::try_from(offset % PAGE).unwrap_or(0))
}

fn pages(offset: u64, len: usize) -> Range<u64> {
    match len {
        0 => 0..0,
        len => offset / PAGE..(offset + len as u64 - 1) / PAGE + 1,
    }
}
