//! Files of certificates and keys: those in PEM are read elsewhere; of others it is said what they are, and the command
//! that converts them. Pure.
//!
//! A form is known by its first bytes or by the labels in its text, and by nothing else: what such a file holds may be a
//! secret, and is not repeated. Start at [`instead`].

use std::path::Path;

/// The first value of a file of PKCS#12: its version, 3. Source: RFC 7292 §4.
const PKCS12: &[u8] = &[0x02, 0x01, 0x03];

/// The first value of a file of PKCS#7, `signedData`. Source: RFC 2315 §14.
const PKCS7: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";

/// What a file should hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// Certificates.
    Certificates,
    /// The private key that belongs to one.
    Key,
}

/// A form of certificates and keys other than the PEM that is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// A certificate in DER.
    Certificate,
    /// A request for one.
    Request,
    /// A private key in DER, encrypted or not.
    Key,
    /// Both, with a passphrase.
    Pkcs12,
    /// Certificates in DER, as Windows has them.
    Pkcs7,
    /// The same in PEM.
    Pkcs7Pem,
    /// A certificate in PEM with something of openssl's own behind it.
    Trusted,
}

/// What the file `path` is, which holds `bytes` and in PEM nothing that is `wanted`: words that follow its name.
#[must_use]
pub fn instead(wanted: Wanted, path: &Path, bytes: &[u8]) -> String {
    let file = path.display();
    let (certificates, key) = match wanted {
        Wanted::Certificates => (true, false),
        Wanted::Key => (false, true),
    };
    match Form::of(bytes) {
        Some(Form::Certificate) if certificates => format!(
            "is a certificate in DER, and must be in PEM: convert it with `openssl x509 -inform DER -in {file} -out cert.pem`"
        ),
        Some(Form::Certificate) => "is a certificate in DER, and no private key".to_owned(),
        Some(Form::Request) => {
            "is a request for a certificate (CSR), and no certificate: the authority that it is sent \
                                to answers with one"
                .to_owned()
        }
        Some(Form::Key) if key => format!(
            "is a private key in DER, and must be in PEM: convert it with `openssl pkey -inform DER -in {file} -out key.pem`"
        ),
        Some(Form::Key) => "is a private key in DER, and no certificate".to_owned(),
        Some(Form::Pkcs12) => {
            let part = if key { "-nocerts -nodes -out key.pem" } else { "-nokeys -out cert.pem" };
            let what = if key { "the key" } else { "the certificates" };
            format!(
                "is PKCS#12 (.p12, .pfx), and must be PEM: take {what} out with `openssl pkcs12 -in {file} {part}`"
            )
        }
        Some(form @ (Form::Pkcs7 | Form::Pkcs7Pem)) => {
            let inform = if form == Form::Pkcs7 { "-inform DER " } else { "" };
            format!(
                "is PKCS#7 (.p7b), and must hold certificates in PEM: convert it with `openssl pkcs7 {inform}-in {file} \
                 -print_certs -out cert.pem`"
            )
        }
        Some(Form::Trusted) => format!(
            "holds a certificate in a form of openssl's own (BEGIN TRUSTED CERTIFICATE): convert it with `openssl x509 -in \
             {file} -out cert.pem`"
        ),
        None if certificates => "holds no certificate in PEM (BEGIN CERTIFICATE)".to_owned(),
        None => "holds no private key in PEM (BEGIN PRIVATE KEY)".to_owned(),
    }
}

impl Form {
    /// Of a file that begins with `bytes`; `None`: it is not known.
    fn of(bytes: &[u8]) -> Option<Self> {
        match sequence(bytes) {
            Some(content) => Self::of_der(content),
            None => Self::of_text(&String::from_utf8_lossy(bytes)),
        }
    }

    /// Of what stands in the outermost sequence of DER. Source: RFC 5280 §4.1, RFC 2986 §4, RFC 5958 §2 and §3.
    fn of_der(content: &[u8]) -> Option<Self> {
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
                // What a key is encrypted by.
                [0x06, ..] => Some(Self::Key),
                // The version of a request: a certificate says that it is of version 1 by saying none.
                [0x02, 0x01, 0, 0x30, ..] => Some(Self::Request),
                [0xa0 | 0x02, ..] => Some(Self::Certificate),
                _ => None,
            },
        }
    }

    fn of_text(text: &str) -> Option<Self> {
        let labels = [
            ("-----BEGIN PKCS7-----", Self::Pkcs7Pem),
            ("-----BEGIN TRUSTED CERTIFICATE-----", Self::Trusted),
            ("-----BEGIN CERTIFICATE REQUEST-----", Self::Request),
            ("-----BEGIN NEW CERTIFICATE REQUEST-----", Self::Request),
        ];
        labels.into_iter().find_map(|(label, form)| text.contains(label).then_some(form))
    }
}

/// What stands in the sequence that DER or BER begins with.
fn sequence(der: &[u8]) -> Option<&[u8]> {
    match der {
        // A short length, or one that is said at the end.
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
    fn a_form_is_known_by_its_first_bytes_whatever_its_length() {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let request = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let request = request.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        for (bytes, form) in [
            (&made.cert.der()[..], Some(Form::Certificate)),
            (&made.signing_key.serialize_der(), Some(Form::Key)),
            (request.der(), Some(Form::Request)),
            (request.pem().unwrap().as_bytes(), Some(Form::Request)),
            (include_bytes!("../tests/config/certs.p12"), Some(Form::Pkcs12)),
            (include_bytes!("../tests/config/certs.p7b"), Some(Form::Pkcs7)),
            // With a length that is said at the end; of an RSA key; of an encrypted one; of a certificate of version 1.
            (b"\x30\x80\x02\x01\x03\x30\x80", Some(Form::Pkcs12)),
            (b"\x30\x82\x04\xa4\x02\x01\x00\x02\x82\x01\x01", Some(Form::Key)),
            (b"\x30\x81\xec\x30\x57\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d", Some(Form::Key)),
            (b"\x30\x82\x01\x7e\x30\x82\x01\x23\x02\x14\x62", Some(Form::Certificate)),
            (b"-----BEGIN PKCS7-----\nAAAA", Some(Form::Pkcs7Pem)),
            (b"x\n-----BEGIN TRUSTED CERTIFICATE-----\nAAAA", Some(Form::Trusted)),
            (b"0 is the first byte of DER", None),
            (b"\x30", None),
            (b"\x30\x82\x01", None),
            (b"\x30\x03\x02\x01\x05", None),
            (b"\xff\xfe", None),
            (b"", None),
        ] {
            assert_eq!(Form::of(bytes), form, "{bytes:x?}");
        }
    }

    #[test]
    fn who_wants_a_key_is_told_of_a_certificate_and_the_other_way_round() {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = Path::new("a.der");
        for (wanted, bytes, words) in [
            (
                Wanted::Certificates,
                &made.cert.der()[..],
                "`openssl x509 -inform DER -in a.der -out cert.pem`",
            ),
            (Wanted::Key, made.cert.der(), "is a certificate in DER, and no private key"),
            (
                Wanted::Key,
                &made.signing_key.serialize_der(),
                "`openssl pkey -inform DER -in a.der -out key.pem`",
            ),
            (
                Wanted::Certificates,
                &made.signing_key.serialize_der(),
                "is a private key in DER, and no certificate",
            ),
            (Wanted::Certificates, b"hunter2", "holds no certificate in PEM (BEGIN CERTIFICATE)"),
            (Wanted::Key, b"hunter2", "holds no private key in PEM (BEGIN PRIVATE KEY)"),
        ] {
            let said = instead(wanted, file, bytes);
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}
