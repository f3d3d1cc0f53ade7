//! Idempotency keys, and the fingerprint of the request that uses one.

use std::sync::Arc;

use axum::http::HeaderValue;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::http::{ApiError, Signed};
use crate::protocol::json;

/// The longest key.
const KEY_CHARS_MAX: usize = 255;

/// A checked key: 1 to 255 printable ASCII characters.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in crate::http) struct Key(pub(super) Arc<str>);

impl Key {
    /// The key of a request, from its header or its body. If both have one, they must be equal.
    pub(in crate::http) fn of(
        header: Option<&HeaderValue>,
        field: Option<&RawValue>,
    ) -> Result<Option<Self>, ApiError> {
        // An empty key counts as missing: applications without a key may still send the field.
        let header = header.filter(|header| !matches!(header.as_bytes(), b"" | b"\"\""));
        let field = field.filter(|field| !json::is_null(field) && field.get() != "\"\"");
        if header.is_none() && field.is_none() {
            return Ok(None);
        }
        let invalid = |which: &str| {
            ApiError::bad(format_args!(
                "{which} is not a text of 1 to {KEY_CHARS_MAX} printable ASCII characters"
            ))
        };
        let of_header = header.map(|value| {
            let text = value.to_str().unwrap_or_default();
            // The draft requires a quoted string (structured headers); most clients send the bare text.
            let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            Self::parse(bare).ok_or_else(|| invalid("Idempotency-Key"))
        });
        let of_field = field.map(|value| {
            let text = json::string(value);
            text.and_then(|text| Self::parse(&text)).ok_or_else(|| invalid("idempotency_key"))
        });
        match (of_header.transpose()?, of_field.transpose()?) {
            (Some(one), Some(other)) if one != other => {
                Err(ApiError::bad("Idempotency-Key and idempotency_key are not the same"))
            }
            (one, other) => Ok(one.or(other)),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_printable = |byte: u8| matches!(byte, b' '..=b'~');
        ((1..=KEY_CHARS_MAX).contains(&text.len()) && text.bytes().all(is_printable))
            .then(|| Self(text.into()))
    }
}

/// A hash of the content of a request, to detect a key that is used for two requests.
pub(super) type Fingerprint = [u8; 32];

pub(super) fn fingerprint(signed: &Signed) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(signed.uri.path().as_bytes());
    for (name, value) in signed.query().parameters() {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    part(&signed.body);
    hash.finalize().into()
}
