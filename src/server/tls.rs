//! The certificate of this server, its renewal, and TLS handshakes.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{error, info, warn};

use super::certificate::{Certificate, USABLE_KEYS, Validity, ValidityWarnings};
use crate::bounded_file;
use crate::http::unix_now;
use crate::pem::{self, Expected};

/// How often the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The largest file that is read. A chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate with its key, reloaded when its files change. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<TlsState>);

#[derive(Debug)]
struct TlsState {
    files: Files,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The contents of the files. No `Debug`, because it holds a key.
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

#[derive(Debug)]
struct Loaded {
    /// The SHA-256 of the contents in use. The key itself is held only by its signer.
    digest: [u8; 32],
    /// The facts of the certificate.
    certificate: Certificate,
    /// The last error of a reload, as it was logged.
    problem: Option<String>,
}

impl Pem {
    fn digest(&self) -> [u8; 32] {
        let parts = Sha256::digest(&self.certificate).into_iter().chain(Sha256::digest(&self.key));
        Sha256::digest(parts.collect::<Vec<u8>>()).into()
    }
}

/// The certificate of the next handshake, for any server name.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// An error in one of the two files. The text begins with its path.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file.
    #[error("{0}")]
    Certificate(String),
    /// The key file.
    #[error("{0}")]
    Key(String),
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its private key: PEM files.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = Files { certificate, key };
        let provider = ring::default_provider();
        let pem = files.read()?;
        let (key, certificate) = files.parse(&pem, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(key))));
        let loaded = Mutex::new(Loaded { digest: pem.digest(), certificate, problem: None });
        let config = config(provider, &current)
            .map_err(|error| TlsError::Certificate(format!("{}: {error}", files.certificate.display())))?;
        Ok(Self(Arc::new(TlsState { files, current, config: Arc::new(config), loaded })))
    }

    /// Reads the files again, and uses them from the next connection on if they are valid. Otherwise the error is logged
    /// once, and the previous certificate stays in use.
    pub fn reload(&self) {
        let TlsState { files, current, config, loaded } = &*self.0;
        let mut loaded = loaded.lock();
        let renewed = files.read().and_then(|pem| {
            let digest = pem.digest();
            let is_new = digest != loaded.digest;
            let parsed = is_new.then(|| files.parse(&pem, config.crypto_provider())).transpose()?;
            Ok(parsed.map(|parsed| (digest, parsed)))
        });
        let problem = match renewed {
            Ok(None) => None,
            Ok(Some((digest, (key, certificate)))) => {
                *current.0.write() = Arc::new(key);
                (loaded.digest, loaded.certificate) = (digest, certificate);
                info!(file = %files.certificate.display(), "certificate renewed");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem.as_ref().filter(|_| problem != loaded.problem) {
            error!("cannot renew the certificate, the previous one stays in use: {problem}");
        }
        loaded.problem = problem;
    }

    /// A message about the certificate's validity now, and whether clients reject it therefore.
    #[must_use]
    pub fn validity_warning(&self) -> Option<(bool, String)> {
        let (now, loaded) = (unix_now(), self.0.loaded.lock());
        let is_rejected = matches!(loaded.certificate.validity(now), Validity::NotYet | Validity::Expired);
        loaded.certificate.validity_message(now).map(|remark| (is_rejected, self.of_certificate(&remark)))
    }

    /// Reloads the files once a minute, and warns of the certificate's validity, until it is dropped.
    pub(super) async fn watch(&self) {
        let mut warned = ValidityWarnings::at_start(&self.0.loaded.lock().certificate, unix_now());
        loop {
            sleep(CHECK_INTERVAL).await;
            let tls = self.clone();
            // This fails only when the runtime stops.
            let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
            if let Some(remark) = warned.due(&self.0.loaded.lock().certificate, unix_now()) {
                warn!("{}", self.of_certificate(&remark));
            }
        }
    }

    fn of_certificate(&self, remark: &str) -> String {
        format!("{} {remark}", self.0.files.certificate.display())
    }

    /// Performs a TLS handshake.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        Ok(Box::new(TlsAcceptor::from(Arc::clone(&self.0.config)).accept(stream).await?))
    }
}

/// Why a handshake failed, as a text for the log.
pub(super) fn handshake_error(error: &io::Error) -> Cow<'static, str> {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::NoApplicationProtocol) => {
            "the client offers no http/1.1 by ALPN (only h2, for instance)".into()
        }
        Some(_) | None => error.to_string().into(),
    }
}

fn config(provider: CryptoProvider, current: &Arc<Current>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(current) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Clients keep the session tickets for short handshakes: many may reconnect at once.
    config.ticketer = ring::Ticketer::new()?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

impl Files {
    fn read(&self) -> Result<Pem, TlsError> {
        let certificate = read(&self.certificate).map_err(TlsError::Certificate)?;
        Ok(Pem { certificate, key: read(&self.key).map_err(TlsError::Key)? })
    }

    fn parse(&self, pem: &Pem, provider: &CryptoProvider) -> Result<(CertifiedKey, Certificate), TlsError> {
        // The parsers' errors may quote the file, and one file holds a secret: they are not repeated.
        let of_certificate =
            |why: &str| TlsError::Certificate(format!("{} {why}", self.certificate.display()));
        let of_key = |why: &str| TlsError::Key(format!("{} {why}", self.key.display()));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| of_certificate("is not a valid PEM file: a part of it is cut off or changed"))?;
        let Some(first) = chain.first() else {
            let instead = pem::explain(Expected::Certificates, &self.certificate, &pem.certificate);
            return Err(of_certificate(&instead));
        };
        let Some(certificate) = Certificate::parse(first) else {
            return Err(of_certificate("begins with something else than a certificate of X.509"));
        };
        if let Some(why) = certificate.unusable_reason() {
            return Err(of_certificate(&why));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| {
            let file = self.key.display();
            let is_encrypted = pem.key.windows(9).any(|word| word == b"ENCRYPTED");
            of_key(&match is_encrypted {
                true => format!(
                    "is encrypted with a passphrase: decrypt it with `openssl pkey -in {file} -out key.pem`"
                ),
                false => pem::explain(Expected::Key, &self.key, &pem.key),
            })
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|_| {
            let of_any = || format!("holds no key of a supported kind: {USABLE_KEYS}");
            of_key(&certificate.unusable_key_reason().unwrap_or_else(of_any))
        })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
                Ok((certified, certificate))
            }
            Err(rustls::Error::InconsistentKeys(_)) => {
                let certificate = self.certificate.display();
                Err(of_key(&format!("does not belong to the first certificate of {certificate}")))
            }
            // The library's error is meant for developers.
            Err(_) => Err(of_certificate("begins with a certificate that TLS cannot use")),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    bounded_file::read(path, FILE_BYTES_MAX).map_err(|why| format!("{} {why}", path.display()))
}
