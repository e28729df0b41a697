//! The numbers that a seed gives: everything that a simulation leaves to chance is drawn here, in one order, so that the seed
//! repeats all of it.

/// A stream of numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed);
        // Neighbouring seeds begin with neighbouring states; the first numbers are thrown away with that likeness.
        dice.next();
        dice.next();
        dice
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From `low` up to, and without, `high`.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// In so many of a hundred cases.
    pub(crate) fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Around `mean`: mostly less, sometimes several times as much (a geometric spread, up to eight times).
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        let doublings = self.next().trailing_zeros().min(4);
        (mean << doublings) / 4 + self.below(mean / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_stream_and_neighbours_differ() {
        let numbers = |seed| {
            let mut dice = Dice::new(seed);
            (0..100).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), numbers(1));
        let alike = numbers(1).iter().zip(numbers(2)).filter(|(a, b)| **a == *b).count();
        assert!(alike < 10, "{alike} of 100 numbers are the same");
    }

    #[test]
    fn what_lies_around_a_mean_has_about_that_mean() {
        let mut dice = Dice::new(7);
        let sum: u64 = (0..10_000).map(|_| dice.around(1000)).sum();
        assert!((800_000..1_400_000).contains(&(sum / 10)), "{}", sum / 10_000);
    }
}
