//! The facts of a certificate: whether clients accept it, and when it is valid. Pure: time is an argument.

use std::fmt;

use der::asn1::{AnyRef, ContextSpecific, GeneralizedTime, UintRef, UtcTime};
use der::{DateTime, Decode as _, Reader, SliceReader, Tag, TagNumber};
use spki::SubjectPublicKeyInfoRef;

/// The keys that ring can use for TLS.
pub(super) const USABLE_KEYS: &str = "RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519";

/// A command that makes a key and a certificate that clients accept, once they trust it.
pub(super) const OPENSSL_COMMAND: &str = "`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj \
                                 /CN=NAME -addext subjectAltName=DNS:NAME -keyout key.pem -out cert.pem`";

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The operator is warned when a certificate is valid for less than this, or for less than a third of its lifetime,
/// whichever is less: 90-day certificates are renewed 30 days before, six-day ones two days before.
const WARN_BEFORE_SECS: i64 = 14 * DAY;

/// The number that a certificate of version 3 contains.
const VERSION_3: u8 = 2;

/// The facts of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// One less than the version.
    version: u8,
    key: Key,
    not_before: DateTime,
    not_after: DateTime,
}

/// The kind of a public key.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Key {
    Rsa {
        bits: usize,
    },
    /// The name or the OID of the curve.
    Curve(String),
    Ed25519,
    /// The name or the OID of the algorithm.
    Other(String),
}

/// The validity of a certificate at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Validity {
    /// Valid, and not expiring soon.
    Valid,
    /// Valid, but expiring soon.
    EndsSoon,
    /// Not valid yet.
    NotYet,
    /// Not valid any more.
    Expired,
}

impl Certificate {
    /// Parses a certificate in DER; `None` if that fails.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        // The fields after the dates and the key are not needed: clients check the signature.
        SliceReader::new(der).and_then(|mut reader| reader.sequence(|body| with_rest(body, Self::read))).ok()
    }

    /// Reads `TBSCertificate`. Source: RFC 5280 §4.1.
    fn read<'a>(certificate: &mut impl Reader<'a>) -> der::Result<Self> {
        certificate.sequence(|fields| {
            with_rest(fields, |fields| {
                let version = ContextSpecific::decode_explicit(fields, TagNumber(0))?;
                let _serial_number = AnyRef::decode(fields)?;
                let _signature = AnyRef::decode(fields)?;
                let _issuer = AnyRef::decode(fields)?;
                let (not_before, not_after) = fields.sequence(read_validity)?;
                let _subject = AnyRef::decode(fields)?;
                let key = Key::of(&SubjectPublicKeyInfoRef::decode(fields)?);
                Ok(Self { version: version.map_or(0, |version| version.value), key, not_before, not_after })
            })
        })
    }

    /// Why no client accepts it, whatever its key: a text that follows the name of its file.
    pub(super) fn unusable_reason(&self) -> Option<String> {
        (self.version != VERSION_3).then(|| {
            let version = self.version.saturating_add(1);
            format!(
                "begins with a certificate of X.509 version {version}, and clients take version 3 only; make one with {OPENSSL_COMMAND}"
            )
        })
    }

    /// Why a key of its kind cannot be used: a text that follows the name of the key's file.
    pub(super) fn unusable_key_reason(&self) -> Option<String> {
        (!self.key.is_usable()).then(|| {
            format!("cannot be used: the certificate is for a key that is {}, and {USABLE_KEYS} are; make one with {OPENSSL_COMMAND}", self.key)
        })
    }

    /// The validity at the Unix time `now`.
    pub(super) fn validity(&self, now: i64) -> Validity {
        let (from, to) = (unix(self.not_before), unix(self.not_after));
        if now < from {
            Validity::NotYet
        } else if now > to {
            Validity::Expired
        } else if to - now < WARN_BEFORE_SECS.min(to.saturating_sub(from) / 3) {
            Validity::EndsSoon
        } else {
            Validity::Valid
        }
    }

    /// A message about the validity at the Unix time `now`, unless all is well: a text that follows the name of its file.
    pub(super) fn validity_message(&self, now: i64) -> Option<String> {
        match self.validity(now) {
            Validity::Valid => None,
            Validity::EndsSoon => {
                let time = Seconds(unix(self.not_after) - now);
                Some(format!("holds a certificate that expires in {time}, on {}", self.not_after))
            }
            Validity::NotYet => {
                let time = Seconds(unix(self.not_before).saturating_sub(now));
                Some(format!(
                    "holds a certificate that is not valid yet: clients reject it for another {time}, until {}; is the \
                     clock of this machine right?",
                    self.not_before
                ))
            }
            Validity::Expired => {
                let time = Seconds(now.saturating_sub(unix(self.not_after)));
                Some(format!(
                    "holds a certificate that expired {time} ago, on {}: clients reject it",
                    self.not_after
                ))
            }
        }
    }
}

impl Key {
    fn of(info: &SubjectPublicKeyInfoRef<'_>) -> Self {
        let oid = info.algorithm.oid.to_string();
        match oid.as_str() {
            "1.2.840.113549.1.1.1" => match info.subject_public_key.as_bytes().and_then(modulus_bits) {
                Some(bits) => Self::Rsa { bits },
                None => Self::Other("RSA that cannot be read".to_owned()),
            },
            "1.2.840.10045.2.1" => match info.algorithm.parameters_oid() {
                Ok(curve) => Self::Curve(match curve.to_string().as_str() {
                    "1.2.840.10045.3.1.7" => "P-256".to_owned(),
                    "1.3.132.0.34" => "P-384".to_owned(),
                    "1.3.132.0.35" => "P-521".to_owned(),
                    "1.3.132.0.10" => "secp256k1".to_owned(),
                    other => other.to_owned(),
                }),
                Err(_) => Self::Curve("a curve of its own".to_owned()),
            },
            "1.3.101.112" => Self::Ed25519,
            "1.3.101.113" => Self::Other("Ed448".to_owned()),
            _ => Self::Other(oid),
        }
    }

    /// Whether the key is one of [`USABLE_KEYS`]. Source: ring's `signature`.
    fn is_usable(&self) -> bool {
        match self {
            Self::Rsa { bits } => (2048..=4096).contains(bits),
            Self::Curve(curve) => ["P-256", "P-384"].contains(&curve.as_str()),
            Self::Ed25519 => true,
            Self::Other(_) => false,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits } => write!(f, "RSA of {bits} bits"),
            Self::Curve(curve) => write!(f, "ECDSA on {curve}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Runs `read`, and skips the remaining fields.
fn with_rest<'a, R: Reader<'a>, T>(
    reader: &mut R,
    read: impl FnOnce(&mut R) -> der::Result<T>,
) -> der::Result<T> {
    let value = read(reader)?;
    while !reader.is_finished() {
        AnyRef::decode(reader)?;
    }
    Ok(value)
}

fn read_validity<'a>(dates: &mut impl Reader<'a>) -> der::Result<(DateTime, DateTime)> {
    Ok((read_time(dates)?, read_time(dates)?))
}

fn read_time<'a>(reader: &mut impl Reader<'a>) -> der::Result<DateTime> {
    if Tag::peek(reader)? == Tag::UtcTime {
        return UtcTime::decode(reader).map(|time| time.to_date_time());
    }
    GeneralizedTime::decode(reader).map(|time| time.to_date_time())
}

fn unix(time: DateTime) -> i64 {
    i64::try_from(time.unix_duration().as_secs()).unwrap_or(i64::MAX)
}

/// The bits of the modulus of an `RSAPublicKey`. Source: RFC 8017 §A.1.1.
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(key).ok()?;
    let modulus = reader.sequence(|key| with_rest(key, UintRef::decode)).ok()?;
    let first = modulus.as_bytes().first()?;
    Some(modulus.as_bytes().len() * 8 - first.leading_zeros() as usize)
}

/// A number of seconds, shown in days, hours or minutes.
struct Seconds(i64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds >= 2 * DAY => write!(f, "{} days", seconds / DAY),
            seconds if seconds >= 2 * HOUR => write!(f, "{} hours", seconds / HOUR),
            60..120 => f.write_str("1 minute"),
            seconds => write!(f, "{} minutes", seconds / 60),
        }
    }
}

/// When the operator was last warned of a certificate's validity: at each change, and once a day after that.
#[derive(Debug)]
pub(super) struct ValidityWarnings {
    validity: Validity,
    at: i64,
}

impl ValidityWarnings {
    /// The start, at the Unix time `now`, shows the message itself.
    pub(super) fn at_start(certificate: &Certificate, now: i64) -> Self {
        Self { validity: certificate.validity(now), at: now }
    }

    /// The message that is due at the Unix time `now`.
    pub(super) fn due(&mut self, certificate: &Certificate, now: i64) -> Option<String> {
        let validity = certificate.validity(now);
        let is_due = validity != self.validity || now.saturating_sub(self.at) >= DAY;
        if !is_due {
            return None;
        }
        *self = Self { validity, at: now };
        certificate.validity_message(now)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// 2030-01-01.
    const FROM: i64 = 1_893_456_000;

    /// A certificate that is valid for `days` from [`FROM`].
    fn certificate(days: i64) -> Certificate {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = params.not_before + std::time::Duration::from_secs((days * DAY).cast_unsigned());
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certificate::parse(made.der()).unwrap()
    }

    #[test]
    fn a_validity_message_comes_before_the_certificate_expires() {
        let (long, short) = (certificate(90), certificate(6));
        let days = |days: i64| FROM + days * DAY;
        let table = [
            (
                &long,
                days(-3),
                Some("is not valid yet: clients reject it for another 3 days, until 2030-01-01T00:00:00Z"),
            ),
            (&long, days(0), None),
            (&long, days(75), None),
            (&long, days(77), Some("expires in 13 days, on 2030-04-01T00:00:00Z")),
            (&long, days(90) - 5 * HOUR, Some("expires in 5 hours, on")),
            (&long, days(90) - 119, Some("expires in 1 minute, on")),
            (&long, days(90) + 1, Some("expired 0 minutes ago, on 2030-04-01T00:00:00Z")),
            (&long, days(1090), Some("expired 1000 days ago")),
            (&short, days(3), None),
            (&short, days(4) + 1, Some("expires in 47 hours, on")),
        ];
        for (certificate, now, expected) in table {
            let message = certificate.validity_message(now);
            match expected {
                None => assert_eq!(message, None),
                Some(words) => {
                    assert!(
                        message.as_ref().is_some_and(|message| message.contains(words)),
                        "{words}: {message:?}"
                    )
                }
            }
        }
    }

    #[test]
    fn a_validity_warning_is_due_at_each_change_and_once_a_day() {
        let (certificate, renewed) = (certificate(90), certificate(120));
        let mut warned = ValidityWarnings::at_start(&certificate, FROM);
        let mut warned_at = Vec::new();
        for hour in 0..=93 * 24 {
            if warned.due(&certificate, FROM + hour * HOUR).is_some() {
                warned_at.push(hour);
            }
        }
        // From the first hour with less than 14 days to go, once a day, and in the first hour after the expiry.
        let mut expected: Vec<i64> = (0..14).map(|day| 76 * 24 + 1 + day * 24).collect();
        expected.extend((0..3).map(|day| 90 * 24 + 1 + day * 24));
        assert_eq!(warned_at, expected);
        assert_eq!(warned.due(&renewed, FROM + 93 * DAY), None, "no warning for a renewed one");
        let mut expired = ValidityWarnings::at_start(&certificate, FROM + 91 * DAY);
        assert_eq!(expired.due(&certificate, FROM + 91 * DAY + HOUR), None, "the start has shown it");
    }

    #[test]
    fn invalid_der_is_no_certificate() {
        for der in [&b""[..], b"x", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(Certificate::parse(der).is_none());
        }
    }

    #[test]
    fn bits_of_a_modulus_are_counted_from_the_highest_set_one() {
        let key = |modulus: &[u8]| {
            let length = u8::try_from(modulus.len()).unwrap();
            [&[0x30, length + 5, 0x02, length], modulus, &[0x02, 0x01, 0x03]].concat()
        };
        for (modulus, bits) in [(&[1][..], 1), (&[0, 0x80, 0], 16), (&[0x7f; 100], 799)] {
            assert_eq!(modulus_bits(&key(modulus)), Some(bits));
        }
        assert_eq!(modulus_bits(&[0x30, 0x01]), None);
    }
}
