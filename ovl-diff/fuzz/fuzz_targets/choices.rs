//! Choices by the fuzzer's bytes.

/// What is left of them; after the end every choice is the first.
pub(crate) struct Choices<'a>(pub(crate) &'a [u8]);

impl Choices<'_> {
    pub(crate) fn more(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    pub(crate) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::from(self.byte()) % values.len()]
    }

    fn place(&mut self, len: usize) -> usize {
        usize::from(u16::from_le_bytes([self.byte(), self.byte()])) % len
    }

    /// Changes some bytes, as long as there are choices.
    pub(crate) fn change(&mut self, bytes: &mut Vec<u8>) {
        while self.more() && !bytes.is_empty() {
            let len = bytes.len();
            match self.byte() % 6 {
                0 | 1 => {
                    let at = self.place(len);
                    bytes[at] = self.byte();
                }
                2 => {
                    let at = self.place(len);
                    bytes[at] ^= 1 << (self.byte() % 8);
                }
                3 => {
                    let (from, to) = (self.place(len) / 512 * 512, self.place(len) / 512 * 512);
                    let count = 512.min(len - from).min(len - to);
                    bytes.copy_within(from..from + count, to);
                }
                4 => {
                    let at = self.place(len);
                    let end = len.min(at + usize::from(self.byte()));
                    bytes.drain(at..end);
                }
                _ => {
                    let (at, byte) = (self.place(len), self.byte());
                    bytes.insert(at, byte);
                }
            }
        }
    }
}
