//! SplitMix64: small, good enough for test data, and the same on every machine for ever.

/// Where every random choice of the tests comes from.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

/// The seed of a whole run, where `VIRTFOLD_SEED` does not say otherwise: the method's priority date.
const DEFAULT_SEED: u64 = 20_030_624;

/// `name` from the environment as a number.
pub(crate) fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', not a number")))
}

/// The seed of this run.
pub(crate) fn run_seed() -> u64 {
    number_from_env("VIRTFOLD_SEED").unwrap_or(DEFAULT_SEED)
}

impl Rng {
    /// The stream of case `case` of the suite `suite` in this run: neighbours have nothing in common.
    pub(crate) fn of_case(suite: &str, case: u64) -> Self {
        let mut seed = run_seed();
        for byte in suite.bytes() {
            seed = Self(seed ^ u64::from(byte)).next();
        }
        Self(Self(seed.wrapping_add(case)).next())
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end` (not zero).
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap()
    }

    /// A number from `first` to `last`, both included.
    pub(crate) fn within(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True in `percent` of 100 calls.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap();
        choices[index]
    }

    /// `len` bytes that no compressor makes smaller.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
