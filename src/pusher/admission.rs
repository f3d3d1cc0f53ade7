//! Whether a connection is accepted. Source: protocol.md §1.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};
use percent_encoding::percent_decode_str;

use super::{Endpoint, NodePermit, Peer};
use crate::addresses::{AddressPermit, ConnectionKind};
use crate::apps::{App, ConnectionPermit};
use crate::limits::Limit;
use crate::protocol::CloseCode;
use crate::protocol::request::Query;
use crate::rejections::{Mistake, Rejection};

/// Why a disabled app rejects and closes connections.
pub(super) const APP_DISABLED: &str = "This app is disabled";

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) app: Arc<App>,
    pub(super) permits: Permits,
}

/// An accepted connection's permits.
#[derive(Debug)]
pub(super) struct Permits {
    /// Of the app, until the connection is closed.
    pub(super) of_app: ConnectionPermit,
    /// Of the node and the address, until the socket is closed.
    pub(super) of_node: NodePermits,
}

/// A socket's permits of the node and of its address.
#[derive(Debug)]
pub(super) struct NodePermits {
    _node: NodePermit,
    /// Boxed, because most nodes do not limit addresses.
    _address: Option<Box<AddressPermit>>,
}

/// Why a connection is rejected. The client is told in an error frame and a close code, because browsers never show the
/// HTTP status of a failed upgrade to scripts.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) code: CloseCode,
    pub(super) message: String,
    /// The reason for the log and the counters; `None`: the client did nothing wrong and no limit was reached.
    pub(super) why: Option<Rejection>,
    /// The app, if it is known.
    pub(super) app: Option<Arc<App>>,
}

fn reject<T>(
    code: CloseCode,
    message: impl Into<String>,
    why: impl Into<Rejection>,
    app: Option<&Arc<App>>,
) -> Result<T, Rejected> {
    Err(Rejected { code, message: message.into(), why: Some(why.into()), app: app.cloned() })
}

impl Endpoint {
    /// Decides by the request alone: checks 1 to 6 of protocol.md §1.4. TLS on this port is checked first, and that of the app
    /// once the app is known.
    pub(super) fn find_app(&self, uri: &Uri, headers: &HeaderMap, peer: Peer) -> Result<Arc<App>, Rejected> {
        if peer.is_plain_on_tls_port {
            let message = "This port speaks TLS: use wss://";
            return reject(CloseCode::TlsOnly, message, Mistake::PlainOnTlsPort, None);
        }
        let Some((prefix, key)) = self.split_path(uri.path()) else {
            let message = "Path not found: connect to /app/{key}";
            return reject(CloseCode::PathNotFound, message, Mistake::ConnectionPath, None);
        };
        let key = percent_decode_str(key).decode_utf8_lossy();
        let Some(app) = self.0.apps.by_key(&key) else {
            let message = format!("App key {} does not exist", &key[..key.floor_char_boundary(80)]);
            return reject(CloseCode::UnknownApp, message, Mistake::ConnectionKey, None);
        };
        if !prefix.is_empty() && *prefix != *app.path_prefix {
            let message = "Path not found: this app has another path prefix";
            return reject(CloseCode::PathNotFound, message, Mistake::ConnectionPath, Some(&app));
        }
        if app.tls_only && !peer.over_tls && !self.0.addresses.client_uses_tls(peer.address.ip(), headers) {
            let message = "This app takes TLS connections only";
            return reject(CloseCode::TlsOnly, message, Mistake::TlsOnly, Some(&app));
        }
        if !app.enabled {
            return reject(CloseCode::AppDisabled, APP_DISABLED, Mistake::AppDisabled, Some(&app));
        }
        if let Err((code, message)) = check_protocol(uri.query().unwrap_or_default(), app.require_protocol) {
            return reject(code, message, Mistake::ProtocolVersion, Some(&app));
        }
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().is_ok_and(|origin| app.allows_origin(origin))
        {
            return reject(CloseCode::Unauthorized, "Origin not allowed", Mistake::Origin, Some(&app));
        }
        Ok(app)
    }

    /// The prefix and the key in the path of a connection. `None`: another path.
    pub(super) fn split_path<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        let (prefix, path) = self.0.apps.split_prefix(path);
        let key = path.strip_prefix("/app/")?;
        let key = key.strip_suffix('/').unwrap_or(key);
        (!key.is_empty() && !key.contains('/')).then_some((prefix, key))
    }

    /// Acquires the permits of a connection of `client` (checks 7 and 8). Behind a proxy, `is_new` counts it as a new
    /// connection of the address. The permit of the address comes first, so that an address over its limit takes no other
    /// permit meanwhile. The permit of the app comes last, and is kept once acquired: clients take 4004 as final, so it
    /// must never be caused by a connection that held the last permit for an instant.
    pub(super) async fn admit(
        &self,
        app: &Arc<App>,
        client: IpAddr,
        is_new: bool,
    ) -> Result<Admitted, Rejected> {
        let hub = &self.0.hub;
        let acquired = self.0.addresses.try_acquire(client, ConnectionKind::WebSocket, is_new, hub.now());
        let address_permit = match acquired {
            Ok(permit) => permit,
            Err(limit) => {
                let message = "Too many connections from your address";
                return reject(CloseCode::OverCapacity, message, limit, None);
            }
        };
        let at_app_limit = || {
            let message = "This app has as many connections as it may have";
            reject(CloseCode::OverQuota, message, Limit::AppConnections, Some(app))
        };
        if hub.is_draining() && !app.is_at_connection_limit() {
            let message = "Server is shutting down".to_owned();
            return Err(Rejected { code: hub.drain_close_code(), message, why: None, app: None });
        }
        let node_permit = match self.acquire_node_permit() {
            Ok(permit) => permit,
            Err(_) if app.is_at_connection_limit() => return at_app_limit(),
            Err(limit) => return reject(CloseCode::OverCapacity, "Server is over capacity", limit, None),
        };
        let Some(of_app) = hub.acquire_connection(app).await else { return at_app_limit() };
        let of_node = NodePermits { _node: node_permit, _address: address_permit.map(Box::new) };
        Ok(Admitted { app: Arc::clone(app), permits: Permits { of_app, of_node } })
    }
}

/// Versions 5 to 7 are supported; a missing one counts as 7. Source: protocol.md §1.2.
fn check_protocol(query: &str, required: bool) -> Result<(), (CloseCode, &'static str)> {
    let query = Query::parse(query).unwrap_or_default();
    let given = query.value("protocol").unwrap_or_default();
    match given.parse::<u32>() {
        Ok(5..=7) => Ok(()),
        _ if given.is_empty() && !required => Ok(()),
        _ if given.is_empty() => Err((CloseCode::NoProtocol, "No protocol version given")),
        Ok(_) | Err(_) => {
            Err((CloseCode::UnsupportedProtocol, "Unsupported protocol version: use 5, 6 or 7"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::addresses::{self, Addresses};
    use crate::apps::{Apps, OriginPattern};
    use crate::hub::Hub;
    use crate::observers::Observers;
    use crate::pusher::Options;
    use crate::rejections::Example;
    use crate::webhooks::Webhooks;

    fn endpoint(change: impl FnOnce(&mut App, &mut Options)) -> Endpoint {
        endpoint_for(addresses::Options::default(), change)
    }

    fn endpoint_for(addresses: addresses::Options, change: impl FnOnce(&mut App, &mut Options)) -> Endpoint {
        let (mut app, mut options) = (App::new("1", "k", "s"), Options::default());
        change(&mut app, &mut options);
        let apps = Apps::new([app, App::new("2", "k.2", "s")]);
        let hub = Hub::new(Observers::default(), Arc::default(), Webhooks::default());
        let addresses = Arc::new(Addresses::new(addresses));
        Endpoint::new(hub, Arc::new(apps), addresses, options, TaskTracker::new())
    }

    async fn code(endpoint: &Endpoint, uri: &str, headers: &[(&str, &str)]) -> Option<u16> {
        code_for(endpoint, uri, headers, false).await
    }

    async fn code_for(
        endpoint: &Endpoint,
        uri: &str,
        headers: &[(&str, &str)],
        over_tls: bool,
    ) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        let peer = Peer { address: ([127, 0, 0, 1], 7).into(), over_tls, is_plain_on_tls_port: false };
        let found = endpoint.find_app(&uri.parse().unwrap(), &map, peer);
        let client = peer.address.ip();
        let admitted = match found {
            Ok(app) => endpoint.admit(&app, client, false).await,
            Err(rejected) => Err(rejected),
        };
        let rejected = admitted.err()?;
        endpoint.report(&rejected, Example::from(client));
        Some(rejected.code.number())
    }

    #[tokio::test]
    async fn the_urls_of_all_clients_are_accepted() {
        let endpoint = endpoint(|_, _| {});
        for uri in [
            "/app/k?protocol=7&client=js&version=8.6.0&flash=false",
            "/app/k?client=java-client&protocol=5&version=2.4",
            "/app/k?protocol=5&client=pusher-dotnet-client&version=2",
            "/app/k?protocol=6",
            "/app/k?protocol=",
            "/app/k?client=%ff",
            "/app/k",
            "/app/k/",
            "//app/k",
            "///app/k?protocol=7",
            "/app/%6b",
            "/app/k.2",
        ] {
            assert_eq!(code(&endpoint, uri, &[]).await, None, "{uri}");
        }
    }

    #[tokio::test]
    async fn invalid_urls_are_rejected_with_their_codes() {
        let endpoint = endpoint(|_, _| {});
        for (uri, expected) in [
            ("/", 4005),
            ("/app/", 4005),
            ("/app", 4005),
            ("/app/k/x", 4005),
            ("/rt/app/k", 4005),
            ("/apps/1/events", 4005),
            ("/app/nope", 4001),
            ("/app/nope?protocol=99", 4001),
            ("/app/k?protocol=4", 4007),
            ("/app/k?protocol=8", 4007),
            ("/app/k?protocol=x", 4007),
            ("/app/k?protocol=-7", 4007),
            ("/app/k?protocol=7.0", 4007),
        ] {
            assert_eq!(code(&endpoint, uri, &[]).await, Some(expected), "{uri}");
        }
    }

    #[tokio::test]
    async fn settings_of_an_app_decide_its_admissions() {
        let disabled = endpoint(|app, _| app.enabled = false);
        assert_eq!(
            code(&disabled, "/app/k?protocol=99", &[]).await,
            Some(4003),
            "before the protocol is checked"
        );
        let versioned = endpoint(|app, _| app.require_protocol = true);
        assert_eq!(code(&versioned, "/app/k", &[]).await, Some(4008));
        assert_eq!(code(&versioned, "/app/k?protocol=7", &[]).await, None);
        let quota = endpoint(|app, _| app.limits.connections_max = Some(0));
        assert_eq!(code(&quota, "/app/k", &[]).await, Some(4004));
        let full = endpoint(|_, options| options.connections_max = Some(0));
        assert_eq!(code(&full, "/app/k", &[]).await, Some(4100));
        let out_of_files = endpoint(|_, options| options.files_max = Some(0));
        assert_eq!(code(&out_of_files, "/app/k", &[]).await, Some(4100));
        let metrics = out_of_files.0.hub.metrics();
        assert_eq!(metrics.rejected(Limit::OpenFiles).get(), 1, "and the operator is told what to raise");
        let prefixed = endpoint(|app, _| app.path_prefix = "/rt".into());
        assert_eq!(code(&prefixed, "/rt/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "//rt/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "/rt/app/k.2", &[]).await, Some(4005), "another app's prefix");
        prefixed.0.hub.drain();
        assert_eq!(code(&prefixed, "/rt/app/k", &[]).await, Some(4100), "of a single node");
    }

    #[tokio::test]
    async fn an_origin_is_checked_if_there_is_one() {
        let endpoint =
            endpoint(|app, _| app.allowed_origins = vec![OriginPattern::parse("*.example.com").unwrap()]);
        assert_eq!(code(&endpoint, "/app/k", &[]).await, None, "native clients send none");
        assert_eq!(code(&endpoint, "/app/k", &[("origin", "https://a.example.com")]).await, None);
        assert_eq!(code(&endpoint, "/app/k", &[("origin", "https://evil.test")]).await, Some(4009));
        assert_eq!(
            code(&endpoint, "/app/k", &[("origin", "https://evil.test?.example.com")]).await,
            Some(4009)
        );
        assert_eq!(code(&endpoint, "/app/k", &[("origin", "null")]).await, Some(4009));
    }

    #[tokio::test]
    async fn tls_is_detected_or_taken_from_trusted_proxies_only() {
        let trusting = endpoint(|app, _| app.tls_only = true);
        assert_eq!(code(&trusting, "/app/k", &[]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http")]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "https")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http, HTTPS")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "https, http")]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("forwarded", "for=192.0.2.1;proto=https")]).await, None);
        let nobody = addresses::Options { trusted_proxies: Vec::new(), ..addresses::Options::default() };
        let wary = endpoint_for(nobody, |app, _| app.tls_only = true);
        assert_eq!(code(&wary, "/app/k", &[("x-forwarded-proto", "https")]).await, Some(4000));
        assert_eq!(
            code_for(&wary, "/app/k", &[], true).await,
            None,
            "a TLS connection needs no proxy to say so"
        );
        assert_eq!(code_for(&wary, "/app/k", &[("x-forwarded-proto", "http")], true).await, None);
    }
}
