/// How much an archive may ask for. Every limit can be lifted with [`u64::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadLimits {
    /// Most entries. By default 10 million, about ten times the largest images in use.
    pub max_entries: u64,
    /// Most uncompressed bytes, headers included, and with them the holes of sparse files, as if
    /// they were zeros. By default 1 TiB. About as many compressed ones may be read for them.
    pub max_output_bytes: u64,
    /// Most uncompressed bytes for each compressed one. By default 500: only long runs of one byte
    /// exceed it, which gzip makes 1032 times smaller and zstd more.
    pub max_ratio: u64,
    /// Uncompressed bytes from which on `max_ratio` counts. By default 1 GiB, so that a file of
    /// zeros of usual size passes.
    pub ratio_floor_bytes: u64,
    /// Most bytes of extension headers (PAX, long names) for one entry, which are held in memory.
    /// By default 1 MiB, as in Go's `archive/tar`.
    pub max_extension_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            max_entries: 10_000_000,
            max_output_bytes: 1 << 40,
            max_ratio: 500,
            ratio_floor_bytes: 1 << 30,
            max_extension_bytes: 1 << 20,
        }
    }
}
