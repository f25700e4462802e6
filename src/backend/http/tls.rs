//! TLS towards upstream: whom to trust, and who we are. Reads the PEM files that a config names.
//!
//! Always rustls with ring, named here, so that no default of the process decides.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt;

use crate::backend::Config;

/// With a `ca_file` only that is trusted; else what the platform trusts. Plain HTTP trusts nobody,
/// and so needs no platform bundle, which small containers lack.
pub(super) fn client_config(is_https: bool, config: &Config) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &config.ca_file {
        Some(path) => builder.with_root_certificates(read_roots(path)?),
        None if is_https => platform(builder)?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    let mut tls = match &config.client_cert {
        None => builder.with_no_client_auth(),
        Some((cert_path, key_path)) => {
            let key = PrivateKeyDer::from_pem_file(key_path)
                .map_err(|error| unreadable("client_key", key_path, "a private key", &error))?;
            let chain = read_certificates("client_cert", cert_path)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!(
                    "client_cert {} and client_key {} do not belong together: {error}",
                    cert_path.display(),
                    key_path.display()
                )
            })?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn platform(
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    builder.with_platform_verifier().map_err(|error| {
        format!("{error}; install the package ca-certificates, or name a file by ca_file")
    })
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("ca_file", path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("ca_file {}: not a CA: {error}", path.display()))?;
    }
    Ok(roots)
}

fn read_certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let what = "a certificate";
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(setting, path, what, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(setting, path, what, &pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn unreadable(setting: &str, path: &Path, what: &str, error: &pem::Error) -> String {
    let path = path.display();
    match error {
        pem::Error::Io(error) => format!("{setting} {path}: {error}"),
        pem::Error::NoItemsFound => format!("{setting} {path}: holds no PEM block of {what}"),
        other => format!("{setting} {path}: not PEM: {other}"),
    }
}
