//! How statistics are kept over a restart. All numbers little-endian:
//!
//! ```text
//! u8 version | u64 nanoseconds since 1970 | 3 × (f32 answers, f32 hits, u32 declined)
//! f32 cost, f32 weight | f32 logarithm of speed, f32 weight
//! u8 count, count × f32 latencies | u8 count, count × f32 bandwidths
//! ```
//!
//! Whatever reads otherwise is forgotten: it is learnt again within a second.

use super::window::{LEN, Window};
use super::{Answers, COST_MAX_MS, HALF_LIFE_ANSWERS, Mean, SPEED_MOST, Statistics};
use crate::units::Timestamp;

const VERSION: u8 = 1;
/// The longest encoding.
pub(super) const ENCODED_MAX: usize = 1 + 8 + 3 * 12 + 2 * 8 + 2 * (1 + LEN * 4);
/// More than any weight comes to, with the half-lives that there are.
const WEIGHT_MAX: f64 = 16.0 * HALF_LIFE_ANSWERS;

impl Statistics {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENCODED_MAX);
        out.push(VERSION);
        out.extend_from_slice(&self.at.0.to_le_bytes());
        for answers in &self.answers {
            put(&mut out, answers.all);
            put(&mut out, answers.hits);
            out.extend_from_slice(&answers.declined.to_le_bytes());
        }
        for mean in [&self.costs_ms, &self.speeds] {
            put(&mut out, mean.value);
            put(&mut out, mean.weight);
        }
        for window in [&self.latencies_ms, &self.bytes_per_ms] {
            out.push(u8::try_from(window.values().len()).unwrap_or_default());
            for value in window.values() {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        out
    }

    /// None if these bytes are not statistics of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.array::<1>()? != [VERSION] {
            return None;
        }
        let at = Timestamp(u64::from_le_bytes(from.array()?));
        let mut answers = [Answers::default(); 3];
        for answers in &mut answers {
            answers.all = from.number(0.0, WEIGHT_MAX)?;
            answers.hits = from.number(0.0, answers.all)?;
            answers.declined = u32::from_le_bytes(from.array()?);
        }
        let log_max = SPEED_MOST.ln() + 0.01;
        let costs_ms = from.mean(0.0, COST_MAX_MS)?;
        let speeds = from.mean(-log_max, log_max)?;
        let (latencies_ms, bytes_per_ms) = (from.window()?, from.window()?);
        let is_end = from.0.is_empty();
        is_end.then_some(Self {
            at,
            answers,
            latencies_ms,
            bytes_per_ms,
            costs_ms,
            speeds,
            ..Self::default()
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "seven digits are more than is known")]
fn put(out: &mut Vec<u8>, number: f64) {
    out.extend_from_slice(&(number as f32).to_le_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self, least: f64, most: f64) -> Option<f64> {
        let number = f64::from(f32::from_le_bytes(self.array()?));
        (least..=most).contains(&number).then_some(number)
    }

    fn mean(&mut self, least: f64, most: f64) -> Option<Mean> {
        Some(Mean { value: self.number(least, most)?, weight: self.number(0.0, WEIGHT_MAX)? })
    }

    fn window(&mut self) -> Option<Window> {
        let [len] = self.array()?;
        if usize::from(len) > LEN {
            return None;
        }
        let mut window = Window::default();
        for _ in 0..len {
            window.push(self.number(0.0, f64::from(f32::MAX))?);
        }
        Some(window)
    }
}
