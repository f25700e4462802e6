//! The connections to one upstream: what multiplexes where that is spoken, and, for parts of packs,
//! one connection each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderMap, RANGE};
use reqwest::{Client, RequestBuilder, Response};
use rustls::ClientConfig;

use super::{NO_CACHE, cause, tls};
use crate::backend::{BackendError, Config};

/// Below the 60 s after which common load balancers hang up, so that we never write into a
/// connection that the other side is just closing.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// At 100 ms and 1 Gbit/s, 12 MiB are under way at once: a smaller window would be the limit.
const STREAM_WINDOW: u32 = 16 << 20;
/// Room for two bodies at full speed; what a caller leaves unread stays within it.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// A connection shared by all requests must not stay in use after the other side has vanished.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Clients {
    /// For everything small: HTTP/2 over TLS where upstream speaks it.
    pub(super) shared: Client,
    /// Over TLS, for parts. All streams of HTTP/2 are one connection, whose window opens as slowly
    /// as that of one, and loses as one; a part on a connection of its own does not wait for others.
    apart: Option<Client>,
    /// Upstream speaks HTTP/2 and nothing else.
    is_apart_refused: AtomicBool,
}

impl Clients {
    pub(super) fn new(
        config: &Config,
        is_https: bool,
        headers: &HeaderMap,
    ) -> Result<Self, String> {
        let tls = tls::client_config(is_https, config)?;
        let apart = is_https.then(|| {
            let mut tls = tls.clone();
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            client(config, tls, headers, true)
        });
        let shared = client(config, tls, headers, false)?;
        Ok(Self { shared, apart: apart.transpose()?, is_apart_refused: AtomicBool::new(false) })
    }

    /// Asks for a part, on a connection that it shares with no other while it comes.
    pub(super) async fn part(
        &self,
        url: &str,
        range: &str,
        is_fresh: bool,
    ) -> Result<Response, BackendError> {
        let ask = |client: &Client| {
            let request = client.get(url).header(RANGE, range);
            send(if is_fresh { request.header(CACHE_CONTROL, NO_CACHE) } else { request })
        };
        let is_refused = self.is_apart_refused.load(Ordering::Relaxed);
        let Some(apart) = self.apart.as_ref().filter(|_| !is_refused) else {
            return ask(&self.shared).await;
        };
        match ask(apart).await {
            Err(BackendError::Connect(why)) if is_no_protocol(&why) => {
                if !self.is_apart_refused.swap(true, Ordering::Relaxed) {
                    tracing::info!(%why, "upstream takes no HTTP/1.1; parts share one connection");
                }
                ask(&self.shared).await
            }
            answer => answer,
        }
    }
}

/// Whether upstream has said that it speaks none of the protocols that were offered.
fn is_no_protocol(why: &str) -> bool {
    let letters: String = why.chars().filter(char::is_ascii_alphabetic).collect();
    letters.to_ascii_lowercase().contains("noapplicationprotocol")
}

fn client(
    config: &Config,
    tls: ClientConfig,
    headers: &HeaderMap,
    is_apart: bool,
) -> Result<Client, String> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers.clone())
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(config.guard.connect)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(config.guard.gets_max + config.guard.puts_max)
        .tcp_nodelay(true)
        .http2_adaptive_window(false)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_WAIT);
    let builder = if is_apart { builder.http1_only() } else { builder };
    builder.build().map_err(|error| cause(&error))
}

pub(super) async fn send(request: RequestBuilder) -> Result<Response, BackendError> {
    request.send().await.map_err(|error| {
        if error.is_connect() {
            let timed_out = error.is_timeout();
            BackendError::Connect(if timed_out { "timed out".into() } else { cause(&error) })
        } else {
            BackendError::Broken(cause(&error))
        }
    })
}
