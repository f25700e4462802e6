//! A model: clients do random things to one daemon, which is killed, ended, purged and kept from its
//! upstream meanwhile, and a plain map of what each was told says what they must find.
//!
//! `LARDER_ROUNDS` says how many lives the daemon has, `LARDER_SEED` repeats what is done in them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use larder::units::Random;
use serde_json::json;

use crate::harness::{Home, TestDaemon, noise};
use crate::support::cache_server::{CacheServer, Fault};
use crate::support::http;

const ROUNDS: u64 = 8;
const SEED: u64 = 20_261_126;
const CLIENTS: u64 = 4;
/// Names of each client, and what it does in a life.
const NAMES: u64 = 8;
const ACTS: u64 = 60;
const LENS: [u64; 6] = [0, 1, 900, 65_536, 65_537, 200_000];
/// With so little, most of what was put must go.
const SMALL_DISK: &str = "3MiB";

#[expect(clippy::disallowed_methods, reason = "how a test is told what to do")]
fn number(name: &str, default: u64) -> u64 {
    let written = std::env::var(name).ok();
    written.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// What a name may be found to hold.
#[derive(Clone, Default)]
struct Held {
    /// The last body whose put, or None whose removal, was acknowledged.
    sure: Option<Vec<u8>>,
    /// Puts and removals that nobody has answered since; None is a removal.
    maybe: Vec<Option<Vec<u8>>>,
}

impl Held {
    fn allows(&self, found: Option<&Vec<u8>>) -> bool {
        self.sure.as_ref() == found || self.maybe.iter().any(|maybe| maybe.as_ref() == found)
    }
}

/// A client and the names that only it writes.
struct Client {
    id: u64,
    random: Random,
    held: BTreeMap<String, Held>,
    puts: u64,
}

impl Client {
    fn new(id: u64, seed: u64) -> Self {
        let random = Random::new(seed ^ id << 48);
        Self { id, random, held: BTreeMap::new(), puts: 0 }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    /// Does things until the daemon is gone, or enough.
    fn live(&mut self, addr: SocketAddr, life: &Life) {
        for _ in 0..ACTS {
            let name = self.below(NAMES);
            let path = format!("/kv/c{}/n{name}", self.id);
            let is_answered = match self.below(10) {
                0..4 => self.put(addr, &path, life),
                4 if life.removes => self.remove(addr, &path),
                _ => self.look(addr, &path, life),
            };
            if !is_answered {
                return;
            }
        }
    }

    fn put(&mut self, addr: SocketAddr, path: &str, life: &Life) -> bool {
        let len = LENS[usize::try_from(self.below(LENS.len() as u64)).unwrap()];
        self.puts += 1;
        let body = noise(self.id << 32 | self.puts, usize::try_from(len).unwrap());
        let answer = http::send(addr, "PUT", path, &body);
        let held = self.held.entry(path.to_owned()).or_default();
        match answer.map(|answer| answer.status) {
            Ok(200 | 201) => *held = Held { sure: Some(body), maybe: Vec::new() },
            Ok(507) if life.may_forget => {}
            Ok(status) => panic!("PUT {path}: {status}"),
            Err(_) => {
                held.maybe.push(Some(body));
                return false;
            }
        }
        true
    }

    fn remove(&mut self, addr: SocketAddr, path: &str) -> bool {
        let answer = http::send(addr, "DELETE", path, b"");
        let held = self.held.entry(path.to_owned()).or_default();
        match answer.map(|answer| answer.status) {
            Ok(204 | 404) => *held = Held::default(),
            Ok(status) => panic!("DELETE {path}: {status}"),
            Err(_) => {
                held.maybe.push(None);
                return false;
            }
        }
        true
    }

    fn look(&mut self, addr: SocketAddr, path: &str, life: &Life) -> bool {
        let Ok(answer) = http::send(addr, "GET", path, b"") else { return false };
        let held = self.held.entry(path.to_owned()).or_default();
        let found = match answer.status {
            200 => Some(answer.body),
            404 => None,
            status => panic!("GET {path}: {status}"),
        };
        let is_right = held.allows(found.as_ref()) || found.is_none() && life.may_forget;
        let lens = held.maybe.iter().map(|maybe| maybe.as_ref().map(Vec::len)).collect::<Vec<_>>();
        assert!(
            is_right,
            "GET {path}: {:?} bytes, where {:?} were acknowledged, and perhaps {lens:?} came since",
            found.map(|body| body.len()),
            held.sure.as_ref().map(Vec::len)
        );
        true
    }
}

/// How a daemon lives.
struct Life {
    /// Room is scarce: what is not there is right, if the daemon has counted why.
    may_forget: bool,
    /// Removals are local, so that they are tried where nobody upstream has it.
    removes: bool,
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    Told,
    Purged,
}

fn live_and_end(daemon: TestDaemon, clients: &mut [Client], life: &Life, end: End, wait: u64) {
    let addr = daemon.addr();
    let mut daemon = Some(daemon);
    std::thread::scope(|scope| {
        for client in &mut *clients {
            scope.spawn(|| client.live(addr, life));
        }
        if matches!(end, End::Killed) {
            std::thread::park_timeout(std::time::Duration::from_millis(wait));
            daemon.take().unwrap().kill();
        }
    });
    let Some(daemon) = daemon else { return };
    if matches!(end, End::Purged) {
        let reply = daemon.control(&json!({"op": "purge", "all": true}));
        assert!(reply["removed"].as_u64().is_some(), "{reply}");
        for client in &mut *clients {
            client.held.clear();
            // Nothing that was purged comes back.
            for name in 0..NAMES {
                assert!(client.look(addr, &format!("/kv/c{}/n{name}", client.id), life));
            }
        }
    }
    assert_eq!(daemon.terminate(), Some(0));
}

fn play(name: &str, flags: &[&str], life: &Life, mut between: impl FnMut(&mut Random)) {
    let (seed, rounds) = (number("LARDER_SEED", SEED), number("LARDER_ROUNDS", ROUNDS));
    let home = Home::new();
    let mut random = Random::new(seed);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|id| Client::new(id, seed)).collect();
    for round in 0..rounds {
        between(&mut random);
        let daemon = home.daemon(flags);
        let end = match random.next_u64() % 6 {
            0 | 1 if life.removes => End::Purged,
            0..4 => End::Killed,
            _ => End::Told,
        };
        live_and_end(daemon, &mut clients, life, end, random.next_u64() % 400);
        eprintln!("{name}, seed {seed}: life {round}, {end:?}");
    }
    let daemon = home.daemon(flags);
    for client in &mut clients {
        let names: Vec<String> = client.held.keys().cloned().collect();
        for name in names {
            assert!(client.look(daemon.addr(), &name, life), "nobody answers");
        }
    }
    let disk = &daemon.stats()["disk"];
    let report = daemon.control(&json!({"op": "verify"}));
    assert_eq!(report["bad_entries"], 0, "{report}");
    assert_eq!(disk["corrupt"], 0, "{disk}");
}

#[test]
fn what_clients_were_told_is_so_through_kills_ends_and_purges() {
    let life = Life { may_forget: false, removes: true };
    play("plenty of room", &[], &life, |_| {});
}

#[test]
fn where_room_is_scarce_what_is_there_is_right() {
    let life = Life { may_forget: true, removes: true };
    play("little room", &["--disk", SMALL_DISK, "--disk-floor", "0"], &life, |_| {});
}

#[test]
fn what_clients_were_told_is_so_whatever_upstream_does() {
    let life = Life { may_forget: false, removes: false };
    let central = CacheServer::start();
    let url = central.url();
    play("an upstream", &["--upstream", &url], &life, |random| {
        match random.next_u64() % 5 {
            0 => central.set_fault(Fault::Status(500)),
            1 => central.set_fault(Fault::Refuse),
            2 => central.set_fault(Fault::CloseMidBody),
            3 => central.set_fault(Fault::Status(507)),
            _ => central.heal(),
        };
    });
}
