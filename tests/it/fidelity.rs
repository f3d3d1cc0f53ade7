//! The data of an event belongs to the application and arrives byte for byte. Source: protocol.md §0 (2), §7, §8.4, §10.1.

use serde_json::{Value, json};

use crate::harness::{NEWS, Request, Server};

/// The `data` of a frame as a JSON literal with its quotes.
fn data_literal(frame: &str) -> &str {
    let (_, rest) = frame.split_once(r#""data":"#).unwrap();
    assert!(rest.starts_with('"'), "{frame}");
    let bytes = rest.as_bytes();
    let mut end = 1;
    while bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    &rest[..=end]
}

/// Publishes a body and returns the frame that a subscriber of `news` receives.
async fn frame_of(server: &Server, path: &str, body: impl Into<Vec<u8>>) -> String {
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    server.post(path, body).await.ok();
    client.next_text().await
}

const LITERALS: [&str; 16] = [
    r#""5""#,
    r#""""#,
    r#""null""#,
    r#""plain text""#,
    r#""{\"id\":7}""#,
    r#""{\"order\":{\"id\":7,\"note\":\"caf\\u00e9\",\"url\":\"https:\\\/\\\/x.example\\\/7\"}}""#,
    r#""\ud800""#,
    r#""a\udfffb \uDBFF\u0041""#,
    r#""\ud83d\ude00""#,
    r#""😀 é € 𝄞""#,
    r#""\u00e9\u20ac""#,
    r#""</script><!-- & ' \/ \\ \" ""#,
    r#""\u0000\u0001\b\f\n\r\t\u007f\u2028\u2029""#,
    "\"\u{7f}\u{80}\u{2028}\u{2029}\u{feff}\u{fffd}\u{10ffff}\"",
    r#""\u0022\u005c\u0061""#,
    r#"" leading and trailing ""#,
];

#[tokio::test]
async fn data_that_is_a_string_arrives_byte_for_byte() {
    let server = Server::start().await;
    for literal in LITERALS {
        let body = format!(r#"{{"name":"e","channel":"news","data":{literal}}}"#);
        let frame = frame_of(&server, "/apps/1001/events", body).await;
        assert_eq!(data_literal(&frame), literal);
    }
}

#[tokio::test]
async fn data_of_a_batch_arrives_byte_for_byte() {
    let server = Server::start().await;
    for literal in LITERALS {
        let body = format!(r#"{{ "batch" : [ {{"data": {literal} ,"name":"e","channel":"news"}} ] }}"#);
        let frame = frame_of(&server, "/apps/1001/batch_events", body).await;
        assert_eq!(data_literal(&frame), literal);
    }
}

#[tokio::test]
async fn cached_data_arrives_byte_for_byte() {
    let server = Server::start().await;
    for literal in LITERALS {
        let body = format!(r#"{{"name":"e","channel":"cache-news","data":{literal}}}"#);
        server.post("/apps/1001/events", body).await.ok();
        let mut client = server.connect().await;
        client.subscribe("cache-news").await;
        assert_eq!(data_literal(&client.next_text().await), literal);
    }
}

#[tokio::test]
async fn a_frame_has_event_channel_and_data_only() {
    let server = Server::start().await;
    let body = r#"{"name":"order.shipped","data":"{\"id\":7}","channels":["news"],"socket_id":"1.1","more":1,"user_id":"7"}"#;
    let frame = frame_of(&server, "/apps/1001/events", body).await;
    let frame: Value = serde_json::from_str(&frame).unwrap();
    assert_eq!(frame, json!({ "event": "order.shipped", "channel": NEWS, "data": "{\"id\":7}" }));
}

#[tokio::test]
async fn every_name_of_an_event_arrives_unchanged() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for name in [
        r"App\Events\OrderShipped",
        r"Illuminate\Notifications\Events\BroadcastNotificationCreated",
        "order.shipped",
        "client-typing",
        "a \"quoted\" name",
        "né 😀",
        "</script>",
        "tab\there",
        "pusher",
        "pusher_internal",
        " ",
    ] {
        server.publish(NEWS, name, "x").await;
        client.expect(json!({ "event": name, "channel": NEWS, "data": "x" })).await;
    }
    server.post("/apps/1001/events", r#"{"name":"\ud83d\ude00\/","channel":"news","data":""}"#).await.ok();
    client.expect(json!({ "event": "😀/", "channel": NEWS, "data": "" })).await;
}

#[tokio::test]
async fn data_that_is_no_string_arrives_as_its_json_text() {
    let server = Server::start().await;
    for text in [r#"{"id":7,"a":[1,2]}"#, "[]", "7", "1.50", "true", r#"{ "spaced" : "é\u00e9" }"#] {
        let body = format!(r#"{{"name":"e","channel":"news","data":{text}}}"#);
        let frame: Value = serde_json::from_str(&frame_of(&server, "/apps/1001/events", body).await).unwrap();
        let data = frame["data"].as_str().unwrap();
        let (sent, received): (Value, Value) =
            (serde_json::from_str(text).unwrap(), serde_json::from_str(data).unwrap());
        assert_eq!(received, sent, "{data}");
    }
}

#[tokio::test]
async fn the_payload_of_an_encrypted_channel_is_unchanged() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let channel = "private-encrypted-news";
    client.subscribe(channel).await;
    for literal in [
        r#""{\"nonce\":\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX\",\"ciphertext\":\"c2VjcmV0Ym94LWJ5dGVz\"}""#,
        r#""{\"nonce\":\"a\\\/b+c==\",\"ciphertext\":\"\\\/\\\/8=\"}""#,
        r#""anything else""#,
        r#""{}""#,
    ] {
        let body = format!(r#"{{"name":"msg","channel":"{channel}","data":{literal}}}"#);
        server.post("/apps/1001/events", body).await.ok();
        assert_eq!(data_literal(&client.next_text().await), literal);
    }
}

#[tokio::test]
async fn an_event_of_exactly_the_data_limit_arrives() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for literal in [
        format!("\"{}\"", "x".repeat(102_400)),
        format!("\"{}\"", r"\u00e9".repeat(51_200)),
        format!("\"{}\"", "😀".repeat(25_600)),
        format!("\"{}\"", r"\ud83d\ude00".repeat(25_600)),
        format!("\"{}\"", r"\u0001".repeat(102_400)),
    ] {
        let body = format!(r#"{{"name":"e","channel":"news","data":{literal}}}"#);
        server.post("/apps/1001/events", body).await.ok();
        assert!(data_literal(&client.next_text().await) == literal, "{} bytes changed", literal.len());
    }
}

/// A batch of ten events for `news`, each at the data limit in the longest form that PHP and Python produce.
fn largest_batch() -> String {
    let data = r"\u00e9".repeat(51_200);
    let events: Vec<_> =
        (0..10).map(|at| format!(r#"{{"channel":"news","name":"e{at}","data":"{data}"}}"#)).collect();
    format!(r#"{{"batch":[{}]}}"#, events.join(","))
}

#[tokio::test]
async fn a_batch_of_ten_escaped_events_at_the_data_limit_is_accepted() {
    let server = Server::start().await;
    assert_eq!(server.post("/apps/1001/batch_events", largest_batch()).await.ok(), json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_batch_reaches_a_subscriber_that_reads() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let reading = async {
        for at in 0..10 {
            let frame: Value = serde_json::from_str(&client.next_text().await).unwrap();
            assert_eq!(frame["event"], format!("e{at}"));
            assert_eq!(frame["data"].as_str().unwrap().len(), 102_400);
        }
    };
    let (answer, ()) = tokio::join!(server.post("/apps/1001/batch_events", largest_batch()), reading);
    answer.ok();
}

#[tokio::test]
async fn the_body_of_a_legacy_publish_is_the_data() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for data in [r#"{"id":7}"#, "text with \"quotes\" and \\", "é 😀\n", "5"] {
        let request = Request::post("/apps/1001/channels/news/events", data).with("name", "e").signed();
        assert_eq!(server.send(request).await.status, 202);
        client.expect(json!({ "event": "e", "channel": NEWS, "data": data })).await;
    }
}
