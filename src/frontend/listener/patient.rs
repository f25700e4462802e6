//! A connection whose other end must go on reading: an answer that nobody takes is given up, so that its
//! place and its memory are another's. What is read is none of its business.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::frontend::listener::activity::Activity;

/// Between two times that some of an answer could be written. The kernel buffers megabytes, and says that
/// there is room when a third of them has gone.
const UNREAD_WITHIN: Duration = Duration::from_secs(120);

/// So much comes of one who only answers whether he is there.
const NO_BODY: usize = 64;

/// See the module.
pub(super) struct Patient<S> {
    stream: S,
    waiting: Option<Pin<Box<Sleep>>>,
    activity: Arc<Activity>,
}

impl<S: Unpin> Patient<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        activity.stuck(false);
        Self { stream, waiting: None, activity }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn wait<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.waiting.take().is_some() {
                self.activity.stuck(false);
            }
            return written;
        }
        self.activity.stuck(true);
        let begin = || Box::pin(tokio::time::sleep(UNREAD_WITHIN));
        ready!(self.waiting.get_or_insert_with(begin).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads the answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() - before > NO_BODY {
            self.activity.moves();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wait(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.wait(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.wait(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.wait(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up_and_a_slow_one_is_not() {
        let (stream, mut other) = tokio::io::duplex(64);
        let mut stream = Patient::new(stream, Arc::default());
        let slow = async {
            let mut got = [0; 32];
            for _ in 0..8 {
                tokio::time::sleep(UNREAD_WITHIN / 2).await;
                other.read_exact(&mut got).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[7; 8 * 32]), slow);
        written.unwrap();
        stream.write_all(&[7; 64]).await.unwrap();
        let error = stream.write_all(&[7; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
