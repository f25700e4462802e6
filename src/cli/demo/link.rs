//! The distance between the machines and the central cache: a relay of plain threads that holds
//! every byte back for half a round trip.
//!
//! Delay only; the benches have a simulator with bandwidth and windows. What passes is not read.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::tasks;
use crate::units::Clock;

pub(super) const ROUND_TRIP: Duration = Duration::from_millis(50);

const PIECE: usize = 64 << 10;
/// Pieces on their way in one direction of one connection.
const PIECES_MAX: usize = 256;

/// A piece and when it arrives.
type Piece = (Duration, Vec<u8>);

/// Relays from an address of its own to `target` until dropped.
pub(super) struct DelayedLink {
    addr: SocketAddr,
    ending: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl DelayedLink {
    pub(super) fn to(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let told = ending.clone();
        let clock = Clock::system();
        let acceptor = tasks::thread("demo link", move || {
            for client in listener.incoming().flatten() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                // A target that is gone closes the client, as a machine that is gone would.
                let _ = connect(client, target, &clock);
            }
        })?;
        Ok(Self { addr, ending, acceptor: Some(acceptor) })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for DelayedLink {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which waits for nothing else.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// The threads are not joined: they end with their connection, which ends with its machine.
fn connect(client: TcpStream, target: SocketAddr, clock: &Clock) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    // The kernel completes the client's connect at once; its round trip is paid by the first byte.
    let connected = clock.elapsed() + ROUND_TRIP;
    one_way(client.try_clone()?, server.try_clone()?, connected, clock)?;
    one_way(server, client, Duration::ZERO, clock)
}

fn one_way(from: TcpStream, to: TcpStream, not_before: Duration, clock: &Clock) -> io::Result<()> {
    let (sender, receiver) = sync_channel(PIECES_MAX);
    let (reading, writing) = (clock.clone(), clock.clone());
    tasks::thread("demo link in", move || take(from, not_before, &reading, &sender))?;
    tasks::thread("demo link out", move || hold(to, &writing, &receiver))?;
    Ok(())
}

fn take(mut from: TcpStream, not_before: Duration, clock: &Clock, sender: &SyncSender<Piece>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let due = clock.elapsed().max(not_before) + ROUND_TRIP / 2;
        if sender.send((due, buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

fn hold(mut to: TcpStream, clock: &Clock, receiver: &Receiver<Piece>) {
    while let Ok((due, piece)) = receiver.recv() {
        std::thread::sleep(due.saturating_sub(clock.elapsed()));
        if to.write_all(&piece).is_err() {
            // Wakes the reader of this direction's other end.
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
