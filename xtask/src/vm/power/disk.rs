//! A disk with a write cache that forgets at a power cut.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::e2e::Random;

/// What a disk writes whole or not at all, at multiples of its length.
const SECTOR: u64 = 4096;

/// An image file as the platter, and everything written since the last flush in memory.
#[derive(Debug)]
pub(super) struct Disk {
    /// What a power cut leaves.
    platter: File,
    /// What a reader sees.
    seen: File,
    len: u64,
    /// Writes in the order of their completion.
    cache: Vec<Write>,
    /// Writes before the first of the cache.
    before: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Write {
    offset: u64,
    data: Vec<u8>,
    /// Complete only once it is on the platter.
    forced: bool,
}

/// What was asked of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) writes: u64,
    pub(super) flushes: u64,
    /// At cuts: writes that no flush covered, and the sectors of them.
    pub(super) uncovered: u64,
    pub(super) kept: u64,
    pub(super) dropped: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.uncovered += other.uncovered;
        self.kept += other.kept;
        self.dropped += other.dropped;
    }
}

/// Which of the writes in the cache a cut leaves.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Nothing,
    /// One sector in so many goes, by itself.
    Sectors(u64),
    /// Half of the writes, each as a whole.
    Writes,
    /// All up to somewhere, and nothing after it.
    First,
    /// Nothing up to somewhere, and all after it: the disk has written the newest first.
    Last,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("all lost"),
            Self::Sectors(count) => write!(f, "one sector in {count} lost"),
            Self::Writes => f.write_str("one write in 2 lost"),
            Self::First => f.write_str("the last lost"),
            Self::Last => f.write_str("the first lost"),
        }
    }
}

impl Pattern {
    fn draw(random: &mut Random) -> Self {
        match random.below(8) {
            0 | 1 => Self::Nothing,
            2 | 3 => Self::Sectors(2),
            4 => Self::Sectors(8),
            5 => Self::Writes,
            6 => Self::First,
            _ => Self::Last,
        }
    }
}

impl Disk {
    /// A disk that begins with what is in an image, and keeps its platter there. A second file
    /// beside it is what readers see.
    pub(super) fn open(image: &Path) -> Result<Self> {
        let beside = image.with_extension("seen");
        let mut both = File::options();
        both.read(true).write(true);
        let platter = both.open(image)?;
        let len = platter.metadata()?.len();
        ensure!(len.is_multiple_of(SECTOR), "a disk has whole sectors");
        let seen = both.create(true).truncate(true).open(beside)?;
        copy_data(&platter, &seen, len)?;
        Ok(Self {
            platter,
            seen,
            len,
            cache: Vec::new(),
            before: 0,
            counts: Counts::default(),
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.refuse_outside(offset, buffer.len())?;
        self.seen.read_exact_at(buffer, offset)
    }

    /// Takes a write into the cache; a forced one is on the platter when this is done.
    pub(super) fn write(&mut self, offset: u64, data: Vec<u8>, forced: bool) -> io::Result<()> {
        self.refuse_outside(offset, data.len())?;
        self.seen.write_all_at(&data, offset)?;
        self.counts.writes += 1;
        self.cache.push(Write {
            offset,
            data,
            forced,
        });
        Ok(())
    }

    /// How many writes are complete, ever.
    pub(super) fn completed(&self) -> u64 {
        self.before + self.cache.len() as u64
    }

    /// Makes the first so many writes durable, counted as by [`completed`](Self::completed).
    pub(super) fn flush(&mut self, completed: u64) -> io::Result<()> {
        self.counts.flushes += 1;
        let covered = completed.saturating_sub(self.before);
        let covered = usize::try_from(covered).unwrap_or(usize::MAX);
        let covered = covered.min(self.cache.len());
        for write in self.cache.drain(..covered) {
            self.before += 1;
            self.platter.write_all_at(&write.data, write.offset)?;
        }
        Ok(())
    }

    /// Takes the power away: what is in the cache is kept or lost by chance. What is left on the
    /// platter is what readers see from now on. Tells by which rule the chance went.
    pub(super) fn cut(&mut self, random: &mut Random) -> io::Result<String> {
        let pattern = Pattern::draw(random);
        let cache = std::mem::take(&mut self.cache);
        let edge = random.below(cache.len() as u64 + 1);
        for (number, write) in (0..).zip(&cache) {
            let whole = random.one_in(2);
            let torn = number == edge && write.data.len() as u64 > SECTOR;
            self.counts.uncovered += u64::from(!write.forced);
            for (offset, data) in sectors(write) {
                let kept = write.forced
                    || match pattern {
                        Pattern::Nothing => false,
                        Pattern::Sectors(count) => !random.one_in(count),
                        Pattern::Writes => whole,
                        Pattern::First | Pattern::Last if torn => random.one_in(2),
                        Pattern::First => number < edge,
                        Pattern::Last => number >= edge,
                    };
                match kept {
                    true => self.platter.write_all_at(data, offset)?,
                    false => self.counts.dropped += 1,
                }
                self.counts.kept += u64::from(kept && !write.forced);
            }
        }
        self.before += cache.len() as u64;
        for write in &cache {
            let mut left = vec![0; write.data.len()];
            self.platter.read_exact_at(&mut left, write.offset)?;
            self.seen.write_all_at(&left, write.offset)?;
        }
        Ok(pattern.to_string())
    }

    fn refuse_outside(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Copies a file and leaves its holes.
fn copy_data(from: &File, to: &File, len: u64) -> Result<()> {
    to.set_len(len)?;
    let mut end = 0;
    while end < len {
        let start = match seek(from, SeekFrom::Data(end)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        end = seek(from, SeekFrom::Hole(start))?;
        let mut data = vec![0; usize::try_from(end - start)?];
        from.read_exact_at(&mut data, start)?;
        to.write_all_at(&data, start)?;
    }
    Ok(())
}

/// The parts of a write that the disk writes by themselves.
fn sectors(write: &Write) -> impl Iterator<Item = (u64, &[u8])> {
    let (mut offset, mut rest) = (write.offset, &write.data[..]);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let to_edge = SECTOR - offset % SECTOR;
        let len = usize::try_from(to_edge).unwrap_or(usize::MAX);
        let (part, left) = rest.split_at(len.min(rest.len()));
        let at = offset;
        (offset, rest) = (offset + part.len() as u64, left);
        Some((at, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(dir: &Path) -> Result<Disk> {
        let image = dir.join("image");
        File::create(&image)?.set_len(16 * SECTOR)?;
        Disk::open(&image)
    }

    fn first_bytes(disk: &Disk) -> Result<Vec<u8>> {
        (0..16)
            .map(|sector| {
                let mut byte = [0];
                disk.read(sector * SECTOR, &mut byte)?;
                Ok(byte[0])
            })
            .collect()
    }

    fn whole(byte: u8, sectors: u64) -> Vec<u8> {
        vec![byte; usize::try_from(sectors * SECTOR).unwrap_or(0)]
    }

    #[test]
    fn a_flush_covers_the_writes_that_were_complete_before_it_and_no_others() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for seed in 0..50 {
            let mut disk = disk(dir.path())?;
            disk.write(0, whole(1, 4), false)?;
            let completed = disk.completed();
            disk.write(2 * SECTOR, whole(2, 8), false)?;
            disk.flush(completed)?;
            assert_eq!(first_bytes(&disk)?[..10], [1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
            disk.cut(&mut Random::new(seed))?;
            let left = first_bytes(&disk)?;
            assert_eq!(left[..2], [1, 1]);
            assert!(left[2..4].iter().all(|byte| [1, 2].contains(byte)));
            assert!(left[4..10].iter().all(|byte| [0, 2].contains(byte)));
            assert_eq!(left[10..], [0; 6]);
        }
        Ok(())
    }

    #[test]
    fn a_forced_write_stays_whatever_was_written_there_before_it() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for seed in 0..50 {
            let mut disk = disk(dir.path())?;
            disk.write(0, whole(1, 2), false)?;
            disk.write(0, whole(2, 1), true)?;
            if seed % 2 == 0 {
                disk.flush(1)?;
            }
            disk.cut(&mut Random::new(seed))?;
            assert_eq!(first_bytes(&disk)?[0], 2);
        }
        Ok(())
    }

    #[test]
    fn the_same_seed_leaves_the_same_and_seeds_differ() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let left = |seed| -> Result<Vec<u8>> {
            let mut disk = disk(dir.path())?;
            for byte in 0..16 {
                disk.write(u64::from(byte) * SECTOR, whole(byte + 1, 1), false)?;
            }
            disk.cut(&mut Random::new(seed))?;
            first_bytes(&disk)
        };
        let all: Vec<Vec<u8>> = (0..40).map(left).collect::<Result<_>>()?;
        assert_eq!(left(7)?, all[7]);
        let whole: Vec<u8> = (1..=16).collect();
        // Some cuts leave nothing, and some tear.
        assert!(all.contains(&vec![0; 16]));
        assert!(
            all.iter()
                .any(|left| *left != whole && left.iter().any(|byte| *byte > 0))
        );
        Ok(())
    }

    #[test]
    fn a_write_is_torn_at_the_disks_own_sectors() {
        let write = Write {
            offset: SECTOR - 512,
            data: whole(1, 2),
            forced: false,
        };
        let parts: Vec<(u64, usize)> = sectors(&write).map(|(at, data)| (at, data.len())).collect();
        assert_eq!(parts, [(3584, 512), (4096, 4096), (8192, 3584)]);
    }

    #[test]
    fn what_lies_outside_is_refused() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut disk = disk(dir.path())?;
        assert!(disk.write(15 * SECTOR, whole(1, 2), false).is_err());
        assert!(disk.read(u64::MAX, &mut [0]).is_err());
        Ok(())
    }
}
