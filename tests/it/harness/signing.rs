//! Signatures as an application's server computes them. Written from the specification, independently of the library.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use pusherd::apps::App;
use sha2::Sha256;

/// An app's id, and a key and its secret.
#[derive(Clone, Copy)]
pub struct Key {
    pub app_id: &'static str,
    pub key: &'static str,
    pub secret: &'static str,
}

/// The app that tests use.
pub const DEMO: Key = Key { app_id: "1001", key: "demo-key", secret: "demo-secret" };

/// The other app.
pub const OTHER: Key = Key { app_id: "1002", key: "other-key", secret: "other-secret" };

impl Key {
    /// The app with this key, and the defaults.
    pub fn app(&self) -> App {
        App::new(self.app_id, self.key, self.secret)
    }

    /// The signature of `text`, in lower-case hex.
    pub fn sign(&self, text: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()).unwrap();
        mac.update(text.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }

    /// An `auth` value: the key, and the signature of `text`.
    pub fn auth(&self, text: &str) -> String {
        format!("{}:{}", self.key, self.sign(text))
    }
}

/// The `auth` of a subscription in the demo app.
pub fn channel_auth(socket_id: &str, channel: &str, channel_data: Option<&str>) -> String {
    match channel_data {
        Some(data) => DEMO.auth(&format!("{socket_id}:{channel}:{data}")),
        None => DEMO.auth(&format!("{socket_id}:{channel}")),
    }
}

/// The `auth` of a sign-in in the demo app.
pub fn user_auth(socket_id: &str, user_data: &str) -> String {
    DEMO.auth(&format!("{socket_id}::user::{user_data}"))
}

/// The MD5 of a body, in lower-case hex.
pub fn md5_hex(body: &[u8]) -> String {
    hex::encode(Md5::digest(body))
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a signed request carries the time of day")]
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}
