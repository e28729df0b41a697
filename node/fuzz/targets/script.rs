//! Reads a fuzzer's bytes from front to back as the choices of a script: which step, which number,
//! which string.
//!
//! `arbitrary` does the same with less control: it takes lengths from the end of the input and may
//! change its mind with a release, which would change the meaning of every file of the corpus. Here
//! a seed can be written by hand, a mutation changes one choice, and what stood in the corpus a
//! year ago still means the same.

/// What is left of the script. Where it ends, every choice is 0.
pub(crate) struct Script<'a> {
    rest: &'a [u8],
}

/// Numbers that programs trip over.
const EDGES: [u64; 12] = [
    0,
    1,
    u64::MAX,
    u64::MAX - 1,
    1 << 56,
    (1 << 56) + 1,
    (1 << 56) - 1,
    1 << 63,
    1 << 32,
    u32::MAX as u64,
    1 << 31,
    4096,
];

impl<'a> Script<'a> {
    /// The whole script.
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// Whether it has ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub(crate) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// A choice among `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::from(self.u8()) % n
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number: mostly close to `base`, or small, sometimes an edge, rarely anything. One byte,
    /// nine for "anything".
    pub(crate) fn number(&mut self, base: u64) -> u64 {
        match self.u8() {
            // 0 is the base itself, so that a script of zeros is an honest one.
            step @ 0..=31 => base.wrapping_add(u64::from(step)),
            step @ 32..=63 => base.wrapping_sub(u64::from(step - 31)),
            small @ 64..=127 => u64::from(small - 64),
            255 => u64::from_be_bytes(std::array::from_fn(|_| self.u8())),
            edge => EDGES[usize::from(edge) % EDGES.len()],
        }
    }

    /// A short string: its length in one byte, then itself.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.u8()).min(self.rest.len());
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        bytes
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
