//! Whether a connection is let in. Source: protocol.md §1.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};
use percent_encoding::percent_decode_str;

use super::{Door, Peer, Place};
use crate::addresses::{AddressPlace, Kind};
use crate::apps::{App, ConnectionPermit};
use crate::limits::Limit;
use crate::protocol::CloseCode;
use crate::protocol::request::Query;
use crate::rejections::{Mistake, Rejection};

/// A connection that is let in, with its places.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Among the app's, until it is closed.
    pub(super) app_place: ConnectionPermit,
    /// Until its socket is.
    pub(super) on_node: NodePlaces,
}

/// A socket's places among the node's and its address's.
#[derive(Debug)]
pub(super) struct NodePlaces {
    _node: Place,
    /// In a box, because most nodes do not limit addresses.
    _address: Option<Box<AddressPlace>>,
}

/// Why a connection is not let in: told in an error frame and a close code, because browsers never show the HTTP
/// status of a failed upgrade to scripts.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) code: CloseCode,
    pub(super) message: String,
    /// What the operator is told; `None`: nothing, because nobody did anything wrong.
    pub(super) why: Option<Rejection>,
    /// The app, if it is one that there is.
    pub(super) app: Option<Arc<App>>,
}

fn refused<T>(
    code: CloseCode,
    message: impl Into<String>,
    why: impl Into<Rejection>,
    app: Option<&Arc<App>>,
) -> Result<T, Refused> {
    Err(Refused { code, message: message.into(), why: Some(why.into()), app: app.cloned() })
}

impl Door {
    /// Decides what the request alone can tell, in the order of protocol.md §1.4 (checks 1 to 6).
    pub(super) fn find_app(&self, uri: &Uri, headers: &HeaderMap, peer: Peer) -> Result<Arc<App>, Refused> {
        if peer.misses_tls {
            let message = "This port speaks TLS: use wss://";
            return refused(CloseCode::TlsOnly, message, Mistake::PlainOnTlsPort, None);
        }
        let Some((prefix, key)) = self.split_path(uri.path()) else {
            let message = "Path not found: connect to /app/{key}";
            return refused(CloseCode::PathNotFound, message, Mistake::ConnectionPath, None);
        };
        let key = percent_decode_str(key).decode_utf8_lossy();
        let Some(app) = self.0.apps.by_key(&key) else {
            let message = format!("App key {} does not exist", &key[..key.floor_char_boundary(80)]);
            return refused(CloseCode::UnknownApp, message, Mistake::ConnectionKey, None);
        };
        if !prefix.is_empty() && *prefix != *app.path_prefix {
            let message = "Path not found: this app has another path prefix";
            return refused(CloseCode::PathNotFound, message, Mistake::ConnectionPath, Some(app));
        }
        if app.tls_only && !peer.over_tls && !self.0.addresses.came_by_tls(peer.address.ip(), headers) {
            let message = "This app takes TLS connections only";
            return refused(CloseCode::TlsOnly, message, Mistake::TlsOnly, Some(app));
        }
        if !app.enabled {
            let message = "This app is disabled";
            return refused(CloseCode::AppDisabled, message, Mistake::AppDisabled, Some(app));
        }
        if let Err((code, message)) = check_protocol(uri.query().unwrap_or_default(), app.require_protocol) {
            return refused(code, message, Mistake::ProtocolVersion, Some(app));
        }
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().is_ok_and(|origin| app.allows_origin(origin))
        {
            return refused(CloseCode::Unauthorized, "Origin not allowed", Mistake::Origin, Some(app));
        }
        Ok(Arc::clone(app))
    }

    /// The prefix and the key in the path of a connection. `None`: it is another path.
    pub(super) fn split_path<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        let (prefix, path) = self.0.apps.split_prefix(path);
        let key = path.strip_prefix("/app/")?;
        let key = key.strip_suffix('/').unwrap_or(key);
        (!key.is_empty() && !key.contains('/')).then_some((prefix, key))
    }

    /// Takes the places of a connection of `client` (checks 7 and 8). Behind a proxy, `is_new` has its arrival
    /// counted. The place of the address comes first: whoever has too many does not take another's meanwhile. The
    /// app's comes last, and is kept once it is taken: nobody is told that the app is full, which is told for good,
    /// because of one who had its last place for a moment.
    pub(super) async fn admit(
        &self,
        app: &Arc<App>,
        client: IpAddr,
        is_new: bool,
    ) -> Result<Admitted, Refused> {
        let hub = &self.0.hub;
        let entered = self.0.addresses.enter(client, Kind::WebSocket, is_new, hub.now());
        let address_place = match entered {
            Ok(place) => place,
            Err(limit) => {
                let message = "Too many connections from your address";
                return refused(CloseCode::OverCapacity, message, limit, None);
            }
        };
        let over_quota = || {
            let message = "This app has as many connections as it may have";
            refused(CloseCode::OverQuota, message, Limit::AppConnections, Some(app))
        };
        if hub.is_draining() && !app.is_at_connection_limit() {
            let message = "Server is shutting down".to_owned();
            return Err(Refused { code: hub.drain_close_code(), message, why: None, app: None });
        }
        let node_place = match self.take_place() {
            Ok(place) => place,
            Err(_) if app.is_at_connection_limit() => return over_quota(),
            Err(limit) => return refused(CloseCode::OverCapacity, "Server is over capacity", limit, None),
        };
        let Some(app_place) = hub.acquire_connection(app).await else { return over_quota() };
        let on_node = NodePlaces { _node: node_place, _address: address_place.map(Box::new) };
        Ok(Admitted { app_place, on_node })
    }
}

/// Versions 5 to 7 are spoken; none is 7. Source: protocol.md §1.2.
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
    use crate::pusher::Options;
    use crate::rejections::Example;
    use crate::webhooks::Webhooks;

    fn door(change: impl FnOnce(&mut App, &mut Options)) -> Door {
        door_for(addresses::Options::default(), change)
    }

    fn door_for(addresses: addresses::Options, change: impl FnOnce(&mut App, &mut Options)) -> Door {
        let (mut app, mut options) = (App::new("1", "k", "s"), Options::default());
        change(&mut app, &mut options);
        let apps = Apps::new([app, App::new("2", "k.2", "s")]);
        let hub = Hub::new(false, Arc::default(), Webhooks::default());
        let addresses = Arc::new(Addresses::new(addresses));
        Door::new(hub, Arc::new(apps), addresses, options, TaskTracker::new())
    }

    async fn code(door: &Door, uri: &str, headers: &[(&str, &str)]) -> Option<u16> {
        code_for(door, uri, headers, false).await
    }

    async fn code_for(door: &Door, uri: &str, headers: &[(&str, &str)], over_tls: bool) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: header::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        let peer = Peer { address: ([127, 0, 0, 1], 7).into(), over_tls, misses_tls: false };
        let found = door.find_app(&uri.parse().unwrap(), &map, peer);
        let client = peer.address.ip();
        let admitted = match found {
            Ok(app) => door.admit(&app, client, false).await,
            Err(refused) => Err(refused),
        };
        let refused = admitted.err()?;
        door.report(&refused, Example::from(client));
        Some(refused.code.number())
    }

    #[tokio::test]
    async fn the_urls_of_all_clients_are_let_in() {
        let door = door(|_, _| {});
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
            assert_eq!(code(&door, uri, &[]).await, None, "{uri}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_refused_with_its_code() {
        let door = door(|_, _| {});
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
            assert_eq!(code(&door, uri, &[]).await, Some(expected), "{uri}");
        }
    }

    #[tokio::test]
    async fn an_app_has_its_own_conditions() {
        let disabled = door(|app, _| app.enabled = false);
        assert_eq!(
            code(&disabled, "/app/k?protocol=99", &[]).await,
            Some(4003),
            "before the protocol is looked at"
        );
        let versioned = door(|app, _| app.require_protocol = true);
        assert_eq!(code(&versioned, "/app/k", &[]).await, Some(4008));
        assert_eq!(code(&versioned, "/app/k?protocol=7", &[]).await, None);
        let quota = door(|app, _| app.limits.connections_max = Some(0));
        assert_eq!(code(&quota, "/app/k", &[]).await, Some(4004));
        let full = door(|_, options| options.connections_max = Some(0));
        assert_eq!(code(&full, "/app/k", &[]).await, Some(4100));
        let out_of_files = door(|_, options| options.files_max = Some(0));
        assert_eq!(code(&out_of_files, "/app/k", &[]).await, Some(4100));
        let metrics = out_of_files.0.hub.metrics();
        assert_eq!(metrics.rejected(Limit::OpenFiles).get(), 1, "and the operator is told what to raise");
        let prefixed = door(|app, _| app.path_prefix = "/rt".into());
        assert_eq!(code(&prefixed, "/rt/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "//rt/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "/rt/app/k.2", &[]).await, Some(4005), "another app's prefix");
        prefixed.0.hub.drain();
        assert_eq!(code(&prefixed, "/rt/app/k", &[]).await, Some(4100), "of a node that is alone");
    }

    #[tokio::test]
    async fn origins_are_checked_where_there_is_one() {
        let door = door(|app, _| app.allowed_origins = vec![OriginPattern::parse("*.example.com").unwrap()]);
        assert_eq!(code(&door, "/app/k", &[]).await, None, "native clients send none");
        assert_eq!(code(&door, "/app/k", &[("origin", "https://a.example.com")]).await, None);
        assert_eq!(code(&door, "/app/k", &[("origin", "https://evil.test")]).await, Some(4009));
        assert_eq!(code(&door, "/app/k", &[("origin", "https://evil.test?.example.com")]).await, Some(4009));
        assert_eq!(code(&door, "/app/k", &[("origin", "null")]).await, Some(4009));
    }

    #[tokio::test]
    async fn tls_is_seen_or_believed_of_trusted_proxies_only() {
        let trusting = door(|app, _| app.tls_only = true);
        assert_eq!(code(&trusting, "/app/k", &[]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http")]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "https")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http, HTTPS")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "https, http")]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("forwarded", "for=192.0.2.1;proto=https")]).await, None);
        let nobody = addresses::Options { trusted_proxies: Vec::new(), ..addresses::Options::default() };
        let wary = door_for(nobody, |app, _| app.tls_only = true);
        assert_eq!(code(&wary, "/app/k", &[("x-forwarded-proto", "https")]).await, Some(4000));
        assert_eq!(code_for(&wary, "/app/k", &[], true).await, None, "TLS of our own needs no proxy's word");
        assert_eq!(code_for(&wary, "/app/k", &[("x-forwarded-proto", "http")], true).await, None);
    }
}
