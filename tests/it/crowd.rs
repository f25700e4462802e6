//! Many at once: what those who take their time hold of the daemon's memory, and who waits for whom.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::{Home, TestDaemon, noise, with_descriptors};
use crate::support::{PATIENCE, wait_for};

const MEMBERS: usize = 160;
const LARGE: usize = 1 << 20;
/// The memory tier, what the program takes besides, and less than half of what the crowd would hold.
const MIB_MAX: u64 = 16 + 20 + 60;

/// Own memory of the daemon, in MiB.
fn own_memory(daemon: &TestDaemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

fn connect(daemon: &TestDaemon, words: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(words).unwrap();
    stream
}

/// The head of an answer, and nothing of its body.
fn head_of_a_hit(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    head
}

/// Each once held its whole body in memory, long after the memory tier had let it go.
#[test]
fn slow_readers_of_large_bodies_are_lent_few_of_them_from_memory() {
    let home = Home::new();
    let daemon = home.daemon(&["--memory", "16MiB"]);
    let body = noise(1, LARGE);
    assert_eq!(daemon.put("/kv/a", &body).status, 201);
    assert_eq!(daemon.get("/kv/a").body, body);
    let ask = || {
        // Over TCP the kernel may take all of it at once.
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let head = head_of_a_hit(&mut stream);
        (stream, head.contains("larder-source: memory"))
    };
    // Whoever has had it is still lent it for a moment after he has read all of it.
    let first = wait_for("one who is lent it", || Some(ask()).filter(|(_, is_lent)| *is_lent));
    let mut crowd: Vec<_> = (0..8).map(|_| ask()).chain([first]).collect();
    let lent = crowd.iter().filter(|(_, is_lent)| *is_lent).count();
    assert!(lent < 8, "{lent} of 9 from memory");
    for (stream, _) in &mut crowd {
        let mut got = vec![0; LARGE];
        stream.read_exact(&mut got).unwrap();
        assert!(got == body, "wrong bytes");
    }
}

/// What has come of bodies that are not whole yet, as far as it was written.
fn staged(home: &Home) -> u64 {
    let files = std::fs::read_dir(home.store().join("tmp")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// The first ones once held half a megabyte each, the next ones a little less, for as long as they
/// liked: what is held was divided anew only among those who came later.
#[test]
fn senders_that_stopped_while_they_were_few_leave_no_more_in_memory_than_there_is_room_for() {
    let home = Home::new();
    let daemon = home.daemon(&["--memory", "16MiB"]);
    let half = noise(1, LARGE / 2);
    let crowd: Vec<TcpStream> = (0..MEMBERS)
        .map(|number| {
            let head = format!(
                "PUT /kv/{number} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LARGE}\r\n\r\n"
            );
            connect(&daemon, &[head.as_bytes(), &half].concat())
        })
        .collect();
    // Eight megabytes are held of all, and what a piece and a buffer take of each.
    let all = (MEMBERS * half.len()) as u64;
    wait_for("bodies on disk", || (staged(&home) > all - (20 << 20)).then_some(()));
    drop(crowd);
}

/// A connection was once for one request as soon as half of the places were taken, so that clients that
/// only keep theirs opened them again and again.
#[test]
fn connections_stay_until_few_places_are_left() {
    let home = Home::new();
    let daemon = home.daemon_with(&[], |command| with_descriptors(command, 256));
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"HEAD /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        head_of_a_hit(stream);
    };
    // Of 128 places, or fewer where many processors are.
    let mut crowd: Vec<TcpStream> = (0..70).map(|_| connect(&daemon, b"")).collect();
    for _ in 0..2 {
        crowd.iter_mut().for_each(ask);
    }
}

/// Nothing is kept of a connection that idles but the connection, and half a question.
#[test]
fn a_connection_that_idles_is_answered_when_it_asks_again() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let (begin, rest) = (b"HEAD /kv/a HTTP/1.1\r\nho", b"st: localhost\r\n\r\n");
    let mut crowd: Vec<TcpStream> = (0..8).map(|_| connect(&daemon, begin)).collect();
    for round in 0..2 {
        for stream in &mut crowd {
            stream.write_all(rest).unwrap();
            head_of_a_hit(stream);
            // The first half of the next one comes at once, or when it has idled.
            if round == 0 {
                stream.write_all(begin).unwrap();
            }
        }
        let last = crowd.last_mut().unwrap();
        last.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
        let nothing = last.read(&mut [0]).unwrap_err().kind();
        assert!(matches!(nothing, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
        last.set_read_timeout(Some(PATIENCE)).unwrap();
        if round == 1 {
            for stream in &mut crowd {
                stream.write_all(begin).unwrap();
                stream.write_all(rest).unwrap();
                head_of_a_hit(stream);
            }
        }
    }
}

/// Each once held up to a megabyte before any of it was written.
#[test]
fn senders_that_stop_halfway_do_not_fill_memory() {
    let home = Home::new();
    let daemon = home.daemon(&["--memory", "16MiB"]);
    let body = noise(1, LARGE);
    let head = |number: usize| {
        format!("PUT /kv/{number} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LARGE}\r\n\r\n")
    };
    let almost = LARGE - 1;
    let mut crowd: Vec<TcpStream> = (0..MEMBERS)
        .map(|number| connect(&daemon, &[head(number).as_bytes(), &body[..almost]].concat()))
        .collect();
    // Whether it has read all of it nobody can see; what it has read is somewhere.
    let most = (MEMBERS * LARGE) as u64;
    wait_for("bodies on disk", || (staged(&home) > most / 2).then_some(()));
    let held = own_memory(&daemon);
    assert!(held < MIB_MAX, "{held} MiB");
    for (number, stream) in crowd.iter_mut().enumerate() {
        stream.write_all(&body[almost..]).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 201", "{number}");
    }
}

/// How often the threads of this name have gone to sleep of themselves.
fn sleeps(daemon: &TestDaemon, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap().flatten();
    let of_name = tasks.map(|task| task.path()).filter(|task| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let count = |task: std::path::PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    of_name.filter_map(count).sum()
}

/// A build once waited for its turn among a thousand connections from elsewhere.
#[test]
fn what_comes_by_the_socket_is_served_by_threads_of_its_own() {
    let home = Home::new();
    let daemon = home.daemon(&[]);
    assert_eq!(daemon.put("/kv/a", b"a").status, 201);
    let before = [sleeps(&daemon, "lane"), sleeps(&daemon, "socket lane")];
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..100 {
        stream.write_all(b"HEAD /kv/a HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        head_of_a_hit(&mut stream);
    }
    let after = [sleeps(&daemon, "lane"), sleeps(&daemon, "socket lane")];
    assert!(after[1] >= before[1] + 10, "{before:?} {after:?}");
    assert!(after[0] < before[0] + 10, "{before:?} {after:?}");
}
