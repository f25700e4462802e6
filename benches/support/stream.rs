//! Bytes in one stream, at once and with nothing around them: the least that anybody can do to fetch
//! much from afar. For the bound, and for the tarball, whose server costs nothing this way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

/// A server that lives as long as the process.
#[derive(Debug)]
pub(crate) struct Streams {
    addr: SocketAddr,
}

impl Streams {
    /// Serves each of these files by its number.
    #[expect(clippy::disallowed_methods, reason = "larder's own threads are not to be depended on")]
    pub(crate) fn serve(all: Vec<PathBuf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let all = Arc::new(all);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let all = all.clone();
                std::thread::spawn(move || {
                    let mut number = [0];
                    // An error is the client's leaving.
                    let _ = stream.read_exact(&mut number).and_then(|()| {
                        let path = &all[usize::from(number[0])];
                        let mut file = File::open(path).expect("what is served is there");
                        io::copy(&mut file, &mut stream)
                    });
                });
            }
        });
        Self { addr }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Fetches a stream through whatever is at `from`; returns its length.
pub(crate) fn fetch(from: SocketAddr, number: u8, to: &mut impl Write) -> u64 {
    let mut stream = TcpStream::connect(from).expect("the network listens");
    stream.set_nodelay(true).expect("a socket takes options");
    stream.write_all(&[number]).expect("the network carries");
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return total,
            Ok(n) => {
                to.write_all(&buffer[..n]).expect("the receiver takes all");
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the stream broke off after {total} bytes: {error}"),
        }
    }
}
