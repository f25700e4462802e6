//! The last few measurements of something. Their median is what is believed, so that one outlier,
//! or seven, does not matter.

/// Odd, so that the median is one of them; few, so that a new network is known in a second.
pub(super) const LEN: usize = 15;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    /// Oldest first.
    values: [f32; LEN],
    len: usize,
}

impl Window {
    /// Takes in a measurement; what is none, is left out.
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are more than is measured")]
    pub(super) fn push(&mut self, value: f64) {
        let value = value as f32;
        if !value.is_finite() || value < 0.0 {
            return;
        }
        if self.len == LEN {
            self.values.rotate_left(1);
            self.len -= 1;
        }
        self.values[self.len] = value;
        self.len += 1;
    }

    /// The newest ones, this share of them.
    pub(super) fn faded(&self, left: f64) -> Self {
        let keep = self.len as f64 * left;
        // Half of one is still one, so that steps too small to drop one drop none.
        let dropped = (0..self.len).rev().take_while(|n| (*n as f64 + 0.5) > keep).count();
        if dropped == 0 {
            return *self;
        }
        let mut out = Self::default();
        for value in &self.values[dropped..self.len] {
            out.push(f64::from(*value));
        }
        out
    }

    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.values;
        let sorted = &mut sorted[..self.len];
        sorted.sort_unstable_by(f32::total_cmp);
        sorted.get(self.len / 2).map(|value| f64::from(*value))
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most LEN")]
    pub(super) const fn count(&self) -> u32 {
        self.len as u32
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(values: &[f64]) -> Window {
        let mut window = Window::default();
        for value in values {
            window.push(*value);
        }
        window
    }

    #[test]
    fn outliers_do_not_move_the_median() {
        assert_eq!(window(&[]).median(), None);
        assert_eq!(window(&[5.0, 4000.0, 6.0]).median(), Some(6.0));
        assert_eq!(window(&[5.0, f64::NAN, -1.0, f64::INFINITY]).median(), Some(5.0));
        let many: Vec<f64> = (0..100).map(|n| if n % 3 == 0 { 1e6 } else { 20.0 }).collect();
        assert_eq!(window(&many).median(), Some(20.0));
    }

    #[test]
    fn the_oldest_fade_first() {
        let full = window(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(full.faded(1.0), full);
        assert_eq!(full.faded(0.99), full);
        assert_eq!(full.faded(0.5).values(), [5.0, 6.0, 7.0, 8.0]);
        assert_eq!(full.faded(0.0).count(), 0);
    }
}
