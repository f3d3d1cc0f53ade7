//! TLS of our own: the certificate, its renewal, and the handshake.

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

use super::certificate::{Certificate, Dates, KEYS, Warned};
use crate::bounded_file;
use crate::http::unix_now;
use crate::pem::{self, Wanted};

/// How often the files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The largest file that is read. A chain has a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A certificate with its key, as the files hold them now. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: Files,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
    watched: Mutex<Watched>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What the files said. No `Debug`: it holds a key.
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

#[derive(Debug)]
struct Watched {
    /// The SHA-256 of what is in use: the key itself is kept once, where it signs.
    digest: [u8; 32],
    /// What it says of itself.
    certificate: Certificate,
    /// What is wrong with the files since, as it was logged.
    complaint: Option<String>,
}

impl Pem {
    fn digest(&self) -> [u8; 32] {
        let parts = Sha256::digest(&self.certificate).into_iter().chain(Sha256::digest(&self.key));
        Sha256::digest(parts.collect::<Vec<u8>>()).into()
    }
}

/// The certificate that the next handshake shows, whatever name is asked for.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// What is wrong with one of the two files. The text begins with its path.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of the certificate.
    #[error("{0}")]
    Certificate(String),
    /// The file of the key.
    #[error("{0}")]
    Key(String),
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and the private key that belongs to it: PEM files.
    ///
    /// # Errors
    /// Which of the files is not as it should be, and why.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = Files { certificate, key };
        let provider = ring::default_provider();
        let pem = files.read()?;
        let (key, certificate) = files.parse(&pem, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(key))));
        let watched = Mutex::new(Watched { digest: pem.digest(), certificate, complaint: None });
        let config = config(provider, &current)
            .map_err(|error| TlsError::Certificate(format!("{}: {error}", files.certificate.display())))?;
        Ok(Self(Arc::new(Inner { files, current, config: Arc::new(config), watched })))
    }

    /// Reads the files again, and uses them from the next connection on if they are good. If not, says so once in
    /// the log and goes on with what was read before.
    pub fn reload(&self) {
        let Inner { files, current, config, watched } = &*self.0;
        let mut watched = watched.lock();
        let renewed = files.read().and_then(|pem| {
            let digest = pem.digest();
            let is_new = digest != watched.digest;
            let parsed = is_new.then(|| files.parse(&pem, config.crypto_provider())).transpose()?;
            Ok(parsed.map(|parsed| (digest, parsed)))
        });
        let complaint = match renewed {
            Ok(None) => None,
            Ok(Some((digest, (key, certificate)))) => {
                *current.0.write() = Arc::new(key);
                (watched.digest, watched.certificate) = (digest, certificate);
                info!(file = %files.certificate.display(), "the certificate was renewed");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(complaint) = complaint.as_ref().filter(|_| complaint != watched.complaint) {
            error!("cannot renew the certificate, and goes on with the one before: {complaint}");
        }
        watched.complaint = complaint;
    }

    /// What to say of the dates of the certificate now, and whether clients refuse it for them.
    #[must_use]
    pub fn dates_remark(&self) -> Option<(bool, String)> {
        let (now, watched) = (unix_now(), self.0.watched.lock());
        let refused = matches!(watched.certificate.dates(now), Dates::NotYet | Dates::Expired);
        watched.certificate.remark(now).map(|remark| (refused, self.of_certificate(&remark)))
    }

    /// Reads the files again once a minute, and warns of the certificate's dates, until it is dropped.
    pub(super) async fn watch(&self) {
        let mut warned = Warned::at_start(&self.0.watched.lock().certificate, unix_now());
        loop {
            sleep(CHECK_INTERVAL).await;
            let tls = self.clone();
            // An error is a runtime that ends.
            let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
            if let Some(remark) = warned.due(&self.0.watched.lock().certificate, unix_now()) {
                warn!("{}", self.of_certificate(&remark));
            }
        }
    }

    fn of_certificate(&self, remark: &str) -> String {
        format!("{} {remark}", self.0.files.certificate.display())
    }

    /// Shakes hands.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        Ok(Box::new(TlsAcceptor::from(Arc::clone(&self.0.config)).accept(stream).await?))
    }
}

/// Why hands were not shaken, in words that fit the log.
pub(super) fn why_failed(error: &io::Error) -> Cow<'static, str> {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::NoApplicationProtocol) => {
            "by ALPN the client offers protocols of which none is http/1.1, such as h2 alone".into()
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
    // Clients keep what is needed to come back with a short handshake: many may come back at once.
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
        // What the parsers say may quote the file, and one of them holds a secret: it is not repeated.
        let of_certificate =
            |why: &str| TlsError::Certificate(format!("{} {why}", self.certificate.display()));
        let of_key = |why: &str| TlsError::Key(format!("{} {why}", self.key.display()));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| of_certificate("is not a valid PEM file: a part of it is cut off or changed"))?;
        let Some(first) = chain.first() else {
            let instead = pem::instead(Wanted::Certificates, &self.certificate, &pem.certificate);
            return Err(of_certificate(&instead));
        };
        let Some(certificate) = Certificate::of(first) else {
            return Err(of_certificate("begins with something else than a certificate of X.509"));
        };
        if let Some(why) = certificate.refusal() {
            return Err(of_certificate(&why));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| {
            let file = self.key.display();
            let is_encrypted = pem.key.windows(9).any(|word| word == b"ENCRYPTED");
            of_key(&match is_encrypted {
                true => format!(
                    "is encrypted with a passphrase: decrypt it with `openssl pkey -in {file} -out key.pem`"
                ),
                false => pem::instead(Wanted::Key, &self.key, &pem.key),
            })
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|_| {
            let of_any = || format!("holds no key of a kind that is known: {KEYS}");
            of_key(&certificate.key_refusal().unwrap_or_else(of_any))
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
            // What the library says is for its developers.
            Err(_) => Err(of_certificate("begins with a certificate that TLS cannot use")),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    bounded_file::read(path, FILE_BYTES_MAX).map_err(|why| format!("{} {why}", path.display()))
}
