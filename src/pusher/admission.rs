//! Whether a connection is let in. Source: protocol.md §1.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};
use percent_encoding::percent_decode_str;

use super::{Door, Peer, Place};
use crate::addresses::{AddressPlace, Kind};
use crate::apps::{App, ConnectionPlace};
use crate::limits::Limit;
use crate::protocol::CloseCode;
use crate::protocol::request::Query;
use crate::rejections::Example;

/// A connection that is let in, with its places.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Among the app's, until it is closed.
    pub(super) app_place: ConnectionPlace,
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
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Refused {
    pub(super) code: CloseCode,
    pub(super) message: String,
}

fn refused<T>(code: CloseCode, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { code, message: message.into() })
}

impl Door {
    /// Decides what the request alone can tell, in the order of protocol.md §1.4 (checks 1 to 6).
    pub(super) fn find_app(&self, uri: &Uri, headers: &HeaderMap, peer: Peer) -> Result<Arc<App>, Refused> {
        let (prefix, path) = self.0.apps.split_prefix(uri.path());
        let key = path.strip_prefix("/app/").map(|key| key.strip_suffix('/').unwrap_or(key));
        let Some(key) = key.filter(|key| !key.is_empty() && !key.contains('/')) else {
            return refused(CloseCode::PathNotFound, "Path not found: connect to /app/{key}");
        };
        let key = percent_decode_str(key).decode_utf8_lossy();
        let Some(app) = self.0.apps.by_key(&key) else {
            let shown = &key[..key.floor_char_boundary(80)];
            return refused(CloseCode::UnknownApp, format!("App key {shown} does not exist"));
        };
        if !prefix.is_empty() && *prefix != *app.path_prefix {
            return refused(CloseCode::PathNotFound, "Path not found: this app has another path prefix");
        }
        if app.tls_only && !self.came_over_tls(headers, peer) {
            return refused(CloseCode::TlsOnly, "This app takes TLS connections only");
        }
        if !app.enabled {
            return refused(CloseCode::AppDisabled, "This app is disabled");
        }
        check_protocol(uri.query().unwrap_or_default(), app.require_protocol)?;
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().is_ok_and(|origin| app.allows_origin(origin))
        {
            return refused(CloseCode::Unauthorized, "Origin not allowed");
        }
        Ok(Arc::clone(app))
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
                hub.refused(limit, None);
                return refused(CloseCode::OverCapacity, "Too many connections from your address");
            }
        };
        let over_quota = || {
            hub.refused(Limit::AppConnections, Some(app));
            refused(CloseCode::OverQuota, "This app has as many connections as it may have")
        };
        if hub.is_draining() && !app.is_full() {
            return refused(CloseCode::Reconnect, "Server is shutting down");
        }
        let node_place = match self.take_place() {
            Ok(place) => place,
            Err(_) if app.is_full() => return over_quota(),
            Err((limit, places)) => {
                hub.reject(limit, None, Example::from(client).value(places.map(u64::from)));
                return refused(CloseCode::OverCapacity, "Server is over capacity");
            }
        };
        let Some(app_place) = hub.take_place(app).await else { return over_quota() };
        let on_node = NodePlaces { _node: node_place, _address: address_place.map(Box::new) };
        Ok(Admitted { app_place, on_node })
    }

    fn came_over_tls(&self, headers: &HeaderMap, peer: Peer) -> bool {
        if peer.over_tls {
            return true;
        }
        let trusted = self.0.addresses.trusts(peer.address.ip());
        let forwarded = headers.get("x-forwarded-proto").and_then(|proto| proto.to_str().ok());
        // Several proxies may each have added theirs; the first one spoke to the client.
        let first = forwarded
            .and_then(|proto| proto.split(',').next())
            .map(|proto| proto.trim().to_ascii_lowercase());
        trusted && first.is_some_and(|proto| matches!(&*proto, "https" | "wss"))
    }
}

/// Versions 5 to 7 are spoken; none is 7. Source: protocol.md §1.2.
fn check_protocol(query: &str, required: bool) -> Result<(), Refused> {
    let query = Query::parse(query).unwrap_or_default();
    let given = query.value("protocol").unwrap_or_default();
    match given.parse::<u32>() {
        Ok(5..=7) => Ok(()),
        _ if given.is_empty() && !required => Ok(()),
        _ if given.is_empty() => refused(CloseCode::NoProtocol, "No protocol version given"),
        Ok(_) | Err(_) => {
            refused(CloseCode::UnsupportedProtocol, "Unsupported protocol version: use 5, 6 or 7")
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
        let peer = Peer { address: ([127, 0, 0, 1], 7).into(), over_tls };
        let found = door.find_app(&uri.parse().unwrap(), &map, peer);
        let client = peer.address.ip();
        let admitted = match found {
            Ok(app) => door.admit(&app, client, false).await,
            Err(refused) => Err(refused),
        };
        admitted.err().map(|refused| refused.code.number())
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
        assert_eq!(code(&prefixed, "/app/k", &[]).await, None);
        assert_eq!(code(&prefixed, "/rt/app/k.2", &[]).await, Some(4005), "another app's prefix");
        prefixed.0.hub.drain();
        assert_eq!(code(&prefixed, "/app/k", &[]).await, Some(4200));
    }

    #[tokio::test]
    async fn origins_are_checked_where_there_is_one() {
        let door = door(|app, _| app.allowed_origins = vec![OriginPattern::parse("*.example.com").unwrap()]);
        assert_eq!(code(&door, "/app/k", &[]).await, None, "native clients send none");
        assert_eq!(code(&door, "/app/k", &[("origin", "https://a.example.com")]).await, None);
        assert_eq!(code(&door, "/app/k", &[("origin", "https://evil.test")]).await, Some(4009));
        assert_eq!(code(&door, "/app/k", &[("origin", "null")]).await, Some(4009));
    }

    #[tokio::test]
    async fn tls_is_seen_or_believed_of_trusted_proxies_only() {
        let trusting = door(|app, _| app.tls_only = true);
        assert_eq!(code(&trusting, "/app/k", &[]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http")]).await, Some(4000));
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "https")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "HTTPS, http")]).await, None);
        assert_eq!(code(&trusting, "/app/k", &[("x-forwarded-proto", "http, https")]).await, Some(4000));
        let nobody = addresses::Options { trusted_proxies: Vec::new(), ..addresses::Options::default() };
        let wary = door_for(nobody, |app, _| app.tls_only = true);
        assert_eq!(code(&wary, "/app/k", &[("x-forwarded-proto", "https")]).await, Some(4000));
        assert_eq!(code_for(&wary, "/app/k", &[], true).await, None, "TLS of our own needs no proxy's word");
        assert_eq!(code_for(&wary, "/app/k", &[("x-forwarded-proto", "http")], true).await, None);
    }
}
