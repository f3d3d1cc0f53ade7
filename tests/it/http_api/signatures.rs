//! Signed requests: the forms that SDKs send, and requests that are rejected.

use pusherd::apps::App;
use serde_json::json;

use super::{BATCH, CHANNELS, EVENTS, event, good, with_company, with_listener};
use crate::harness::{DEMO, Key, NEWS, OTHER, Request, Server, md5_hex, unix_now};

#[tokio::test]
async fn the_python_sdk_signs_the_md5_of_no_body() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).with("body_md5", "d41d8cd98f00b204e9800998ecf8427e").signed();
    assert_eq!(server.send(request).await.ok(), json!({ "channels": {} }));
    server.send(Request::get(CHANNELS).with("body_md5", &md5_hex(b"x")).signed()).await.rejected(401);
}

#[tokio::test]
async fn the_php_sdk_signs_lists_joined_and_sends_them_indexed() {
    let server = Server::start().await;
    let signed = Request::get(CHANNELS)
        .with("filter_by_prefix", "presence-")
        .with("info", "user_count,subscription_count")
        .signed();
    let signature = signed.value("auth_signature").to_owned();
    assert!(signed.target().contains("info=user_count%2Csubscription_count"), "one of the two forms");
    server.send(signed.clone()).await.ok();
    let indexed = signed
        .without("info")
        .without("auth_signature")
        .with("info[0]", "user_count")
        .with("info[1]", "subscription_count")
        .with("auth_signature", &signature);
    assert!(indexed.target().contains("info%5B0%5D=user_count"));
    server.send(indexed).await.ok();
}

#[tokio::test]
async fn the_order_of_parameters_in_the_url_does_not_matter() {
    let server = Server::start().await;
    let signed = Request::get(CHANNELS).with("filter_by_prefix", "a").signed();
    let signature = signed.value("auth_signature").to_owned();
    let shuffled = signed
        .without("auth_signature")
        .without("filter_by_prefix")
        .with("filter_by_prefix", "a")
        .method("GET");
    let target = shuffled.target();
    let (path, query) = target.split_once('?').unwrap();
    let mut http = server.http().await;
    http.write(
        format!("GET {path}?auth_signature={signature}&{query} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes(),
    )
    .await;
    http.answer().await.ok();
}

#[tokio::test]
async fn keys_are_signed_in_lower_case() {
    let server = Server::start().await;
    let request = Request::get("/apps/1001/channels/news")
        .with("Auth_Key", DEMO.key)
        .with("auth_timestamp", &unix_now().to_string())
        .with("AUTH_VERSION", "1.0")
        .with("INFO", "subscription_count")
        .with_signature(&DEMO);
    assert_eq!(server.send(request).await.ok(), json!({ "occupied": false, "subscription_count": 0 }));
}

#[tokio::test]
async fn values_are_signed_unescaped() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).with("filter_by_prefix", "a b+c&d=é").signed();
    assert!(request.target().contains("a%20b%2Bc%26d%3D%C3%A9"));
    assert_eq!(server.send(request).await.ok(), json!({ "channels": {} }));
}

#[tokio::test]
async fn a_path_may_be_encoded_after_it_was_signed() {
    let server = Server::start().await;
    let unsealed = |path: &str| {
        Request::post(path, "{}")
            .with("body_md5", &md5_hex(b"{}"))
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
    };
    let path = "/apps/1001/users/user%20id/terminate_connections";
    for signed in ["/apps/1001/users/user id/terminate_connections", path] {
        server.send(unsealed(path).with_signature_of_path(&DEMO, signed)).await.ok();
    }
    let other = "/apps/1001/users/other/terminate_connections";
    server.send(unsealed(path).with_signature_of_path(&DEMO, other)).await.rejected(401);
}

#[tokio::test]
async fn a_signature_in_capitals_is_the_same_signature() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).signed();
    let capitals = request.value("auth_signature").to_uppercase();
    server.send(request.set("auth_signature", &capitals)).await.ok();
}

#[tokio::test]
async fn a_prefixed_path_may_be_signed_with_the_prefix_or_without() {
    let server = Server::with_app(|app: &mut App| app.path_prefix = "/rt".into()).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let unsealed = |path: &str| {
        Request::post(path, good())
            .with("body_md5", &md5_hex(good().as_bytes()))
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
    };
    let (bare, prefixed) = ("/apps/1001/events", "/rt/apps/1001/events");
    for (path, signed) in [(bare, bare), (prefixed, prefixed), (prefixed, bare), (bare, prefixed)] {
        server.send(unsealed(path).with_signature_of_path(&DEMO, signed)).await.ok();
        client.expect(event(NEWS, "e")).await;
    }
    server.send(unsealed(bare).with_signature_of_path(&DEMO, "/xx/apps/1001/events")).await.rejected(401);
    server.send(unsealed("/xx/apps/1001/events").with_signature_of_path(&DEMO, bare)).await.rejected(404);
    server.send(Request::get("/rt/apps/1002/channels").signed_with(&OTHER)).await.rejected(404);
    client.fence().await;
}

#[tokio::test]
async fn a_path_without_the_whole_prefix_is_answered_with_the_prefix() {
    let server = Server::with_app(|app: &mut App| app.path_prefix = "/a/b".into()).await;
    let bare = Server::start().await;
    let nothing = "There is nothing at /a/apps/1001/events";
    let no_app = "There is nothing at /a/apps/none/events";
    for (server, path, expected) in [
        (
            &server,
            "/a/apps/1001/events",
            format!(
                "{nothing}; the path_prefix of app 1001 is /a/b: its requests begin with /a/b/apps/1001/"
            ),
        ),
        (
            &bare,
            "/a/apps/1001/events",
            format!("{nothing}; app 1001 has no path_prefix: its requests begin with /apps/1001/"),
        ),
        (&server, "/a/apps/none/events", no_app.to_owned()),
    ] {
        let answer = server.send(Request::post(path, good())).await;
        assert_eq!((answer.status, answer.text()), (404, expected.as_str()), "{path}");
    }
}

/// Asserts that all requests are rejected with 401 and publish nothing.
async fn assert_unauthorized(requests: impl IntoIterator<Item = (&'static str, Request)>) {
    let (server, mut client) = with_listener().await;
    for (what, request) in requests {
        let answer = server.send(request).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        answer.rejected(401);
    }
    client.fence().await;
}

#[tokio::test]
async fn a_request_without_a_parameter_of_the_signature_is_rejected() {
    const NAMES: [&str; 4] = ["auth_key", "auth_timestamp", "auth_version", "body_md5"];
    let unsealed = |missing: &str| {
        let all = Request::post(EVENTS, good())
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
            .with("body_md5", &md5_hex(good().as_bytes()));
        all.without(missing)
    };
    // The parameter is missing before or after signing, or is empty.
    let before = NAMES.map(|name| (name, unsealed(name).with_signature(&DEMO)));
    let after = NAMES.map(|name| (name, unsealed("").with_signature(&DEMO).without(name)));
    let emptied = NAMES.map(|name| (name, unsealed("").set(name, "").with_signature(&DEMO)));
    assert_unauthorized(before.into_iter().chain(after).chain(emptied)).await;
    assert_unauthorized([
        ("no signature", unsealed("")),
        ("nothing", Request::post(EVENTS, good())),
        ("an empty signature", unsealed("").with("auth_signature", "")),
    ])
    .await;
}

#[tokio::test]
async fn an_invalid_parameter_of_the_signature_is_rejected() {
    let unsealed = |name: &str, value: &str| {
        let request = Request::post(EVENTS, good())
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
            .with("body_md5", &md5_hex(good().as_bytes()));
        request.set(name, value)
    };
    let cases = [
        ("auth_version", "2.0"),
        ("auth_version", "1"),
        ("auth_version", "1.00"),
        ("auth_version", " 1.0"),
        ("auth_timestamp", "now"),
        ("auth_timestamp", "1e9"),
        ("auth_timestamp", "1700000000.5"),
        ("auth_timestamp", "0x6554"),
        ("auth_timestamp", "99999999999999999999"),
        ("auth_timestamp", "-1"),
        ("auth_timestamp", "0"),
        ("auth_key", "nope"),
        ("auth_key", "1001"),
        ("auth_key", "other-key"),
        ("auth_key", "DEMO-KEY"),
        ("body_md5", "00000000000000000000000000000000"),
        ("body_md5", "nonsense"),
    ];
    assert_unauthorized(cases.map(|(name, value)| (value, unsealed(name, value).with_signature(&DEMO))))
        .await;
}

#[tokio::test]
async fn an_invalid_signature_is_rejected() {
    let request = || Request::post(EVENTS, good()).signed();
    let signature = |change: fn(&str) -> String| {
        let request = request();
        let changed = change(request.value("auth_signature"));
        request.set("auth_signature", &changed)
    };
    let unsealed = Request::post(EVENTS, good())
        .with("body_md5", &md5_hex(good().as_bytes()))
        .with("auth_key", DEMO.key)
        .with("auth_timestamp", &unix_now().to_string())
        .with("auth_version", "1.0");
    assert_unauthorized([
        ("empty", signature(|_| String::new())),
        ("63 digits", signature(|good| good[..63].to_owned())),
        ("62 digits", signature(|good| good[..62].to_owned())),
        ("65 digits", signature(|good| format!("{good}0"))),
        ("66 digits", signature(|good| format!("{good}00"))),
        ("no hex", signature(|good| format!("{}zz", &good[..62]))),
        ("a space", signature(|good| format!("{good} "))),
        ("zeroes", signature(|_| "0".repeat(64))),
        ("another secret", unsealed.clone().with_signature(&Key { secret: OTHER.secret, ..DEMO })),
        ("another method", Request::new("GET", EVENTS).body(good()).signed().method("POST")),
        (
            "a path signed for another app",
            unsealed.clone().with_signature_of_path(&DEMO, "/apps/1002/events"),
        ),
        ("a path signed for another route", unsealed.clone().with_signature_of_path(&DEMO, BATCH)),
        (
            "a path signed with a slash at the end",
            unsealed.clone().with_signature_of_path(&DEMO, "/apps/1001/events/"),
        ),
        ("a path signed in capitals", unsealed.with_signature_of_path(&DEMO, "/APPS/1001/EVENTS")),
        ("a parameter added", request().with("info", "subscription_count")),
        ("a parameter without a value added", request().with("x", "")),
        ("another time", request().set("auth_timestamp", &(unix_now() - 1000).to_string())),
        ("the next second", request().set("auth_timestamp", &(unix_now() + 5).to_string())),
    ])
    .await;
}

#[tokio::test]
async fn a_body_other_than_the_signed_one_is_rejected() {
    let body = good();
    let changed = body.replace(r#""e""#, r#""f""#);
    let request = || Request::post(EVENTS, body.clone()).signed();
    let md5_of_changed = md5_hex(changed.as_bytes());
    assert_unauthorized([
        ("one byte changed", request().body(changed.clone())),
        ("one byte added", request().body(format!("{body} "))),
        ("one byte missing", request().body(body[..body.len() - 1].to_owned())),
        ("no body", request().body("")),
        ("the MD5 corrected", request().body(changed.clone()).set("body_md5", &md5_of_changed)),
        ("a body where none was signed", Request::post(EVENTS, "").signed().body(body.clone())),
        (
            "the MD5 of none",
            Request::post(EVENTS, "").with("body_md5", &md5_hex(b"")).signed().body(body.clone()),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_key_is_valid_for_its_own_app_only() {
    let (server, mut client) = with_listener().await;
    server.send(Request::post(EVENTS, good()).signed_with(&OTHER)).await.rejected(401);
    let moved = Request::post("/apps/1002/events", good()).signed_with(&OTHER).path(EVENTS);
    server.send(moved).await.rejected(401);
    server.send(Request::get("/apps/1002/channels").signed()).await.rejected(401);
    server.send(Request::get("/apps/1002/channels").signed_with(&OTHER)).await.ok();
    client.fence().await;
}

#[tokio::test]
async fn a_repeated_parameter_of_the_signature_is_rejected() {
    let again = |name: &str| {
        let request = Request::post(EVENTS, good()).signed();
        let value = request.value(name).to_owned();
        request.with(name, &value)
    };
    let in_capitals = |name: &str| {
        let request = Request::post(EVENTS, good()).signed();
        let value = request.value(name).to_owned();
        request.with(&name.to_uppercase(), &value)
    };
    let names = ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"];
    assert_unauthorized(names.map(|name| (name, again(name)))).await;
    assert_unauthorized(names.map(|name| (name, in_capitals(name)))).await;
}

#[tokio::test]
async fn a_query_that_is_not_utf_8_is_rejected() {
    let server = Server::start().await;
    let mut http = server.http().await;
    let target = Request::get(CHANNELS).signed().target();
    http.write(format!("GET {target}&x=%FF HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await;
    http.answer().await.rejected(400);
}

#[tokio::test]
async fn unauthenticated_requests_reveal_nothing_about_channels() {
    let (server, _clients) = with_company().await;
    for target in [
        "/apps/1001/channels/presence-room?info=nonsense",
        "/apps/1001/channels/a%20b",
        "/apps/1001/channels/news/users",
        "/apps/1001/channels?info=user_count",
        "/apps/1001/channels/presence-room",
    ] {
        server.send(Request::get(target)).await.rejected(401);
        server.send(Request::get(target).signed_with(&OTHER)).await.rejected(401);
    }
    for body in ["not json", "{}", r#"{"name":"pusher:x"}"#] {
        server.send(Request::post(EVENTS, body).signed_with(&OTHER)).await.rejected(401);
    }
}

#[tokio::test]
async fn a_rejection_does_not_help_to_forge_a_signature() {
    let server = Server::start().await;
    let request = Request::post(EVENTS, good()).signed();
    let right = request.value("auth_signature").to_owned();
    let answer = server.send(request.set("auth_signature", &"0".repeat(64))).await;
    let text = answer.rejected(401);
    assert!(!text.contains(&right[..16]) && !text.contains("demo-secret") && !text.contains("auth_version="));
}

#[tokio::test]
async fn an_unknown_app_is_404_and_a_disabled_one_403_whatever_the_signature() {
    let server = Server::with_app(|app: &mut App| app.enabled = false).await;
    for request in [Request::post("/apps/9/events", good()), Request::get("/apps/9/channels")] {
        server.send(request.clone()).await.rejected(404);
        server.send(request.signed()).await.rejected(404);
    }
    server.send(Request::get("/apps/demo-key/channels").signed()).await.rejected(404);
    server.send(Request::get("/apps//channels").signed()).await.rejected(404);
    server.send(Request::post(EVENTS, good()).signed()).await.rejected(403);
    server.send(Request::get(CHANNELS)).await.rejected(403);
    server.send(Request::get("/apps/1002/channels").signed_with(&OTHER)).await.ok();
}
