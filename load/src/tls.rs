//! TLS of the client's side: rustls over the epoll engine's own buffers. The server's certificate is not
//! verified: this is a load generator on loopback.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use std::io::{Read, Write};
use std::sync::Arc;

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _sig: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _sig: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What all sessions of a run share. No resumption: every handshake is a whole one.
#[derive(Clone)]
pub struct Config(Arc<ClientConfig>);

impl Config {
    pub fn new() -> Config {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring has TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Config(Arc::new(config))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

pub struct Session(ClientConnection);

impl Session {
    /// The start of a handshake goes to `out`.
    pub fn new(config: &Config, out: &mut Vec<u8>) -> Session {
        let name = ServerName::try_from("localhost").expect("a host name");
        let mut s = Session(ClientConnection::new(config.0.clone(), name).expect("a client"));
        s.flush(out);
        s
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.0.wants_write() {
            self.0.write_tls(out).expect("a vector takes everything");
        }
    }

    /// Encrypts `plain` to `out`; before the handshake's end it is kept until then.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        self.0.writer().write_all(plain).expect("fewer than 64 KiB before the handshake's end");
        self.flush(out);
    }

    /// Decrypts `cipher` to the end of `plain`; what the session has to answer goes to `out`.
    pub fn open(&mut self, mut cipher: &[u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), String> {
        while !cipher.is_empty() {
            let n = self.0.read_tls(&mut cipher).map_err(|e| format!("tls: {e}"))?;
            let state = self.0.process_new_packets();
            self.flush(out);
            let ready = state.map_err(|e| format!("tls: {e}"))?.plaintext_bytes_to_read();
            let at = plain.len();
            plain.resize(at + ready, 0);
            self.0.reader().read_exact(&mut plain[at..]).map_err(|e| format!("tls: {e}"))?;
            if n == 0 {
                // After the peer's close_notify nothing more is read.
                break;
            }
        }
        Ok(())
    }
}
