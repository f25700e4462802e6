//! The simulated network carries bytes whole, counts them, and passes on how connections end.
//!
//! How long it takes is not asked here but in the bench `wan`, which may fail on a busy machine.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http::send;
use crate::support::wait_for;
use crate::wan::{Link, Wan};

const NEAR: Link = Link { rtt: Duration::from_millis(2), bits_per_second: 1_000_000_000 };

/// A target for one connection.
fn target<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    serve: impl FnOnce(TcpStream) -> T + Send + 's,
) -> (SocketAddr, ScopedJoinHandle<'s, T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, scope.spawn(move || serve(listener.accept().unwrap().0)))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 7 & 255).unwrap()).collect()
}

#[test]
fn bytes_pass_whole_and_counted_in_both_directions() {
    let (asked, answered) = (pattern(300_000), pattern(2_000_000));
    std::thread::scope(|scope| {
        let (addr, served) = target(scope, |mut stream| {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&answered).unwrap();
            got
        });
        let wan = Wan::start(addr, NEAR);
        let mut client = TcpStream::connect(wan.addr()).unwrap();
        client.write_all(&asked).unwrap();
        // Only our half: the target sees the end and still answers.
        client.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == answered, "what came down is what was sent");
        assert!(served.join().unwrap() == asked, "what came up is what was sent");
        let totals = wan.totals();
        assert_eq!((totals.connections, totals.refused), (1, 0));
        assert_eq!((totals.bytes_up, totals.bytes_down), (300_000, 2_000_000));
        assert_eq!((wan.bytes_up(), wan.bytes_down()), (300_000, 2_000_000));
        assert_eq!(totals.busy_down, NEAR.transmission(2_000_000));
        // A lower bound of the waiting holds on any machine: what was sent is not early.
        assert!(totals.waited >= NEAR.rtt, "{totals:?}");
        assert!(totals.waited_sum >= totals.waited);
    });
}

#[test]
fn who_brings_something_is_told_from_who_waits_for_it() {
    let server = CacheServer::start();
    let wan = Wan::start(server.addr(), NEAR);
    send(wan.addr(), "PUT", "/a", &pattern(50_000)).unwrap();
    let totals = wan.totals();
    assert_eq!((totals.asked, totals.brought, totals.waited), (0, 1, Duration::ZERO));
    assert!((50_000..51_000).contains(&totals.brought_bytes), "{totals:?}");
    send(wan.addr(), "GET", "/a", b"").unwrap();
    let totals = wan.totals();
    assert_eq!((totals.asked, totals.brought), (1, 1));
    assert!(totals.waited >= NEAR.rtt, "{totals:?}");
    assert!(!wan.is_waiting());
}

#[test]
fn many_connections_share_it_without_mixing_bytes() {
    let server = CacheServer::start();
    for i in 0..16_usize {
        server.insert(&format!("/{i}"), &pattern(50_000 + i));
    }
    let wan = Wan::start(server.addr(), NEAR);
    std::thread::scope(|scope| {
        for i in 0..16 {
            let addr = wan.addr();
            scope.spawn(move || {
                let answer = send(addr, "GET", &format!("/{i}"), b"").unwrap();
                assert!(answer.body == pattern(50_000 + i));
            });
        }
    });
    assert_eq!((wan.connections(), server.gets()), (16, 16));
    assert!(wan.url().ends_with(&wan.addr().port().to_string()));
}

#[test]
fn a_target_that_refuses_or_cuts_is_passed_on() {
    let server = CacheServer::start();
    server.insert("/k", &pattern(100_000));
    let wan = Wan::start(server.addr(), NEAR);
    server.set_fault(Fault::CloseMidBody);
    assert!(send(wan.addr(), "GET", "/k", b"").is_err());
    server.set_fault(Fault::Refuse);
    assert!(send(wan.addr(), "GET", "/k", b"").is_err());
    wait_for("the refusal", || (wan.totals().refused == 1).then_some(()));
    server.heal();
    assert!(send(wan.addr(), "GET", "/k", b"").unwrap().body == pattern(100_000));
}

#[test]
fn a_target_learns_that_its_client_left() {
    std::thread::scope(|scope| {
        let (addr, served) = target(scope, |mut stream| {
            // Without end, as far as the client lets us.
            while stream.write_all(&[0; 65_536]).is_ok() {}
        });
        let wan = Wan::start(addr, NEAR);
        let mut client = TcpStream::connect(wan.addr()).unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        drop(client);
        served.join().unwrap();
    });
}

#[test]
fn dropping_it_cuts_what_is_under_way() {
    std::thread::scope(|scope| {
        let (addr, served) =
            target(scope, |mut stream| while stream.write_all(&[0; 65_536]).is_ok() {});
        let far = Link { rtt: Duration::from_secs(3600), bits_per_second: 8 };
        let near = Wan::start(addr, NEAR);
        let mut client = TcpStream::connect(near.addr()).unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        // The client reads no more: a receiver is stuck in its write.
        drop(near);
        served.join().unwrap();
        // Nobody listens there any more: this one waits for its round trip.
        let far = Wan::start(addr, far);
        let idle = TcpStream::connect(far.addr()).unwrap();
        wait_for("the connection", || (far.connections() == 1).then_some(()));
        drop(far);
        drop(idle);
    });
}
