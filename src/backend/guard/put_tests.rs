//! Uploads through the guard, in paused time: how long they may take, and whose fault it is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::tests::setup;
use super::*;
use crate::backend::memory::Fault;
use crate::entry::{BodyError, Chunks};

/// A body that takes `every` to give each of its pieces.
fn slow_source(pieces: u64, every: Duration) -> Upload {
    let open = move || -> Chunks {
        Box::pin(stream::iter(0..pieces).then(move |_| async move {
            sleep(every).await;
            Ok(Bytes::from("x"))
        }))
    };
    Upload { len: pieces, open: Arc::new(open) }
}

#[tokio::test(start_paused = true)]
async fn a_put_may_take_long_while_it_moves_but_not_without() {
    const S: Duration = Duration::from_secs(1);
    let setup = setup(Config { floor_bytes_per_s: 1, ..Config::default() });
    assert_eq!(setup.put(slow_source(20, S)).await, "Ok(())", "20 s, a piece each second");
    let cases = [
        ("no answer", Fault::Hang, slow_source(1, S), 10),
        ("an answer after its time", Fault::Delay(S * 11), slow_source(1, S), 10),
        // Moving, but slower than the floor: 3 bytes may take 3 s besides the answer's 10.
        ("ever slower", Fault::Delay(S * 9), slow_source(3, S * 9), 13),
    ];
    for (what, fault, body, took_s) in cases {
        setup.memory.fault_next(fault);
        let started = Instant::now();
        let shown = setup.put(body).await;
        assert!(shown.starts_with("Err(Deadline"), "{what}: {shown}");
        assert_eq!(started.elapsed().as_secs(), took_s, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn our_own_disk_is_not_upstreams_trouble() {
    let setup = setup(Config::default());
    let never = Upload { len: 1, open: Arc::new(|| -> Chunks { Box::pin(stream::pending()) }) };
    let corrupt = Upload {
        len: 1,
        open: Arc::new(|| -> Chunks {
            Box::pin(stream::once(std::future::ready(Err(BodyError::Corrupt))))
        }),
    };
    for _ in 0..6 {
        assert!(setup.put(never.clone()).await.contains("Deadline"));
        assert!(setup.put(corrupt.clone()).await.contains("Broken"));
    }
    assert_eq!(setup.upstream.state(), "closed");
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_is_told_from_a_slow_disk_by_who_was_waited_for() {
    let setup = setup(Config::default());
    setup.memory.fault_always(Fault::Hang);
    for _ in 0..5 {
        assert!(setup.put(Upload::bytes(Bytes::from("b"))).await.contains("Deadline"));
    }
    assert_eq!(setup.upstream.state(), "open");
}

/// Sending it may take hours, and it is the only one that is asked meanwhile.
#[tokio::test(start_paused = true)]
async fn a_large_put_as_a_probe_does_not_keep_others_out_until_it_ends() {
    let setup = setup(Config::default());
    setup.half_open().await;
    let every = Duration::from_secs(1);
    let open = move || -> Chunks {
        Box::pin(stream::iter(0..20).then(move |_| async move {
            sleep(every).await;
            Ok(Bytes::from_static(&[b'x'; 1 << 20]))
        }))
    };
    let putting = setup.put(Upload { len: 20 << 20, open: Arc::new(open) });
    let looking = async {
        sleep(every * 3).await;
        assert_eq!(setup.upstream.state(), "half_open");
        sleep(every * 7).await;
        assert_eq!(setup.upstream.state(), "closed");
    };
    let (put, ()) = tokio::join!(putting, looking);
    assert_eq!(put, "Ok(())");
}

/// A build that began after an outage missed everything while an upload as the probe took its time.
#[tokio::test(start_paused = true)]
async fn no_build_waits_for_what_a_put_as_a_probe_tells() {
    let setup = setup(Config { floor_bytes_per_s: 1, ..Config::default() });
    setup.half_open().await;
    let putting = setup.put(slow_source(20, Duration::from_secs(1)));
    let looking = async {
        sleep(Duration::from_secs(2)).await;
        assert_eq!(setup.upstream.state(), "half_open");
        assert!(matches!(setup.guard.get(&tests::name("y")).await, Ok(None)));
        assert_eq!(setup.upstream.state(), "closed");
    };
    assert_eq!(tokio::join!(putting, looking).0, "Ok(())");
}

/// A name that is a directory, or a full disk, was answered with an error, again and again: the breaker
/// opened, and builds were not served what upstream had.
#[tokio::test(start_paused = true)]
async fn what_upstream_cannot_store_keeps_nobody_from_what_it_serves() {
    let setup = setup(Config::default());
    for error in [|| BackendError::Status(409), || BackendError::Status(500)] {
        setup.memory.fault_always(Fault::Error(error));
        for _ in 0..10 {
            let put = setup.put(Upload::bytes(Bytes::from("b"))).await;
            assert_eq!(put, format!("Err({:?})", error()));
        }
    }
    assert_eq!((setup.upstream.state(), setup.upstream.failures.get()), ("closed", 20));
}

/// 8 MiB over a megabit a second, beside another one: it was given up after two minutes, again and
/// again, and counted as upstream's trouble.
#[tokio::test(start_paused = true)]
async fn a_put_over_a_slow_link_that_others_share_comes_to_its_end() {
    let setup = setup(Config::default());
    let piece = 16 << 10;
    let open = move || -> Chunks {
        Box::pin(stream::iter(0..512).then(move |_| async move {
            sleep(Duration::from_millis(300)).await;
            Ok(Bytes::from(vec![0; piece]))
        }))
    };
    let body = Upload { len: 512 * piece as u64, open: Arc::new(open) };
    let started = Instant::now();
    assert_eq!(setup.put(body).await, "Ok(())");
    assert!(started.elapsed() > Duration::from_secs(150));
}
