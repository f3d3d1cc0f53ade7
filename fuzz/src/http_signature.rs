//! Signed requests: a request that a naive client signed is accepted; with any change of its meaning it is rejected.

use arbitrary::{Arbitrary, Unstructured};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pusherd::protocol::request::Query;
use pusherd::protocol::signature::SigningKey;

use super::naive;

#[derive(Arbitrary, Debug)]
struct Signed {
    secret: String,
    path: String,
    parameters: Vec<(String, String)>,
    encodes: bool,
    body: Vec<u8>,
    change: (Part, Change),
    changes: Vec<(Part, Change)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Part {
    Method,
    Path,
    Query,
    Body,
    Secret,
}

#[derive(Arbitrary, Clone, Debug)]
enum Change {
    Put { at: u16, byte: u8 },
    Flip { at: u16, byte: u8 },
    Take { at: u16 },
    Swap { one: u16, other: u16 },
    Append(String),
}

impl Change {
    fn to(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let place = |at: &u16| usize::from(*at) % len.max(1);
        match self {
            Self::Put { at, byte } => bytes.insert(usize::from(*at) % (len + 1), *byte),
            Self::Append(text) => bytes.extend(text.as_bytes()),
            _ if len == 0 => {}
            Self::Flip { at, byte } => bytes[place(at)] ^= byte,
            Self::Take { at } => drop(bytes.remove(place(at))),
            Self::Swap { one, other } => bytes.swap(place(one), place(other)),
        }
    }
}

/// A request as the server receives it.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    query: String,
    body: Vec<u8>,
    secret: String,
}

/// The content of the request that the signature covers, and the signature.
#[derive(Debug, Eq, PartialEq)]
struct Meaning {
    signed: String,
    body_md5: String,
    signature: String,
    secret: String,
}

impl Request {
    fn meaning(&self) -> Option<Meaning> {
        let pairs = naive::query(&self.query)?;
        Some(Meaning {
            signed: format!("{}\n{}\n{}", self.method, self.path, naive::signed_query(&pairs)),
            body_md5: naive::md5(&self.body),
            signature: naive::parameter(&pairs, "auth_signature")?.to_ascii_lowercase(),
            // HMAC pads a key with zeros.
            secret: self.secret.trim_end_matches('\0').to_owned(),
        })
    }

    fn is_let_in(&self) -> bool {
        let Ok(query) = Query::parse(&self.query) else { return false };
        let Ok(auth) = query.auth() else { return false };
        auth.check_time(1_700_000_000, 600).is_ok()
            && query.verify(&auth, &SigningKey::new(&self.secret), &self.method, [&*self.path]).is_ok()
            && auth.check_body(&self.body).is_ok()
    }
}

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(signed) = Signed::arbitrary(&mut Unstructured::new(data)) else { return };
    let encode = |text: &str| match signed.encodes {
        true => utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
        // Characters with a meaning in a query must always be encoded.
        false => text.replace('%', "%25").replace('&', "%26").replace('=', "%3d").replace('+', "%2b"),
    };
    let is_free = |name: &str| !name.starts_with("auth_") && name != "body_md5";
    let parameters = signed.parameters.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let mut pairs: Vec<_> = parameters
        .filter(|(name, _)| is_free(name))
        .map(|(name, value)| format!("{}={}", encode(&name), encode(value)))
        .collect();
    pairs.push("auth_key=key&auth_timestamp=1700000000&auth_version=1.0".to_owned());
    if !signed.body.is_empty() {
        pairs.push(format!("body_md5={}", naive::md5(&signed.body)));
    }
    let unsigned = naive::query(&pairs.join("&")).unwrap();
    let text = format!("POST\n{}\n{}", signed.path, naive::signed_query(&unsigned));
    pairs.push(format!("auth_signature={}", naive::hmac(&signed.secret, &text)));
    let good = Request {
        method: "POST".to_owned(),
        path: signed.path,
        query: pairs.join("&"),
        body: signed.body,
        secret: signed.secret,
    };
    assert!(good.is_let_in(), "{good:?}");

    let mut changed = good.clone();
    for (part, change) in std::iter::once(signed.change).chain(signed.changes) {
        if let Part::Body = part {
            change.to(&mut changed.body);
            continue;
        }
        let text = match part {
            Part::Method => &mut changed.method,
            Part::Path => &mut changed.path,
            Part::Query => &mut changed.query,
            Part::Secret | Part::Body => &mut changed.secret,
        };
        let mut bytes = text.clone().into_bytes();
        change.to(&mut bytes);
        *text = String::from_utf8_lossy(&bytes).into_owned();
    }
    if changed.meaning() != good.meaning() {
        assert!(!changed.is_let_in(), "{good:?} was signed, {changed:?} was let in");
    }
}
