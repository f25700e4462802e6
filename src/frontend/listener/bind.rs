//! Taking the addresses and the socket that are served; what is taken already is said, not fatal. What
//! somebody else has bound for us is `passed`'s, and takes the place of what would be bound here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::frontend::listener::passed::{Passed, Socket};
use crate::frontend::{Config, Listen};

/// Connections that wait to be accepted: a crowd may come at once. The kernel has a most of its own.
const BACKLOG: i32 = 4096;

/// Why a listener cannot be had. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {at}: {source}; stop what is there or choose another with --listen")]
    Tcp { at: SocketAddr, source: io::Error },
    #[error("cannot listen on {path}: {source}; choose another with --socket")]
    Unix { path: PathBuf, source: io::Error },
    #[error(
        "somebody listens on {0}; if it is another larder, `larder stop` ends it; else choose another socket with --socket"
    )]
    Taken(PathBuf),
    #[error("{0} is there and is no socket; choose another with --socket")]
    NoSocket(PathBuf),
    #[error("{dir} belongs to user {owner}; choose another socket with --socket")]
    NotOurs { dir: PathBuf, owner: u32 },
    #[error("tls: {0}")]
    Tls(String),
    #[error("the passed socket {name} (descriptor {descriptor}) cannot be served: {why}")]
    Passed { descriptor: usize, name: String, why: String },
    #[error(
        "the passed socket {at} lets other machines in, and nothing says which: name those that may come in with --tokens, or let everybody in with --insecure"
    )]
    Open { at: SocketAddr },
}

/// A bound listener.
pub enum Listener {
    Tcp(TcpListener),
    /// With its name, if that goes with it.
    Unix(UnixListener, Option<SocketFile>),
}

/// Removes the socket's name when the listener goes, unless another has taken it meanwhile.
pub struct SocketFile {
    path: PathBuf,
    is: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), is: file_at(path)? })
    }
}

/// Device and inode.
fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_at(&self.path).is_ok_and(|there| there == self.is) {
            // Gone already is fine.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Everything bound, before anything is served.
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub tls: Option<TlsAcceptor>,
    /// Where HTTP is served over TCP.
    pub http: Vec<String>,
}

impl Bound {
    fn tcp(&mut self, listener: TcpListener) {
        if let Ok(at) = listener.local_addr() {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            self.http.push(format!("{scheme}://{at}"));
        }
        self.listeners.push(Listener::Tcp(listener));
    }

    fn unix(
        &mut self,
        path: &Path,
        passed: Option<std::os::unix::net::UnixListener>,
        is_shared: bool,
    ) -> Result<(), BindError> {
        let listener = match passed {
            None => bind_unix(path, is_shared)?,
            Some(listener) => {
                let listener = UnixListener::from_std(listener);
                let listener =
                    listener.map_err(|source| BindError::Unix { path: path.to_owned(), source })?;
                Listener::Unix(listener, None)
            }
        };
        self.listeners.push(listener);
        Ok(())
    }
}

/// Binds every listener that was not passed. The default port may be somebody else's: then the socket
/// serves alone. What was passed and is in no setting is served besides.
pub async fn bind(config: &Config, mut passed: Passed) -> Result<Bound, BindError> {
    let tls = tls(config)?;
    passed.check_exposure(config)?;
    let is_shared = !config.allow_uid.is_empty();
    let mut bound = Bound { listeners: Vec::new(), tls, http: Vec::new() };
    bound.unix(&config.socket, passed.unix(&config.socket), is_shared)?;
    for listen in &config.listen {
        match listen {
            Listen::Unix(path) if *path == config.socket => {}
            Listen::Unix(path) => bound.unix(path, passed.unix(path), is_shared)?,
            Listen::Tcp(at) => match passed.tcp(*at) {
                Some(listener) => bound.tcp(from_std(*at, listener)?),
                None => bind_tcp(config, *at, &mut bound).await?,
            },
        }
    }
    for socket in passed.rest() {
        match socket {
            Socket::Tcp(at, listener) => {
                tracing::info!(%at, "a socket was passed that no setting names: served besides");
                bound.tcp(from_std(at, listener)?);
            }
            Socket::Unix(path, listener) => {
                let at = path.display();
                tracing::info!(%at, "a socket was passed that no setting names: served besides");
                bound.unix(&path, Some(listener), is_shared)?;
            }
        }
    }
    Ok(bound)
}

async fn bind_tcp(config: &Config, at: SocketAddr, bound: &mut Bound) -> Result<(), BindError> {
    match TcpListener::bind(at).await.and_then(with_backlog) {
        Ok(listener) => bound.tcp(listener),
        Err(source) if config.listen_is_default && source.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(
                "port {} is taken; serving on the socket alone (choose a port with --listen)",
                at.port()
            );
        }
        Err(source) => return Err(BindError::Tcp { at, source }),
    }
    Ok(())
}

/// Listens anew: what was bound has a backlog that suits most programs.
fn with_backlog<L: AsFd>(listener: L) -> io::Result<L> {
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn from_std(at: SocketAddr, listener: std::net::TcpListener) -> Result<TcpListener, BindError> {
    TcpListener::from_std(listener).map_err(|source| BindError::Tcp { at, source })
}

/// What TLS is served with, if it is.
pub fn tls(config: &Config) -> Result<Option<TlsAcceptor>, BindError> {
    config.tls.as_ref().map(|(cert, key)| tls_acceptor(cert, key)).transpose()
}

/// With `is_shared`, others may reach the socket, and who they are is looked at when they connect.
fn bind_unix(path: &Path, is_shared: bool) -> Result<Listener, BindError> {
    let io = |source| BindError::Unix { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        prepare_dir(dir, is_shared).map_err(io)?;
        let owner = std::fs::metadata(dir).map_err(io)?.uid();
        let uid = rustix::process::geteuid().as_raw();
        // In a directory of somebody else, the socket could be swapped under our clients' feet.
        if owner != uid && owner != 0 {
            return Err(BindError::NotOurs { dir: dir.to_owned(), owner });
        }
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(BindError::Taken(path.to_owned()));
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).and_then(with_backlog).map_err(io)?;
    let mode = if is_shared { 0o666 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io)?;
    let file = SocketFile::of(path).map_err(io)?;
    Ok(Listener::Unix(listener, Some(file)))
}

/// A socket that nobody listens on is what a killed daemon has left. Anything else is somebody's.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io = |source| BindError::Unix { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(io),
        Ok(_) => Err(BindError::NoSocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
    }
}

/// A directory that we make lets others through if the socket is shared. One that is there stays as
/// it is: it may hold more than our socket.
fn prepare_dir(dir: &Path, is_shared: bool) -> io::Result<()> {
    let is_new = !dir.exists();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if !is_shared {
        return Ok(());
    }
    if is_new {
        return std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711));
    }
    if std::fs::metadata(dir)?.mode() & 0o011 == 0 {
        tracing::warn!(
            "{} lets no other user through to the socket: chmod o+x, or name another with --socket",
            dir.display()
        );
    }
    Ok(())
}

fn tls_acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, BindError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let fault = |path: &Path, error: &dyn std::fmt::Display| {
        BindError::Tls(format!(
            "{}: {error}; give PEM files with --tls-cert and --tls-key",
            path.display()
        ))
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(cert, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(cert, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| fault(cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
