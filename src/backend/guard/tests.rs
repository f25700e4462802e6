//! The guard around a backend that does what it is told to, in paused time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::time::{Instant, advance};

use super::*;
use crate::backend::Space;
use crate::backend::memory::{Call, Fault, MemoryBackend};
use crate::entry::Chunks;

pub(super) struct Setup {
    pub(super) memory: Arc<MemoryBackend>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) guard: Guard,
}

pub(super) fn setup(config: Config) -> Setup {
    let memory = Arc::new(MemoryBackend::new());
    let upstream = Arc::new(Upstream::default());
    let guard = Guard::new(memory.clone(), "central", config, upstream.clone(), 7);
    Setup { memory, upstream, guard }
}

pub(super) fn name(id: &str) -> Name {
    Name { namespace: "".into(), space: Space::Kv, id: id.into() }
}

const CONNECT_FAULT: Fault = Fault::Error(|| BackendError::Connect("refused".into()));
const STATUS_FAULT: Fault = Fault::Error(|| BackendError::Status(500));

impl Setup {
    /// Stores a body of `len` bytes under `x`.
    fn with_body(self, len: usize) -> Self {
        self.memory.insert(name("x"), vec![7; len]);
        self
    }

    async fn get(&self) -> String {
        match self.guard.get(&name("x")).await {
            Ok(None) => "absent".into(),
            Ok(Some(found)) => read(found.chunks).await,
            Err(error) => format!("{error:?}"),
        }
    }

    pub(super) async fn put(&self, body: Upload) -> String {
        format!("{:?}", self.guard.put(&name("x"), body).await)
    }

    /// Five troubles, then so much time that one probe may pass.
    pub(super) async fn half_open(&self) {
        self.memory.fault_always(STATUS_FAULT);
        for _ in 0..5 {
            assert_eq!(self.get().await, "Status(500)");
        }
        assert_eq!(self.get().await, "BreakerOpen");
        self.memory.heal();
        advance(Duration::from_millis(1200)).await;
    }
}

async fn read(mut chunks: Chunks) -> String {
    let mut got = 0;
    while let Some(piece) = chunks.next().await {
        match piece {
            Ok(piece) => got += piece.len(),
            Err(error) => return format!("{error:?} after {got}"),
        }
    }
    format!("{got} bytes")
}

#[tokio::test(start_paused = true)]
async fn whatever_upstream_does_a_get_is_over_in_bounded_time() {
    const MIB: usize = 1 << 20;
    let trickle = |piece, ms| Fault::Trickle { piece, every: Duration::from_millis(ms) };
    let cases = [
        ("nothing wrong", None, 10 * MIB, "10485760 bytes", 0),
        ("late but in time", Some(Fault::Delay(Duration::from_millis(1999))), 3, "3 bytes", 1999),
        ("too late", Some(Fault::Delay(Duration::from_millis(2001))), 3, "Deadline", 2000),
        ("black hole", Some(Fault::Hang), 3, "Deadline", 2000),
        (
            "small, head only",
            Some(Fault::HangAfter(0)),
            3,
            "Stalled { waited_ms: 3000 } after 0",
            3000,
        ),
        (
            "small, a byte a second",
            Some(trickle(1, 1000)),
            99,
            "Stalled { waited_ms: 3000 } after",
            3000,
        ),
        (
            "large, head only",
            Some(Fault::HangAfter(0)),
            MIB,
            "Stalled { waited_ms: 4000 } after 0",
            4000,
        ),
        (
            "large, a byte a second",
            Some(trickle(1, 1000)),
            MIB,
            "Stalled { waited_ms: 4000 }",
            4000,
        ),
        ("large, above the floor", Some(trickle(65 << 10, 1000)), MIB, "1048576 bytes", 16_000),
        ("large, below the floor", Some(trickle(63 << 10, 1000)), MIB, "Stalled", 4000),
        (
            "breaks off",
            Some(Fault::Truncate(70_000)),
            MIB,
            "Truncated { got: 70000 } after 70000",
            0,
        ),
    ];
    for (what, fault, len, meaning, took_ms) in cases {
        let setup = setup(Config::default()).with_body(len);
        if let Some(fault) = fault {
            setup.memory.fault_always(fault);
        }
        let started = Instant::now();
        let shown = setup.get().await;
        assert!(shown.starts_with(meaning), "{what}: {shown}");
        let took = started.elapsed();
        let limit = Duration::from_millis(took_ms);
        assert!(took >= limit && took <= limit + Duration::from_millis(10), "{what}: {took:?}");
        let failed = u64::from(!meaning.ends_with("bytes"));
        assert_eq!(setup.upstream.failures.get(), failed, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_takes_its_time_is_not_upstreams_trouble() {
    // A small body had to be there by a fixed time, in which its reader might have paused.
    let trickle = |piece| Fault::Trickle { piece, every: Duration::from_millis(100) };
    for (len, piece) in [(1 << 20, 64 << 10), (3, 1)] {
        let setup = setup(Config::default()).with_body(len);
        setup.memory.fault_always(trickle(piece));
        let mut chunks = setup.guard.get(&name("x")).await.unwrap().unwrap().chunks;
        let mut got = 0;
        while let Some(piece) = chunks.next().await {
            got += piece.unwrap().len();
            advance(Duration::from_secs(60)).await;
        }
        assert_eq!((got, setup.upstream.failures.get()), (len, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_get_is_tried_once_more_only_where_no_connection_came_about() {
    let cases = [
        (vec![CONNECT_FAULT], "3 bytes", 2),
        (vec![CONNECT_FAULT, CONNECT_FAULT], "Connect(\"refused\")", 2),
        (vec![STATUS_FAULT], "Status(500)", 1),
        (vec![Fault::Error(|| BackendError::Broken("reset".into()))], "Broken(\"reset\")", 1),
        // The second attempt has what the first has left of the time.
        (vec![CONNECT_FAULT, Fault::Hang], "Deadline { phase: \"answer\", limit_ms: 2000 }", 2),
    ];
    for (faults, meaning, gets) in cases {
        let setup = setup(Config::default()).with_body(3);
        faults.iter().for_each(|fault| setup.memory.fault_next(fault.clone()));
        assert_eq!(setup.get().await, meaning, "{faults:?}");
        assert_eq!(setup.memory.calls(&name("x")).gets, gets, "{faults:?}");
        assert_eq!(setup.upstream.retries.get(), gets - 1, "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_stay_within_their_budget() {
    let setup = setup(Config::default()).with_body(3);
    for _ in 0..3 {
        setup.memory.fault_next(CONNECT_FAULT);
        assert_eq!(setup.get().await, "3 bytes");
    }
    setup.memory.fault_next(CONNECT_FAULT);
    assert_eq!(setup.get().await, "Connect(\"refused\")", "the fourth retry in ten seconds");
    setup.memory.fault_next(CONNECT_FAULT);
    let put = setup.put(Upload::bytes(Bytes::from("b"))).await;
    assert_eq!(put, "Err(Connect(\"refused\"))", "whoever uploads decides about that");
    assert_eq!(setup.upstream.retries.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn five_troubles_of_gets_and_puts_together_open_the_breaker() {
    let setup = setup(Config::default()).with_body(3);
    setup.memory.fault_always(STATUS_FAULT);
    for _ in 0..3 {
        assert_eq!(setup.get().await, "Status(500)");
    }
    setup.memory.fault_always(CONNECT_FAULT);
    for _ in 0..2 {
        let put = setup.put(Upload::bytes(Bytes::from("b"))).await;
        assert_eq!(put, "Err(Connect(\"refused\"))");
    }
    let started = Instant::now();
    assert_eq!(setup.get().await, "BreakerOpen");
    assert_eq!(setup.put(Upload::bytes(Bytes::from("b"))).await, "Err(BreakerOpen)");
    assert!(matches!(setup.guard.contains(&[name("x")]).await, Err(BackendError::BreakerOpen)));
    assert_eq!(started.elapsed(), Duration::ZERO, "a refusal waits for nothing");
    assert_eq!(setup.memory.calls(&name("x")).gets, 3, "and asks nobody");
    assert_eq!(setup.upstream.state(), "open");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_stall_or_break_off_are_trouble_although_they_began_well() {
    for fault in [Fault::HangAfter(100_000), Fault::Truncate(100_000)] {
        let setup = setup(Config::default()).with_body(1 << 20);
        setup.memory.fault_always(fault.clone());
        for _ in 0..5 {
            let shown = setup.get().await;
            assert!(shown.ends_with("after 100000"), "{shown}");
        }
        assert_eq!(setup.get().await, "BreakerOpen", "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_of_single_entries_and_consumers_that_leave_are_no_trouble() {
    let setup = setup(Config::default()).with_body(1 << 20);
    for error in [
        || BackendError::Denied(403),
        || BackendError::TooLarge,
        || BackendError::Full,
        || BackendError::Redirect(301),
        || BackendError::ReadOnly,
        || BackendError::Unnameable,
        || BackendError::Status(400),
        || BackendError::Status(499),
    ] {
        for _ in 0..10 {
            setup.memory.fault_next(Fault::Error(error));
            assert_ne!(setup.get().await, "BreakerOpen");
        }
    }
    for _ in 0..30 {
        let found = setup.guard.get(&name("x")).await.unwrap().unwrap();
        drop(found);
    }
    assert_eq!(setup.upstream.state(), "closed");
}

#[tokio::test(start_paused = true)]
async fn one_good_probe_closes_the_breaker() {
    let setup = setup(Config::default()).with_body(3);
    setup.half_open().await;
    setup.memory.fault_next(Fault::Delay(Duration::from_millis(100)));
    let x = name("x");
    let mut probe = setup.guard.get(&x);
    assert!((&mut probe).now_or_never().is_none());
    assert_eq!(setup.upstream.state(), "half_open");
    assert_eq!(setup.get().await, "BreakerOpen", "one at a time");
    let found = probe.await.unwrap().unwrap();
    assert_eq!(setup.get().await, "BreakerOpen", "its head alone proves nothing");
    assert_eq!(read(found.chunks).await, "3 bytes");
    assert_eq!((setup.upstream.state(), setup.get().await.as_str()), ("closed", "3 bytes"));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_makes_room_for_the_next() {
    let setup = setup(Config::default()).with_body(1 << 20);
    setup.half_open().await;
    setup.memory.fault_next(Fault::Hang);
    let x = name("x");
    let mut before_the_head = setup.guard.get(&x);
    assert!((&mut before_the_head).now_or_never().is_none());
    assert_eq!(setup.get().await, "BreakerOpen");
    drop(before_the_head);
    let within_the_body = setup.guard.get(&name("x")).await.unwrap().unwrap();
    assert_eq!(setup.get().await, "BreakerOpen");
    drop(within_the_body);
    assert_eq!((setup.get().await.as_str(), setup.upstream.state()), ("1048576 bytes", "closed"));
}

#[tokio::test(start_paused = true)]
async fn a_large_probe_that_does_well_does_not_keep_others_out() {
    let setup = setup(Config::default()).with_body(10 << 20);
    setup.half_open().await;
    let mut probe = setup.guard.get(&name("x")).await.unwrap().unwrap().chunks;
    let mut got = 0;
    while got < 256 << 10 {
        assert_eq!(setup.get().await, "BreakerOpen", "after {got} bytes");
        got += probe.next().await.unwrap().unwrap().len();
    }
    assert_eq!(setup.get().await, "10485760 bytes");
    assert_eq!(read(probe).await, format!("{} bytes", (10 << 20) - got));
}

#[tokio::test(start_paused = true)]
async fn a_bad_probe_opens_for_longer() {
    let setup = setup(Config::default()).with_body(3);
    setup.half_open().await;
    setup.memory.fault_next(STATUS_FAULT);
    assert_eq!(setup.get().await, "Status(500)");
    advance(Duration::from_millis(1500)).await;
    assert_eq!(setup.get().await, "BreakerOpen");
    advance(Duration::from_millis(1000)).await;
    assert_eq!(setup.get().await, "3 bytes");
    assert_eq!(setup.upstream.breaker_opened.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_a_request_waits_briefly_and_then_is_busy() {
    let setup = setup(Config { gets_max: 2, ..Config::default() }).with_body(1 << 20);
    let first = setup.guard.get(&name("x")).await.unwrap().unwrap();
    let second = setup.guard.get(&name("x")).await.unwrap().unwrap();
    let started = Instant::now();
    assert_eq!(setup.get().await, "Busy");
    assert!(started.elapsed() >= Config::default().seat_wait);
    assert_eq!(setup.put(Upload::bytes(Bytes::from("b"))).await, "Ok(())", "puts have their own");
    drop((first, second));
    assert_eq!(setup.get().await, "1 bytes");
    assert_eq!(setup.upstream.state(), "closed", "being busy is not upstream's trouble");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_served_within_the_limit() {
    let setup = setup(Config { gets_max: 4, ..Config::default() }).with_body(3);
    setup.memory.fault_always(Fault::Delay(Duration::from_millis(10)));
    let started = Instant::now();
    let shown = join_all((0..40).map(|_| setup.get())).await;
    assert!(shown.iter().all(|shown| shown == "3 bytes"), "{shown:?}");
    assert!(started.elapsed() >= Duration::from_millis(100), "four at a time");
}

#[tokio::test(start_paused = true)]
async fn contains_is_asked_in_batches_each_with_its_deadline() {
    let setup = setup(Config::default()).with_body(3);
    let names: Vec<Name> = (0..150).map(|n| name(&n.to_string())).chain([name("x")]).collect();
    let found = setup.guard.contains(&names).await.unwrap();
    assert_eq!((found.len(), found.iter().filter(|there| **there).count()), (151, 1));
    assert!(found[150]);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    setup.memory.fault_by(move |call, name| {
        seen.lock().unwrap().push((call, name.id.clone()));
        (name.id == "64").then_some(Fault::Hang)
    });
    let started = Instant::now();
    let answer = setup.guard.contains(&names).await;
    assert!(matches!(answer, Err(BackendError::Deadline { limit_ms: 5000, .. })), "{answer:?}");
    assert_eq!(started.elapsed().as_secs(), 5);
    let asked = [(Call::Contains, "0".to_owned()), (Call::Contains, "64".to_owned())];
    assert_eq!(*calls.lock().unwrap(), asked, "the rest was not asked for");
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_measured() {
    let setup = setup(Config::default()).with_body(1 << 20);
    setup.put(Upload::bytes(Bytes::from(vec![1; 1000]))).await;
    setup.memory.insert(name("x"), vec![7; 1 << 20]);
    setup
        .memory
        .fault_always(Fault::Trickle { piece: 128 << 10, every: Duration::from_millis(125) });
    assert_eq!(setup.get().await, "1048576 bytes");
    let upstream = &setup.upstream;
    assert_eq!((upstream.gets.get(), upstream.puts.get(), upstream.failures.get()), (1, 1, 0));
    assert_eq!((upstream.bytes_in.get(), upstream.bytes_out.get()), (1 << 20, 1000));
    assert_eq!(upstream.latency.count(), 1);
    let mbit = upstream.bandwidth_bits.get() as f64 / f64::from(1 << 20);
    assert!((7.5..8.1).contains(&mbit), "{mbit} Mbit/s");
}
