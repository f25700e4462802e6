//! A plain HTTP store upstream: GET, PUT and HEAD by name, on reqwest.
//!
//! Here are the URL of an entry, what each status means, and how bodies are checked on their way.
//! Deadlines (but for connecting), retries and the breaker live in the guard; TLS files in `tls`.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::time::Duration;

use base64::Engine as _;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap,
    HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, StatusCode, Version};
use reqwest::{Response, Url};

use crate::backend::{
    Backend, BackendError, BuildError, Config, Credentials, Fetched, FetchedPart, Name, Upload,
    WriteMethod,
};
use crate::entry::{BodyError, Chunks, Why};

use clients::Clients;

mod body;
mod clients;
mod part;
mod tls;

#[cfg(test)]
mod fault_server;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

/// More than any error page: reading it to its end is cheaper than another handshake.
const DRAIN_MAX: usize = 64 << 10;
/// The status has already told everything: an error page that trickles is not worth waiting for.
const DRAIN_WAIT: Duration = Duration::from_millis(100);
/// Enough to hide a round trip; eight more questions at a time would crowd out the builds' own.
const HEADS_AT_ONCE: usize = 8;
/// Asks caches on the way for what is at the source.
const NO_CACHE: &str = "no-cache";
/// Set by a larder that is upstream of this one, where a miss is not absence.
const MISS_HEADER: &str = "larder-miss";

/// An HTTP store: larder itself, bazel-remote, nginx with DAV, and whatever else takes PUT.
pub struct HttpBackend {
    clients: Clients,
    /// Without a slash at its end, without credentials.
    base: String,
    /// None: nothing may be written.
    write: Option<Method>,
}

impl HttpBackend {
    pub fn new(config: &Config) -> Result<Self, BuildError> {
        Self::try_new(config).map_err(|problem| BuildError { name: config.name.clone(), problem })
    }

    fn try_new(config: &Config) -> Result<Self, String> {
        let url = check_url(&config.url)?;
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization(&config.credentials)? {
            headers.insert(AUTHORIZATION, value);
        }
        let clients = Clients::new(config, url.scheme() == "https", &headers)?;
        let write = config.write.then_some(match config.write_method {
            WriteMethod::Put => Method::PUT,
            WriteMethod::Post => Method::POST,
        });
        Ok(Self { clients, base: config.url.trim().trim_end_matches('/').to_owned(), write })
    }

    async fn fetch(&self, name: &Name, is_fresh: bool) -> Result<Option<Fetched>, BackendError> {
        let mut request = self.clients.shared.get(url_of(&self.base, name)?);
        if is_fresh {
            request = request.header(CACHE_CONTROL, NO_CACHE);
        }
        let response = clients::send(request).await?;
        if response.status() == StatusCode::OK {
            return fetched(response).map(Some);
        }
        refusal(response).await
    }

    async fn fetch_part(
        &self,
        name: &Name,
        part: Range<u64>,
        is_fresh: bool,
    ) -> Result<Option<FetchedPart>, BackendError> {
        let part_of = |fetched| Some(FetchedPart { is_whole: false, fetched });
        if part.is_empty() {
            let fetched = Fetched { len: Some(0), chunks: Box::pin(stream::empty()) };
            return Ok(part_of(fetched));
        }
        let wanted = format!("bytes={}-{}", part.start, part.end - 1);
        let response = self.clients.part(&url_of(&self.base, name)?, &wanted, is_fresh).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if is_fresh => {
                part::answered_up_to(response, &part).map(part_of)
            }
            StatusCode::PARTIAL_CONTENT => part::answered(response, &part).map(part_of),
            // It knows no ranges.
            StatusCode::OK => fetched(response).map(FetchedPart::whole).map(Some),
            // What is there ends before the part begins.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                drain(response).await;
                Ok(None)
            }
            _ => refusal(response).await,
        }
    }

    async fn store(&self, name: &Name, body: Upload) -> Result<(), BackendError> {
        let Some(method) = &self.write else { return Err(BackendError::ReadOnly) };
        let request = self
            .clients
            .shared
            .request(method.clone(), url_of(&self.base, name)?)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, body.len)
            .body(body::to_send(&body));
        let response = clients::send(request).await?;
        let answer = match response.status().as_u16() {
            200 | 201 | 202 | 204 => Ok(()),
            405 | 501 => Err(BackendError::ReadOnly),
            404 | 410 => Err(BackendError::Status(response.status().as_u16())),
            _ => match verdict(&response) {
                Verdict::Failed(error) => Err(error),
                Verdict::Absent => Err(BackendError::Status(response.status().as_u16())),
            },
        };
        drain(response).await;
        answer
    }

    async fn head(&self, name: &Name) -> Result<bool, BackendError> {
        let response = clients::send(self.clients.shared.head(url_of(&self.base, name)?)).await?;
        match response.status().as_u16() {
            200 => Ok(true),
            // Who knows no HEAD cannot tell; "not there" only costs an upload that was not needed.
            405 | 501 => Ok(false),
            _ => match verdict(&response) {
                Verdict::Absent => Ok(false),
                Verdict::Failed(error) => Err(error),
            },
        }
    }
}

impl Backend for HttpBackend {
    fn get<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.fetch(name, false).boxed()
    }

    fn get_fresh<'a>(
        &'a self,
        name: &'a Name,
    ) -> BoxFuture<'a, Result<Option<Fetched>, BackendError>> {
        self.fetch(name, true).boxed()
    }

    fn get_fresh_part<'a>(
        &'a self,
        name: &'a Name,
        part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.fetch_part(name, part, true).boxed()
    }

    fn get_part<'a>(
        &'a self,
        name: &'a Name,
        part: Range<u64>,
    ) -> BoxFuture<'a, Result<Option<FetchedPart>, BackendError>> {
        self.fetch_part(name, part, false).boxed()
    }

    fn put<'a>(&'a self, name: &'a Name, body: Upload) -> BoxFuture<'a, Result<(), BackendError>> {
        self.store(name, body).boxed()
    }

    fn contains<'a>(&'a self, names: &'a [Name]) -> BoxFuture<'a, Result<Vec<bool>, BackendError>> {
        stream::iter(names)
            .map(|name| self.head(name))
            .buffered(HEADS_AT_ONCE)
            .try_collect()
            .boxed()
    }
}

/// What is wrong with a URL is told without the URL: it may hold a secret just where it is wrong.
fn check_url(text: &str) -> Result<Url, String> {
    let example = "write for example `https://cache.example.com/prefix`";
    let url = Url::parse(text.trim()).map_err(|error| format!("its url: {error}; {example}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("its url holds credentials, which end up in logs and process lists; put them \
                    into a file and name that by user_file (basic) or token_file (bearer)"
            .to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!(
            "its url has a `?` or `#`, but names of entries are appended to it; {example}"
        ));
    }
    Ok(url)
}

fn authorization(credentials: &Credentials) -> Result<Option<HeaderValue>, String> {
    let text = match credentials {
        Credentials::None => return Ok(None),
        Credentials::Bearer(token) => format!("Bearer {}", token.reveal()),
        Credentials::Basic { user, password } => {
            let pair = format!("{user}:{}", password.reveal());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        }
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| "its token holds bytes that no HTTP header can carry, such as a line break")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// The URL of an entry. Slashes of the name separate segments; every other byte that is not
/// unreserved is encoded, `+` too, which some stores read as a space.
fn url_of(base: &str, name: &Name) -> Result<String, BackendError> {
    let path = name.to_string();
    let mut url = String::with_capacity(base.len() + path.len() + 8);
    url.push_str(base);
    for segment in path.split('/') {
        // URLs are normalised on the way, even when encoded: `a/../b` would name another entry.
        if matches!(segment, "." | "..") {
            return Err(BackendError::Unnameable);
        }
        url.push('/');
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                url.push(char::from(byte));
            } else {
                url.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    Ok(url)
}

enum Verdict {
    Absent,
    Failed(BackendError),
}

/// What a status other than success means to any request.
fn verdict(response: &Response) -> Verdict {
    Verdict::Failed(match response.status().as_u16() {
        204 | 404 | 410 => match doubt(response.headers()) {
            None => return Verdict::Absent,
            Some(why) => BackendError::Unsure(why),
        },
        code @ 300..=399 => BackendError::Redirect(code),
        code @ (401 | 403) => BackendError::Denied(code),
        413 => BackendError::TooLarge,
        507 => BackendError::Full,
        code => BackendError::Status(code),
    })
}

/// What an answer without a body to keep means to a GET.
async fn refusal<T>(response: Response) -> Result<Option<T>, BackendError> {
    let verdict = verdict(&response);
    drain(response).await;
    match verdict {
        Verdict::Absent => Ok(None),
        Verdict::Failed(error) => Err(error),
    }
}

/// Why a miss is not absence, if the answer says so. A word that a later larder may use is doubt.
fn doubt(headers: &HeaderMap) -> Option<Why> {
    let said = headers.get(MISS_HEADER)?.to_str().unwrap_or_default();
    match Why::from_name(said).unwrap_or(Why::Fault) {
        Why::Absent | Why::Local => None,
        why @ (Why::Fault | Why::Deadline | Why::Breaker | Why::Policy) => Some(why),
    }
}

/// The body of a success, if it is certain to arrive as it was stored.
fn fetched(response: Response) -> Result<Fetched, BackendError> {
    let headers = response.headers();
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(BackendError::Broken(format!(
            "upstream encoded the body ({encoding:?}), which changes its bytes"
        )));
    }
    let len = response.content_length();
    if response.version() < Version::HTTP_2 && !says_its_end(headers) {
        // Then the end of the connection is the end of the body, and a cut looks like success.
        return Err(BackendError::Broken("upstream does not say where the body ends".into()));
    }
    Ok(Fetched { len, chunks: received(response, len) })
}

/// Whether HTTP/1 frames the body. A transfer coding that is not chunked goes before the length, and ends
/// with the connection: RFC 9112, section 6.3.
fn says_its_end(headers: &HeaderMap) -> bool {
    match headers.get_all(TRANSFER_ENCODING).iter().next_back() {
        None => headers.contains_key(CONTENT_LENGTH),
        Some(codings) => {
            let last = codings.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
            last.trim_ascii().eq_ignore_ascii_case(b"chunked")
        }
    }
}

fn received(response: Response, len: Option<u64>) -> Chunks {
    let pieces = Box::pin(response.bytes_stream());
    Box::pin(stream::unfold(Some((pieces, 0_u64)), move |state| async move {
        let (mut pieces, got) = state?;
        match pieces.next().await {
            Some(Ok(piece)) => {
                let got = got + piece.len() as u64;
                Some((Ok(piece), Some((pieces, got))))
            }
            Some(Err(error)) => Some((Err(broken_off(&error, got)), None)),
            None if len.is_some_and(|len| got < len) => {
                Some((Err(BodyError::Truncated { got }), None))
            }
            None => None,
        }
    }))
}

fn broken_off(error: &reqwest::Error, got: u64) -> BodyError {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::UnexpectedEof) {
            return BodyError::Truncated { got };
        }
        source = error.source();
    }
    BodyError::Broken(cause(error))
}

/// Reads what is left of an answer, so that its connection can be used again. Where that would
/// take too much or too long, the connection is dropped with the answer.
async fn drain(mut response: Response) {
    if response.content_length().is_some_and(|len| len > DRAIN_MAX as u64) {
        return;
    }
    let reading = async {
        let mut left = DRAIN_MAX;
        while let Ok(Some(piece)) = response.chunk().await {
            let Some(rest) = left.checked_sub(piece.len()) else { return };
            left = rest;
        }
    };
    // Either way the answer stands.
    let _ = tokio::time::timeout(DRAIN_WAIT, reading).await;
}

/// The innermost reason, which alone says something to a person. It never holds the URL.
fn cause(error: &reqwest::Error) -> String {
    let Some(mut innermost) = error.source() else {
        return if error.is_timeout() { "timed out" } else { "the request cannot be made" }.into();
    };
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    if text.contains("CaUsedAsEndEntity") {
        // What `openssl req -x509` makes.
        return "the server's certificate is that of an authority (CA:TRUE); give the server one of its \
                own, signed by the authority that `ca_file` names"
            .to_owned();
    }
    text
}
