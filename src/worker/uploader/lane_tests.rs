//! Which uploads may go, table by table.

use std::time::Duration;

use super::*;
use crate::entry::{Digest, Key};

const REALMS: [RealmId; 2] = [RealmId([1; 16]), RealmId([2; 16])];

/// An upload as the tables write it: kind, realm and size; the id is its number.
fn owed(kind: char, realm: usize, id: u64, size: u64) -> Owed {
    let realm = REALMS[realm];
    let digest = Digest::of(&id.to_le_bytes());
    let key = match kind {
        'c' => Key::content(digest),
        'a' => Key::action(realm, digest),
        'g' => Key::go(realm, digest),
        _ => Key::opaque(realm, &id.to_string()).unwrap(),
    };
    Owed { realm, key, size, since: 0 }
}

fn lane(jobs: &[(char, usize)]) -> Lane {
    let mut lane = Lane::new("main".into(), 1);
    for (number, (kind, realm)) in (0..).zip(jobs) {
        lane.insert(number, owed(*kind, *realm, number, 100 - number));
    }
    lane
}

fn ready(lane: &Lane) -> Vec<u64> {
    lane.ready(Order::Oldest, Instant::now(), 100)
}

#[tokio::test(start_paused = true)]
async fn an_action_waits_for_the_contents_of_its_realm_that_came_before_it() {
    type Jobs = &'static [(char, usize)];
    let cases: [(Jobs, &[u64]); 6] = [
        (&[('c', 0), ('a', 0)], &[0]),
        (&[('a', 0), ('c', 0), ('a', 0)], &[0, 1]),
        (&[('c', 0), ('a', 1)], &[0, 1]),
        (&[('c', 0), ('o', 0), ('g', 0)], &[0, 1, 2]),
        (&[('a', 0), ('a', 0)], &[0, 1]),
        (&[], &[]),
    ];
    for (jobs, expected) in cases {
        assert_eq!(ready(&lane(jobs)), expected, "{jobs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_content_that_fails_holds_back_its_realm_and_nobody_else() {
    let mut lane = lane(&[('c', 0), ('a', 0), ('c', 1), ('a', 1), ('o', 0)]);
    lane.launch(0);
    lane.launch(2);
    assert_eq!(ready(&lane), [4]);
    lane.postpone(0, Instant::now());
    lane.remove(2);
    assert_eq!(ready(&lane), [3, 4]);
    let due = lane.next_due(Instant::now()).unwrap();
    tokio::time::advance(due - Instant::now()).await;
    assert_eq!(ready(&lane), [3, 4, 0], "what has failed goes behind younger ones");
    assert_eq!(lane.next_due(Instant::now()), None);
    lane.launch(0);
    lane.remove(0);
    assert_eq!(ready(&lane), [1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn one_entry_is_never_sent_twice_at_once() {
    let mut lane = lane(&[]);
    lane.insert(7, owed('o', 0, 1, 1));
    assert!(lane.launch(7));
    lane.insert(9, owed('o', 0, 1, 1));
    assert!(ready(&lane).is_empty());
    assert_eq!(lane.attempts(), 1);
    lane.land(7);
    assert_eq!(ready(&lane), [9, 7]);
    assert!(!lane.launch(7), "a second attempt");
    assert!(lane.is_beside(9));
    lane.remove(7);
    assert!(!lane.is_beside(9));
    assert_eq!(ready(&lane), [9]);
}

/// An upstream in trouble gets one at a time, and it was always the oldest.
#[tokio::test(start_paused = true)]
async fn what_does_not_get_through_lets_others_go_first() {
    let mut lane = lane(&[('o', 0), ('o', 0), ('o', 1), ('o', 1)]);
    let first = |lane: &Lane| lane.ready(Order::Oldest, Instant::now(), 1)[0];
    for expected in [0, 1, 2, 3, 0, 1] {
        assert_eq!(first(&lane), expected);
        lane.launch(expected);
        lane.land(expected);
    }
    // Of a realm that nothing is permitted for, the last; until one is.
    lane.deny(0);
    assert_eq!(lane.ready(Order::Oldest, Instant::now(), 9), [2, 3, 0, 1]);
    lane.permit(1);
    assert_eq!(first(&lane), 2);
    assert_eq!(lane.ready(Order::Oldest, Instant::now(), 9), [2, 3, 0, 1]);
    lane.launch(2);
    lane.land(2);
    assert_eq!(lane.ready(Order::Oldest, Instant::now(), 9), [3, 0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn before_the_end_the_smallest_go_first() {
    let lane = lane(&[('o', 0), ('c', 0), ('a', 0), ('o', 0)]);
    assert_eq!(lane.ready(Order::Smallest, Instant::now(), 2), [3, 1]);
    assert_eq!(lane.ready(Order::Oldest, Instant::now(), 2), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn upstream_is_asked_only_for_many_large_contents_and_once() {
    let cases = [
        (ASK_MIN, ASK_SIZE_MIN, 'c', true),
        (ASK_MIN - 1, ASK_SIZE_MIN, 'c', false),
        (90, ASK_SIZE_MIN - 1, 'c', false),
        (90, ASK_SIZE_MIN, 'o', false),
    ];
    for (jobs, size, kind, asks) in cases {
        let mut lane = lane(&[]);
        for number in 0..jobs as u64 {
            lane.insert(number, owed(kind, 0, number, size));
        }
        let numbers = lane.to_ask(Instant::now());
        assert_eq!(numbers.is_some(), asks, "{jobs} of {size}");
        let numbers = numbers.unwrap_or_default();
        lane.ask(&numbers);
        assert_eq!(lane.to_ask(Instant::now()), None);
        assert_eq!(lane.attempts(), 0, "a question takes no upload's place");
        lane.answered(&numbers);
        assert_eq!(lane.to_ask(Instant::now()), None);
        assert_eq!(ready(&lane).len(), jobs);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_at_rest_is_due_when_the_rest_is_over() {
    let mut lane = lane(&[('o', 0)]);
    lane.is_caught_up = true;
    let now = Instant::now();
    assert_eq!(lane.next_due(now), None);
    lane.health.failure(&crate::backend::BackendError::Full, 0, now);
    let due = lane.next_due(now).unwrap();
    assert!(due <= now + Duration::from_secs(1));
    lane.try_now();
    assert_eq!(lane.next_due(now), None);
    lane.is_caught_up = true;
    lane.remove(0);
    lane.health.failure(&crate::backend::BackendError::Full, 1, now);
    assert_eq!(lane.next_due(now), None, "nothing is owed");
}
