//! The certificates by which server and clients know each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, ErrorKind, Result};

/// A directory with the certificates of a server, under the names that QEMU and nbdkit look for: `server-cert.pem`,
/// `server-key.pem` and `ca-cert.pem`, of the authority whose clients are let in. Who has no certificate of that authority is
/// not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Those in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// # Errors
    /// When a file is missing or is not what it should be.
    pub(super) fn load(&self) -> Result<Arc<ServerConfig>> {
        let path = |name: &str| self.0.join(name);
        let (authority, certificate, key) = (path("ca-cert.pem"), path("server-cert.pem"), path("server-key.pem"));
        let mut roots = RootCertStore::empty();
        for root in certificates_in(&authority)? {
            roots.add(root).map_err(|source| bad(&authority, source))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| bad(&authority, source))?;
        let chain = certificates_in(&certificate)?;
        let secret = PrivateKeyDer::from_pem_file(&key).map_err(|source| bad(&key, source))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| bad(&certificate, source))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, secret)
            .map_err(|source| bad(&certificate, source))?;
        Ok(Arc::new(config))
    }
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let all = all.map_err(|source| bad(path, source))?;
    if all.is_empty() {
        return Err(Error::invalid(format!("{} holds no certificate", path.display())));
    }
    Ok(all)
}

fn bad(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("cannot use {} for TLS", path.display()))
        .with_source(source)
        .with_hint("--tls takes a directory with ca-cert.pem, server-cert.pem and server-key.pem")
}
