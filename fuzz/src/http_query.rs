//! Query strings: parameters, lists and the signed text, against a naive parser.

use pusherd::protocol::request::{Query, SignatureError};

use super::naive;

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(raw) = std::str::from_utf8(data) else { return };
    let (query, pairs) = (Query::parse(raw), naive::query(raw));
    let (Ok(query), Some(pairs)) = (&query, &pairs) else {
        assert!(query.is_err() && pairs.is_none(), "{raw:?}: {query:?}, {pairs:?}");
        return;
    };
    let signed = query.string_to_sign("GET", "/x");
    assert_eq!(signed, format!("GET\n/x\n{}", naive::signed_query(pairs)));
    for (key, _) in pairs {
        for name in [key, naive::of_list(key).unwrap_or(key), key.trim_end_matches("[]")] {
            assert_eq!(query.value(name).as_deref(), naive::parameter(pairs, name).as_deref(), "{name:?}");
            assert_eq!(query.list(name), naive::parameter_list(pairs, name), "{name:?}");
        }
    }
    let of_signature = ["auth_key", "auth_timestamp", "auth_version", "body_md5", "auth_signature"];
    assert_eq!(query.has_parameters(), pairs.iter().any(|(key, _)| !of_signature.contains(&key.as_str())));
    assert_eq!(query.auth().map(|auth| auth.key), auth_key(pairs).as_deref().map_err(Clone::clone));

    // Another encoding is the same query.
    let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let encoded: Vec<_> =
        pairs.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    let again = encoded.join("&&");
    assert_eq!(Query::parse(&again).unwrap().string_to_sign("GET", "/x"), signed);
}

/// The key of a query that has every parameter of the signature exactly once.
fn auth_key(pairs: &[(String, String)]) -> Result<String, SignatureError> {
    let once = |name: &'static str| {
        let values: Vec<_> = pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect();
        match values[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(SignatureError::Repeated(name)),
        }
    };
    let required = |name| once(name)?.ok_or(SignatureError::Missing(name));
    if required("auth_version")? != "1.0" {
        return Err(SignatureError::Version);
    }
    let key = required("auth_key")?;
    if required("auth_timestamp")?.parse::<i64>().is_err() {
        return Err(SignatureError::TimestampFormat);
    }
    once("body_md5")?;
    required("auth_signature")?;
    Ok(key)
}
