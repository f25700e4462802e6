//! What a build waits for though its turn has not come: it is fetched next.
//!
//! Requests name what they wait for; the worker that fetches ahead takes the names and moves what
//! holds them to the front. Nobody relies on it: what is named too late comes in its turn.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::entry::Digest;

/// Names that are not taken; a build waits for fewer at once.
const NAMED_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Overtaking {
    named: Mutex<Vec<Digest>>,
    news: Notify,
}

impl Overtaking {
    /// A build waits for this.
    pub fn name(&self, action: Digest) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < NAMED_MAX {
            named.push(action);
        }
        drop(named);
        self.news.notify_one();
    }

    /// What was named since the last call; empty if nothing was.
    pub fn take(&self) -> Vec<Digest> {
        std::mem::take(&mut *self.named.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns when something may have been named; one waits at a time.
    pub async fn named(&self) {
        self.news.notified().await;
    }
}
