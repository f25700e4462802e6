//! What a connection speaks, seen from its first bytes, which are then read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frontend::listener::{FIRST, H2_PREFACE};
use crate::wire::go::PREFACE;

pub(super) enum Speaks {
    Larder,
    Http1,
    Http2,
}

/// A connection whose first bytes were read.
pub(super) struct Opened<S> {
    pub(super) speaks: Speaks,
    pub(super) stream: Rewound<S>,
}

impl<S: AsyncRead + Unpin> Opened<S> {
    pub(super) async fn read(stream: S) -> io::Result<Self> {
        let mut stream = Rewound::new(stream);
        loop {
            stream.more().await?;
            let first = &stream.first;
            let is = |preface: &[u8]| preface.starts_with(&first[..first.len().min(preface.len())]);
            let whole = |preface: &[u8]| first.len() >= preface.len();
            let speaks = match (is(PREFACE), is(H2_PREFACE)) {
                (true, _) if whole(PREFACE) => {
                    stream.first.advance(PREFACE.len());
                    Speaks::Larder
                }
                (_, true) if whole(H2_PREFACE) => Speaks::Http2,
                (false, false) => Speaks::Http1,
                _ => continue,
            };
            return Ok(Self { speaks, stream });
        }
    }
}

/// A stream whose first bytes are read again.
pub(super) struct Rewound<S> {
    first: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { first: Bytes::new(), stream }
    }

    /// Gives back what was read of it, which is to be read before everything else.
    pub(super) fn unread(&mut self, read: Bytes) {
        self.first = match (read.is_empty(), self.first.is_empty()) {
            (true, _) => return,
            (_, true) => read,
            _ => [read, std::mem::take(&mut self.first)].concat().into(),
        };
    }

    pub(super) const fn is_unread(&self) -> bool {
        !self.first.is_empty()
    }
}

impl<S: AsyncRead + Unpin> Rewound<S> {
    /// Waits for more bytes, which are read again like the first ones. The end is an error.
    pub(super) async fn more(&mut self) -> io::Result<()> {
        // On the stack, and only once there is something: who says nothing has no buffer.
        let more = std::future::poll_fn(|context| {
            let mut piece = [0; FIRST];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
            Poll::Ready(io::Result::Ok([&self.first[..], piece.filled()].concat()))
        });
        let more = more.await?;
        if more.len() == self.first.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.first = more.into();
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let take = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(take));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
