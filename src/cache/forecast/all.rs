//! The forecasts of a daemon: shared by all who build the same, and waiting for the worker.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::cache::forecast::{Aim, Forecast, Phase};
use crate::entry::Digest;
use crate::telemetry::Metrics;
use crate::units::Clock;

/// Forecasts that are remembered; the oldest give way.
const FORECASTS_MAX: usize = 64;
/// Somebody else may have built meanwhile: then manifests are read anew.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// The forecasts of a daemon.
#[derive(Debug)]
pub struct Forecasts {
    list: Mutex<VecDeque<Arc<Forecast>>>,
    asked: Mutex<VecDeque<Arc<Forecast>>>,
    news: Notify,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Forecasts {
    pub fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (list, asked) = (Mutex::default(), Mutex::default());
        Self { list, asked, news: Notify::new(), metrics, clock }
    }

    /// The forecast for this aim; a worker is asked for it if it is new.
    pub fn open(&self, aim: Aim) -> Arc<Forecast> {
        let now = self.clock.elapsed();
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|old| now.saturating_sub(old.made) < FRESH_FOR || old.is_wanted());
        // Who knows more of what is built may find what another did not.
        let is_less = |known: &Forecast| {
            let by_scope = known.is_by_scope_alone.load(Ordering::Relaxed);
            let is_guess = known.phase() != Phase::Known || by_scope;
            is_guess && !known.aim.says_all_of(&aim)
        };
        let known = |known: &&Arc<Forecast>| known.aim.serves(&aim) && !is_less(known);
        if let Some(known) = list.iter().rev().find(known) {
            return known.clone();
        }
        if list.len() >= FORECASTS_MAX {
            list.pop_front();
        }
        let forecast = Arc::new(Forecast::new(aim, self.clock.clone(), self.metrics.clone()));
        list.push_back(forecast.clone());
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push_back(forecast.clone());
        self.news.notify_one();
        forecast
    }

    /// Somebody wants it again: what was cut short goes on.
    pub fn resume(&self, forecast: &Arc<Forecast>) {
        if forecast.resume() {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push_back(forecast.clone());
            self.news.notify_one();
        }
    }

    /// The next one that is to be filled in.
    pub async fn next(&self) -> Arc<Forecast> {
        loop {
            let next = self.asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(forecast) = next {
                return forecast;
            }
            self.news.notified().await;
        }
    }

    /// A build waits for this. The forecast that brings it may be another one's: what that has queued
    /// already is not planned a second time.
    pub fn name(&self, action: Digest) {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        for forecast in list.iter().filter(|forecast| !forecast.is_finished()) {
            forecast.overtaking.name(action);
        }
    }

    /// Whether something is to be fetched that somebody still wants.
    pub fn any_wanted(&self) -> bool {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().any(|forecast| forecast.is_wanted())
    }

    /// What was learned is out of date: this machine has written a newer manifest itself.
    pub fn forget(&self, forecast: &Arc<Forecast>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| !Arc::ptr_eq(known, forecast));
    }
}
