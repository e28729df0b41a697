//! Numbers from a seed: the same seed draws the same numbers, so that whoever names it repeats what
//! was drawn.
//!
//! The simulation, the workload of `flotilla check` and the tests on real processes leave to chance
//! what is drawn here, and nothing else. The generator is the crate `fastrand`'s; here are the
//! draws that we need by name. (The core has a function of its own, for a hash and not a stream:
//! `core/group/timeouts.rs`.)

use std::ops::RangeInclusive;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng(fastrand::Rng);

impl Rng {
    /// The stream of a seed. Seeds are counted up from 0, and the generator itself steps by adding:
    /// side by side, its streams would depend on each other, so seeds are spread first.
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "a stream without an end needs no Option")]
    pub fn next(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.u64(..n)
    }

    /// One of these numbers.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.u64(range)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of these, which are some.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())]
    }

    /// One of these; `None` where there is none.
    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        self.0.choice(of)
    }

    /// Around `mean`: mostly less, sometimes several times as much (a geometric spread, up to eight
    /// times).
    pub fn around(&mut self, mean: u64) -> u64 {
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
            let mut rng = Rng::new(seed);
            (0..100).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), numbers(1));
        let alike = numbers(1).iter().zip(numbers(2)).filter(|(a, b)| **a == *b).count();
        assert!(alike < 10, "{alike} of 100 numbers are the same");
    }

    #[test]
    fn what_a_seed_draws_says_nothing_about_the_next() {
        let firsts: Vec<_> =
            (0..10_000).map(|seed| Rng::new(seed).below(1000) as f64 - 499.5).collect();
        let both: f64 = firsts.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let correlation = both / firsts.iter().map(|first| first * first).sum::<f64>();
        assert!(correlation.abs() < 0.05, "{correlation}");
    }

    #[test]
    fn what_lies_around_a_mean_has_about_that_mean() {
        let mut rng = Rng::new(7);
        let sum: u64 = (0..10_000).map(|_| rng.around(1000)).sum();
        assert!((800_000..1_400_000).contains(&(sum / 10)), "{}", sum / 10_000);
    }
}
