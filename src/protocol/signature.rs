//! Signatures with the secret of an app: signing, verifying, and the texts that are signed for clients.
//!
//! A signature is HMAC-SHA256 in hex over the bytes as received, compared in constant time. A missing or malformed
//! signature does not verify.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::SocketId;

/// A secret of an app as an HMAC key. Prints as `***`.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SigningKey {
    /// Makes the key of a secret. The secret cannot be read back.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length"))
    }

    fn mac(&self, parts: &[&str]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part.as_bytes());
        }
        mac
    }

    /// Signs the body of a webhook: 64 lower-case hex digits.
    ///
    /// Source: protocol.md §9.1.
    #[must_use]
    pub fn sign_webhook(&self, body: &[u8]) -> String {
        hex::encode(self.0.clone().chain_update(body).finalize().into_bytes())
    }

    /// Whether `signature` (hex of either case) is that of the body of a webhook.
    #[must_use]
    pub fn verifies_webhook(&self, signature: &str, body: &[u8]) -> bool {
        let mut bytes = [0; 32];
        hex::decode_to_slice(signature, &mut bytes).is_ok()
            && self.0.clone().chain_update(body).verify_slice(&bytes).is_ok()
    }

    /// Signs the concatenation of `parts`: 64 lower-case hex digits.
    #[must_use]
    pub fn sign(&self, parts: &[&str]) -> String {
        hex::encode(self.mac(parts).finalize().into_bytes())
    }

    /// Whether `signature` (hex of either case) is that of the concatenation of `parts`.
    #[must_use]
    pub fn verifies(&self, signature: &str, parts: &[&str]) -> bool {
        let mut bytes = [0; 32];
        hex::decode_to_slice(signature, &mut bytes).is_ok() && self.mac(parts).verify_slice(&bytes).is_ok()
    }

    /// Whether `signature` authorises the connection `socket` for `channel`. It covers `channel_data` if the client sent
    /// any, on private channels too.
    ///
    /// Source: protocol.md §4.2.
    #[must_use]
    pub fn verifies_subscription(
        &self,
        signature: &str,
        socket: SocketId,
        channel: &str,
        channel_data: Option<&str>,
    ) -> bool {
        let socket = socket.to_string();
        match channel_data {
            None => self.verifies(signature, &[&socket, ":", channel]),
            Some(data) => self.verifies(signature, &[&socket, ":", channel, ":", data]),
        }
    }

    /// Whether `signature` authorises the connection `socket` to sign in with `user_data`.
    ///
    /// Source: protocol.md §6.1.
    #[must_use]
    pub fn verifies_sign_in(&self, signature: &str, socket: SocketId, user_data: &str) -> bool {
        self.verifies(signature, &[&socket.to_string(), "::user::", user_data])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> SigningKey {
        SigningKey::new("demo-secret")
    }

    const SOCKET: SocketId = SocketId::new(123_456, 7890);

    #[test]
    fn subscription_vectors_w1_to_w7_hold() {
        let table = [
            ("private-room", None, "dda12131b20cbe78d47e334d5674b214c4f954ad2d4f645bde47cbe705c19463"),
            (
                "private-room",
                Some(r#"{"note":"x"}"#),
                "20f91c5a5e45c8c23244e35509b45f6c66c1240c4e5a31652c67d976483b9276",
            ),
            (
                "presence-room",
                Some(r#"{"user_id":"7","user_info":{"name":"Zoë"}}"#),
                "48b3faa60305f0437beeff32d34cf96add2cd469cfb36c8b0cb9a3dc83c1623b",
            ),
            (
                "presence-room",
                Some(r#"{"user_id":7}"#),
                "9cf9bf41b8a99d5b60d52a4ab999993fcb752ba81a78a16d4f582e97d2654cde",
            ),
            ("presence-room", None, "95568f24de20f5d0e0d9e75925cddae78806e47e04f7a52dc10aee8465965e6c"),
            (
                "private-encrypted-room",
                None,
                "adf727265a38352ab3cdc1a62bbcd60716ed972610634cd544627f075745316e",
            ),
            (
                "private-encrypted-cache-room",
                None,
                "dcd03060b3e7327538f166abc29fd09ef43f9ec2e0a2ef657839c231962c6e96",
            ),
        ];
        for (channel, data, signature) in table {
            assert!(demo().verifies_subscription(signature, SOCKET, channel, data), "{channel} {data:?}");
            assert!(demo().verifies_subscription(&signature.to_uppercase(), SOCKET, channel, data));
            // Negatives of protocol.md §4.2.
            assert!(!demo().verifies_subscription(signature, SocketId::new(123_456, 7891), channel, data));
            assert!(!demo().verifies_subscription(signature, SOCKET, "private-other", data));
            assert!(!demo().verifies_subscription(&signature[..63], SOCKET, channel, data));
            assert!(!demo().verifies_subscription("", SOCKET, channel, data));
            assert!(!demo().verifies_subscription(signature, SOCKET, channel, Some("{\"user_id\":\"7\" }")));
            assert!(!SigningKey::new("other").verifies_subscription(signature, SOCKET, channel, data));
        }
    }

    #[test]
    fn published_subscription_vectors_hold() {
        let key = SigningKey::new("7ad3773142a6692b25b8");
        let socket = SocketId::new(1234, 1234);
        let table = [
            ("private-foobar", None, "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"),
            ("private-azAZ9_=@,.;", None, "208cbbce2a22fd7d7c3509046b17a97b99d345cf4c195bc0d54af9004a022b0b"),
            (
                "presence-foobar",
                Some(r#"{"user_id":"10","user_info":{"name":"Mr. Pusher"}}"#),
                "48dac51d2d7569e1e9c0f48c227d4b26f238fa68e5c0bb04222c966909c4f7c4",
            ),
            (
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Pusher"}}"#),
                "afaed3695da2ffd16931f457e338e6c9f2921fa133ce7dac49f529792be6304c",
            ),
            (
                "presence-foobar",
                Some(r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#),
                "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
            ),
        ];
        for (channel, data, signature) in table {
            assert!(key.verifies_subscription(signature, socket, channel, data), "{channel} {data:?}");
        }
    }

    #[test]
    fn sign_in_vectors_hold() {
        let table = [
            (
                "demo-secret",
                SOCKET,
                r#"{"id":"7","user_info":{"name":"Zoë"},"watchlist":["8","9"]}"#,
                "f5bacb96a19e4fdaa3cd30ac43af440ec6e36bef9d44d0ca00792bc3ce4f364a",
            ),
            (
                "7ad3773142a6692b25b8",
                SocketId::new(1234, 1234),
                r#"{"id":"12345"}"#,
                "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba",
            ),
            (
                "thisisasecret",
                SocketId::new(12345, 6789),
                r#"{"id":"123","name":"John Smith"}"#,
                "0dddb208b53c7649f3fbbb86254a6e1986bc6f8b566423ea690c9ca773497373",
            ),
        ];
        for (secret, socket, user_data, signature) in table {
            let key = SigningKey::new(secret);
            assert!(key.verifies_sign_in(signature, socket, user_data), "{user_data}");
            assert!(!key.verifies_sign_in(signature, socket, &user_data.replace('"', "'")));
            assert!(!key.verifies_subscription(signature, socket, "private-x", Some(user_data)));
        }
    }

    #[test]
    fn webhook_vectors_hold() {
        let table = [
            (
                "demo-secret",
                r#"{"time_ms":1700000000123,"events":[{"name":"channel_occupied","channel":"orders"}]}"#,
                "a416264d213b25872a9d0f48ace11bcee6bb3e1d79ecf66066ca8812cff24d39",
            ),
            (
                "secret",
                r#"{"hello":"world"}"#,
                "2677ad3e7c090b2fa2c0fb13020d66d5420879b8316eb356a2d60fb9073bc778",
            ),
        ];
        for (secret, body, signature) in table {
            let key = SigningKey::new(secret);
            assert_eq!(key.sign_webhook(body.as_bytes()), signature);
            assert!(key.verifies_webhook(signature, body.as_bytes()));
            assert!(key.verifies_webhook(&signature.to_uppercase(), body.as_bytes()));
            assert!(!key.verifies_webhook(signature, format!("{body}\n").as_bytes()));
            assert!(!key.verifies_webhook(&signature[..63], body.as_bytes()));
            assert!(!key.verifies_webhook("", body.as_bytes()));
            assert!(!SigningKey::new("other").verifies_webhook(signature, body.as_bytes()));
        }
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", demo()), "***");
    }
}
