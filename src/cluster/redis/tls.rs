//! TLS to Redis, and the verification of its certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;
use tracing::warn;

use super::StartError;
use super::options::TlsOptions;
use crate::bounded_file;
use crate::pem::{self, Expected};

/// Largest CA file: four times the size of a system's bundle.
const CA_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads the CA certificates once, so that errors show at the start.
pub(super) fn connector(options: &TlsOptions) -> Result<TlsConnector, StartError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions of TLS");
    let config = if options.accepts_any {
        config.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
    } else {
        config.with_root_certificates(roots(options)?)
    };
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

fn roots(options: &TlsOptions) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &options.ca_file else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
            warn!(errors = errors.join("; "), "the system has no CA certificates: TLS to Redis will fail");
        }
        return Ok(roots);
    };
    Ok(authorities(path)?)
}

/// Why a CA file cannot be used. The text begins with its path.
#[derive(Debug, thiserror::Error)]
#[error("{} {why}", path.display())]
pub struct AuthoritiesError {
    path: PathBuf,
    why: String,
}

/// Checks that the file `path` holds usable CA certificates.
///
/// # Errors
/// [`AuthoritiesError`].
pub fn check_authorities(path: &Path) -> Result<(), AuthoritiesError> {
    authorities(path).map(drop)
}

/// Reads the certificates in the file `path`. The libraries' error texts are for their developers, so they are not
/// shown.
fn authorities(path: &Path) -> Result<RootCertStore, AuthoritiesError> {
    let error = |why: String| AuthoritiesError { path: path.to_owned(), why };
    let bytes = bounded_file::read(path, CA_FILE_BYTES_MAX).map_err(|why| error(why.to_string()))?;
    let mut roots = RootCertStore::empty();
    for (at, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&bytes)) {
        let certificate = certificate.map_err(|_| {
            error(format!("is not a valid PEM file: certificate {at} in it is cut off or changed"))
        })?;
        roots.add(certificate).map_err(|_| {
            error(format!("holds something else than a certificate of X.509 as certificate {at}"))
        })?;
    }
    if roots.is_empty() {
        return Err(error(pem::explain(Expected::Certificates, path, &bytes)));
    }
    Ok(roots)
}

/// Accepts any certificate, as long as the peer has its key.
#[derive(Debug)]
pub struct AcceptAnyCertificate(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
