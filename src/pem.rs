//! Recognises files of certificates and keys that are not in PEM, and names the command that converts them. Pure.
//!
//! Files in PEM are read elsewhere. A format is recognised by its first bytes or by the labels in its text. The content is
//! never repeated, because it may be a secret. Start at [`explain`].

use std::path::Path;

/// The first value of a PKCS#12 file: its version, 3. Source: RFC 7292 §4.
const PKCS12: &[u8] = &[0x02, 0x01, 0x03];

/// The first value of a PKCS#7 file: `signedData`. Source: RFC 2315 §14.
const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";

/// The content that a file should have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// Certificates.
    Certificates,
    /// The private key that belongs to one.
    Key,
}

/// A format of certificates and keys that is not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    /// A certificate in DER.
    Certificate,
    /// A certificate signing request.
    Request,
    /// A private key in DER, encrypted or not.
    Key,
    /// Certificates and a key, with a passphrase.
    Pkcs12,
    /// Certificates in DER, as used on Windows.
    Pkcs7,
    /// The same in PEM.
    Pkcs7Pem,
    /// A certificate in PEM with an extension of openssl.
    Trusted,
}

/// Explains why the file `path` does not have the `expected` content in PEM. The text follows the name of the file.
#[must_use]
pub fn explain(expected: Expected, path: &Path, bytes: &[u8]) -> String {
    let file = path.display();
    let (certificates, key) = match expected {
        Expected::Certificates => (true, false),
        Expected::Key => (false, true),
    };
    match Format::detect(bytes) {
        Some(Format::Certificate) if certificates => format!(
            "is a certificate in DER, and must be in PEM: convert it with `openssl x509 -inform DER -in {file} -out cert.pem`"
        ),
        Some(Format::Certificate) => "is a certificate in DER, and no private key".to_owned(),
        Some(Format::Request) => {
            "is a request for a certificate (CSR), and no certificate: the authority that it is sent \
                                to answers with one"
                .to_owned()
        }
        Some(Format::Key) if key => format!(
            "is a private key in DER, and must be in PEM: convert it with `openssl pkey -inform DER -in {file} -out key.pem`"
        ),
        Some(Format::Key) => "is a private key in DER, and no certificate".to_owned(),
        Some(Format::Pkcs12) => {
            let part = if key { "-nocerts -nodes -out key.pem" } else { "-nokeys -out cert.pem" };
            let what = if key { "the key" } else { "the certificates" };
            format!(
                "is PKCS#12 (.p12, .pfx), and must be PEM: take {what} out with `openssl pkcs12 -in {file} {part}`"
            )
        }
        Some(format @ (Format::Pkcs7 | Format::Pkcs7Pem)) => {
            let inform = if format == Format::Pkcs7 { "-inform DER " } else { "" };
            format!(
                "is PKCS#7 (.p7b), and must hold certificates in PEM: convert it with `openssl pkcs7 {inform}-in {file} \
                 -print_certs -out cert.pem`"
            )
        }
        Some(Format::Trusted) => format!(
            "holds a certificate in a format of openssl's own (BEGIN TRUSTED CERTIFICATE): convert it with `openssl x509 -in \
             {file} -out cert.pem`"
        ),
        None if certificates => "holds no certificate in PEM (BEGIN CERTIFICATE)".to_owned(),
        None => "holds no private key in PEM (BEGIN PRIVATE KEY)".to_owned(),
    }
}

impl Format {
    /// Recognises the format of a file; `None` if it is unknown.
    fn detect(bytes: &[u8]) -> Option<Self> {
        match sequence(bytes) {
            Some(content) => Self::detect_der(content),
            None => Self::detect_text(&String::from_utf8_lossy(bytes)),
        }
    }

    /// Recognises the content of the outermost DER sequence. Source: RFC 5280 §4.1, RFC 2986 §4, RFC 5958 §2 and §3.
    fn detect_der(content: &[u8]) -> Option<Self> {
        if content.starts_with(PKCS12) {
            return Some(Self::Pkcs12);
        }
        if content.starts_with(PKCS7) {
            return Some(Self::Pkcs7);
        }
        match content {
            // The version of a key.
            [0x02, 0x01, 0 | 1, ..] => Some(Self::Key),
            _ => match sequence(content)? {
                // The encryption algorithm of a key.
                [0x06, ..] => Some(Self::Key),
                // The version of a request. A certificate of version 1 has no version.
                [0x02, 0x01, 0, 0x30, ..] => Some(Self::Request),
                [0xa0 | 0x02, ..] => Some(Self::Certificate),
                _ => None,
            },
        }
    }

    fn detect_text(text: &str) -> Option<Self> {
        let labels = [
            ("-----BEGIN PKCS7-----", Self::Pkcs7Pem),
            ("-----BEGIN TRUSTED CERTIFICATE-----", Self::Trusted),
            ("-----BEGIN CERTIFICATE REQUEST-----", Self::Request),
            ("-----BEGIN NEW CERTIFICATE REQUEST-----", Self::Request),
        ];
        labels.into_iter().find_map(|(label, format)| text.contains(label).then_some(format))
    }
}

/// The content of the sequence at the start of DER or BER.
fn sequence(der: &[u8]) -> Option<&[u8]> {
    match der {
        // A short length, or an indefinite one.
        [0x30, ..=0x80, content @ ..]
        | [0x30, 0x81, _, content @ ..]
        | [0x30, 0x82, _, _, content @ ..]
        | [0x30, 0x83, _, _, _, content @ ..] => Some(content),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, generate_simple_self_signed};

    use super::*;

    #[test]
    fn a_format_is_recognised_by_its_first_bytes_for_any_length() {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let request = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let request = request.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        for (bytes, format) in [
            (&made.cert.der()[..], Some(Format::Certificate)),
            (&made.signing_key.serialize_der(), Some(Format::Key)),
            (request.der(), Some(Format::Request)),
            (request.pem().unwrap().as_bytes(), Some(Format::Request)),
            (include_bytes!("../tests/config/certs.p12"), Some(Format::Pkcs12)),
            (include_bytes!("../tests/config/certs.p7b"), Some(Format::Pkcs7)),
            // An indefinite length; an RSA key; an encrypted key; a certificate of version 1.
            (b"\x30\x80\x02\x01\x03\x30\x80", Some(Format::Pkcs12)),
            (b"\x30\x82\x04\xa4\x02\x01\x00\x02\x82\x01\x01", Some(Format::Key)),
            (b"\x30\x81\xec\x30\x57\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d", Some(Format::Key)),
            (b"\x30\x82\x01\x7e\x30\x82\x01\x23\x02\x14\x62", Some(Format::Certificate)),
            (b"-----BEGIN PKCS7-----\nAAAA", Some(Format::Pkcs7Pem)),
            (b"x\n-----BEGIN TRUSTED CERTIFICATE-----\nAAAA", Some(Format::Trusted)),
            (b"0 is the first byte of DER", None),
            (b"\x30", None),
            (b"\x30\x82\x01", None),
            (b"\x30\x03\x02\x01\x05", None),
            (b"\xff\xfe", None),
            (b"", None),
        ] {
            assert_eq!(Format::detect(bytes), format, "{bytes:x?}");
        }
    }

    #[test]
    fn a_certificate_instead_of_a_key_is_reported_and_the_reverse() {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = Path::new("a.der");
        for (expected, bytes, words) in [
            (
                Expected::Certificates,
                &made.cert.der()[..],
                "`openssl x509 -inform DER -in a.der -out cert.pem`",
            ),
            (Expected::Key, made.cert.der(), "is a certificate in DER, and no private key"),
            (
                Expected::Key,
                &made.signing_key.serialize_der(),
                "`openssl pkey -inform DER -in a.der -out key.pem`",
            ),
            (
                Expected::Certificates,
                &made.signing_key.serialize_der(),
                "is a private key in DER, and no certificate",
            ),
            (Expected::Certificates, b"hunter2", "holds no certificate in PEM (BEGIN CERTIFICATE)"),
            (Expected::Key, b"hunter2", "holds no private key in PEM (BEGIN PRIVATE KEY)"),
        ] {
            let text = explain(expected, file, bytes);
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
