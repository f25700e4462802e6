//! Turns at work that many want, a semaphore with priorities: whose work is needed first has the next.
//!
//! A queue would share them out evenly. Where unpacking is what takes time, what a build needs at once
//! would come no sooner than what it needs last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// So many may work at once.
#[derive(Debug)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    /// By when their work is needed, then by when they came; who has gone stays until it is his turn.
    /// There is none while a turn is free.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<Turn>>,
    came: u64,
    taken: u64,
}

/// One's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Turns {
    pub(super) const fn new(most: usize) -> Self {
        Self(Mutex::new(State { free: most, waiting: BTreeMap::new(), came: 0, taken: 0 }))
    }

    /// Waits for one's turn; whose number is lower goes first.
    pub(super) async fn take(self: &Arc<Self>, needed: u64) -> Turn {
        let turn = {
            let mut state = self.state();
            state.taken += 1;
            if let Some(left) = state.free.checked_sub(1) {
                state.free = left;
                return Turn(Some(self.clone()));
            }
            state.came += 1;
            let (next, turn) = oneshot::channel();
            let place = (needed, state.came);
            state.waiting.insert(place, next);
            turn
        };
        turn.await.expect("who waits is taken off the list with a turn")
    }

    /// How many have been asked for. Whoever counts his own from there is not behind all who come later.
    pub(super) fn taken(&self) -> u64 {
        self.state().taken
    }

    /// Hands a turn on, or keeps it for whoever comes.
    fn give(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some((_, next)) = state.waiting.pop_first() else {
                state.free += 1;
                return;
            };
            drop(state);
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // Gone meanwhile: the turn is the next one's.
                Err(turn) => turn.forget(),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// It is not handed on.
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = &self.0 {
            turns.give();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn whose_work_is_needed_first_goes_first() {
        let turns = Arc::new(Turns::new(2));
        let first = turns.take(9).now_or_never().unwrap();
        let second = turns.take(9).now_or_never().unwrap();
        let mut waiting: Vec<_> = [5, 3, 7, 3].map(|needed| Box::pin(turns.take(needed))).into();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        drop(first);
        let mut served = Vec::new();
        let mut held = Some(second);
        while served.len() < 4 {
            let ready = (0..4).filter(|at| !served.contains(at));
            let ready: Vec<_> =
                ready.filter_map(|at| Some((at, waiting[at].as_mut().now_or_never()?))).collect();
            let [(at, _)] = ready.as_slice() else { panic!("{} at once", ready.len()) };
            served.push(*at);
            // The turn is handed on as it is dropped, with the one that was held first.
            held = ready.into_iter().next().map(|(_, turn)| turn).or(held);
        }
        assert_eq!(served, [1, 3, 0, 2]);
        drop(held);
        assert_eq!(turns.taken(), 6);
        assert_eq!(turns.state().free, 2);
    }

    #[test]
    fn a_turn_of_one_who_has_gone_is_the_next_ones() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.take(0).now_or_never().unwrap();
        let mut gone = Box::pin(turns.take(1));
        let mut told = Box::pin(turns.take(2));
        let mut last = Box::pin(turns.take(3));
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(told.as_mut().now_or_never().is_none());
        assert!(last.as_mut().now_or_never().is_none());
        drop(gone);
        drop(held);
        // It was handed to one that goes without having looked.
        assert!(last.as_mut().now_or_never().is_none());
        drop(told);
        drop(last.now_or_never().unwrap());
        assert_eq!(turns.state().free, 1);
        assert!(turns.take(0).now_or_never().is_some());
    }
}
