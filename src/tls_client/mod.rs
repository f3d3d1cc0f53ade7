//! TLS to the servers that pusherd connects to: receivers of webhooks, Redis, and itself (`pusherd health`).
//!
//! The client configuration of rustls is made here and nowhere else: its cryptography, its versions (TLS 1.2 and 1.3), and
//! how the certificate of a server is verified. This module does not know what the connections are for. Start at
//! [`TlsClient`]; [`Authorities`] are the certificates that it trusts.

mod authorities;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme, WantsVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use authorities::{Authorities, AuthoritiesError};

/// Connects over TLS. Cloning shares the configuration.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClient")
    }
}

impl TlsClient {
    /// Accepts a certificate that one of the authorities has issued for the host that is connected to.
    #[must_use]
    pub fn verifying(authorities: Authorities) -> Self {
        Self::with(|config, _| config.with_root_certificates(authorities.into_roots()))
    }

    /// Accepts any certificate, as long as the server has its key.
    #[must_use]
    pub fn accepting_any() -> Self {
        Self::with(|config, provider| {
            let verifier = Arc::new(AcceptAnyCertificate(Arc::clone(provider)));
            config.dangerous().with_custom_certificate_verifier(verifier)
        })
    }

    fn with(
        verification: impl FnOnce(
            ConfigBuilder<ClientConfig, WantsVerifier>,
            &Arc<CryptoProvider>,
        ) -> ConfigBuilder<ClientConfig, WantsClientCert>,
    ) -> Self {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions of TLS");
        Self(Arc::new(verification(config, &provider).with_no_client_auth()))
    }

    /// Offers these protocols in handshakes (ALPN), the preferred one first. Without this, none is offered.
    #[must_use]
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec());
        Arc::make_mut(&mut self.0).alpn_protocols = protocols.collect();
        self
    }

    /// Makes the handshake with `host`, a name or an address, over `stream`.
    ///
    /// # Errors
    /// `host` is neither, the stream failed, or one of the two sides has rejected the handshake.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}

/// Whether a certificate can be issued for `host`: it is a DNS name or an address.
#[must_use]
pub fn is_server_name(host: &str) -> bool {
    ServerName::try_from(host).is_ok()
}

/// Whether an error of [`TlsClient::connect`] means that the server does not speak TLS 1.2 or 1.3. Other errors come from
/// the network or from a rejected handshake.
#[must_use]
pub fn is_not_tls(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    // pusherd sends the alert on a port without TLS.
    matches!(
        error,
        Some(
            rustls::Error::InvalidMessage(_)
                | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
        )
    )
}

/// See [`TlsClient::accepting_any`].
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

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

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

    fn certificate(host: &str) -> CertifiedKey<KeyPair> {
        generate_simple_self_signed([host.to_owned()]).unwrap()
    }

    /// The authority that has issued a certificate: itself.
    fn issuer_of(certificate: &CertifiedKey<KeyPair>) -> Authorities {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, certificate.cert.pem()).unwrap();
        Authorities::of_file(&file).unwrap()
    }

    /// A server that accepts one connection and echoes a byte. Returns the client's end of it.
    fn serve(
        certificate: &CertifiedKey<KeyPair>,
        version: &'static SupportedProtocolVersion,
    ) -> DuplexStream {
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (client, server) = duplex(16 * 1024);
        tokio::spawn(async move {
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(server).await.ok()?;
            let byte = stream.read_u8().await.ok()?;
            stream.write_u8(byte).await.ok()
        });
        client
    }

    /// Whether a client can talk to a server at `host`.
    async fn talk(client: &TlsClient, host: &str, stream: DuplexStream) -> Result<(), String> {
        let mut stream = client.connect(host, stream).await.map_err(|error| error.to_string())?;
        stream.write_u8(b'x').await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        Ok(())
    }

    #[tokio::test]
    async fn a_certificate_of_an_authority_is_accepted_for_its_host_alone() {
        let (right, other) = (certificate("a.test"), certificate("a.test"));
        let client = TlsClient::verifying(issuer_of(&right));
        for version in VERSIONS {
            assert_eq!(talk(&client, "a.test", serve(&right, version)).await, Ok(()));
            for (host, certificate, expected) in
                [("b.test", &right, "not valid for name"), ("a.test", &other, "BadSignature")]
            {
                let error = talk(&client, host, serve(certificate, version)).await.unwrap_err();
                assert!(error.contains(expected), "{host}: {error}");
            }
        }
        let error = talk(&client, "not a host", serve(&right, VERSIONS[1])).await.unwrap_err();
        assert!(error.contains("invalid dns name"), "{error}");
    }

    #[tokio::test]
    async fn without_an_authority_no_certificate_is_accepted() {
        let client = TlsClient::verifying(Authorities::default());
        let error = talk(&client, "a.test", serve(&certificate("a.test"), VERSIONS[1])).await.unwrap_err();
        assert!(error.contains("UnknownIssuer"), "{error}");
    }

    #[tokio::test]
    async fn without_verification_any_certificate_of_any_host_is_accepted() {
        let client = TlsClient::accepting_any();
        for version in VERSIONS {
            for host in ["a.test", "127.0.0.1", "::1"] {
                assert_eq!(
                    talk(&client, host, serve(&certificate("b.test"), version)).await,
                    Ok(()),
                    "{host}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_server_without_the_key_of_its_certificate_is_rejected_even_without_verification() {
        let (shown, own) = (certificate("a.test"), certificate("a.test"));
        let stolen = CertifiedKey { cert: shown.cert, signing_key: own.signing_key };
        for version in VERSIONS {
            let provider = ring::default_provider();
            let key = PrivateKeyDer::try_from(stolen.signing_key.serialize_der()).unwrap();
            let key = provider.key_provider.load_private_key(key).unwrap();
            let shown = rustls::sign::CertifiedKey::new(vec![stolen.cert.der().clone()], key);
            let config = ServerConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
            let (client, server) = duplex(16 * 1024);
            tokio::spawn(async move { TlsAcceptor::from(Arc::new(config)).accept(server).await.map(drop) });
            let error = talk(&TlsClient::accepting_any(), "a.test", client).await.unwrap_err();
            assert!(error.contains("BadSignature"), "{error}");
        }
    }

    #[tokio::test]
    async fn only_the_given_protocols_are_offered() {
        let certificate = certificate("a.test");
        let agreed = async |client: &TlsClient| {
            let stream = client.connect("a.test", serve(&certificate, VERSIONS[1])).await?;
            io::Result::Ok(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
        };
        let client = TlsClient::accepting_any();
        assert_eq!(agreed(&client).await.unwrap(), None);
        let offering = client.clone().offering(&["h2", "http/1.1"]);
        assert_eq!(agreed(&offering).await.unwrap().as_deref(), Some(&b"http/1.1"[..]));
        assert!(agreed(&offering.offering(&["h2"])).await.is_err(), "the server does not speak it");
        assert_eq!(agreed(&client).await.unwrap(), None, "a clone has its own protocols");
    }

    #[tokio::test]
    async fn a_server_that_does_not_speak_tls_is_recognised() {
        let refused = "\u{15}\u{3}\u{3}\0\u{2}\u{2}";
        for (response, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n".to_owned(), true),
            // The alerts `protocol_version` and `handshake_failure`.
            (format!("{refused}{}", char::from(70)), true),
            (format!("{refused}{}", char::from(40)), false),
            (String::new(), false),
        ] {
            let (client, mut server) = duplex(16 * 1024);
            server.write_all(response.as_bytes()).await.unwrap();
            server.shutdown().await.unwrap();
            let error = TlsClient::accepting_any().connect("a.test", client).await.unwrap_err();
            assert_eq!(is_not_tls(&error), expected, "{response:?}: {error}");
        }
    }

    #[test]
    fn names_and_addresses_are_server_names() {
        for (host, expected) in [
            ("a.test", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("", false),
            ("a b", false),
            ("/run/redis.sock", false),
        ] {
            assert_eq!(is_server_name(host), expected, "{host:?}");
        }
    }
}
