//! How requests arrive: keep-alive, pipelining, chunks, bodies in pieces, invalid heads.

use std::time::Duration;

use pusherd::apps::App;
use serde_json::json;

use super::{CHANNELS, EVENTS, event, good, with_listener};
use crate::harness::{Answer, DEMO, Http, NEWS, OTHER, Request, Server, unix_now};

#[tokio::test]
async fn a_connection_is_kept_alive() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    for at in 0..20 {
        let answer = match at % 4 {
            0 => http.send(Request::post(EVENTS, good()).signed()).await,
            1 => http.send(Request::get(CHANNELS).signed()).await,
            2 => http.send(Request::get("/up")).await,
            _ => http.send(Request::get(CHANNELS)).await,
        };
        assert_eq!(answer.status, if at % 4 == 3 { 401 } else { 200 });
        assert_ne!(answer.header("connection"), Some("close"));
    }
    for _ in 0..5 {
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_connection_is_closed_if_the_request_demands_it() {
    let server = Server::start().await;
    let mut http = server.http().await;
    http.send(Request::get("/up").header("Connection", "close")).await.ok();
    http.ends().await;
    let mut old = server.http().await;
    old.write(b"GET /up HTTP/1.0\r\n\r\n").await;
    old.answer().await.ok();
    old.ends().await;
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    let requests: Vec<u8> = (0..10).flat_map(|_| Request::post(EVENTS, good()).signed().to_bytes()).collect();
    http.write(&requests).await;
    for _ in 0..10 {
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_body_may_be_chunked() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).signed();
    let mut http = server.http().await;
    for chunk_len in [1, 7, 1000] {
        http.write(&request.head("Transfer-Encoding: chunked\r\n")).await;
        for chunk in request.payload().chunks(chunk_len) {
            http.write(format!("{:x}\r\n", chunk.len()).as_bytes()).await;
            http.write(chunk).await;
            http.write(b"\r\n").await;
        }
        http.write(b"0\r\n\r\n").await;
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_request_may_arrive_byte_by_byte() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    for byte in Request::post(EVENTS, good()).signed().to_bytes() {
        http.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    http.answer().await.ok();
    client.expect(event(NEWS, "e")).await;
}

#[tokio::test]
async fn a_large_body_may_arrive_in_many_pieces() {
    let (server, mut client) = with_listener().await;
    let data = "x".repeat(102_400);
    let body = json!({ "name": "e", "channel": NEWS, "data": data }).to_string();
    let request = Request::post(EVENTS, body).signed();
    let mut http = server.http().await;
    http.write(&request.head_with_length(request.payload().len())).await;
    for piece in request.payload().chunks(1000) {
        http.write(piece).await;
        tokio::task::yield_now().await;
    }
    http.answer().await.ok();
    assert_eq!(client.next().await["data"], data);
}

#[tokio::test]
async fn a_request_that_expects_100_continue_gets_it() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).header("Expect", "100-continue").signed();
    let mut http = server.http().await;
    for _ in 0..2 {
        http.write(&request.head_with_length(request.payload().len())).await;
        assert_eq!(http.answer().await.status, 100);
        http.write(request.payload()).await;
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_rejected_request_that_expects_100_continue_gets_the_rejection_instead() {
    let server = Server::start().await;
    let request = Request::post(EVENTS, good()).header("Expect", "100-continue").signed_with(&OTHER);
    let mut http = server.http().await;
    http.write(&request.head_with_length(5_000_000)).await;
    http.answer().await.rejected(401);
}

/// Sends only the head of a request that announces 5 MB, and returns the response.
async fn answer_to_head(server: &Server, request: Request) -> Answer {
    let mut http: Http = server.http().await;
    http.write(&request.head_with_length(5_000_000)).await;
    http.answer().await
}

#[tokio::test]
async fn a_request_with_an_invalid_head_is_rejected_before_its_body() {
    let server = Server::start().await;
    let post = || Request::post(EVENTS, good());
    let signature = |request: Request| request.set("auth_signature", &"0".repeat(64));
    answer_to_head(&server, post()).await.rejected(401);
    answer_to_head(&server, signature(post().signed())).await.rejected(401);
    answer_to_head(&server, post().signed_with(&OTHER)).await.rejected(401);
    answer_to_head(&server, post().signed_at(&DEMO, unix_now() - 1000)).await.rejected(401);
    answer_to_head(&server, post().signed().set("auth_version", "2.0")).await.rejected(401);
    answer_to_head(&server, post().signed().path("/apps/9/events")).await.rejected(404);
    answer_to_head(&server, post().signed().path("/nothing")).await.rejected(404);
    answer_to_head(&server, post().signed().method("PUT")).await.rejected(405);
    let disabled = Server::with_app(|app: &mut App| app.enabled = false).await;
    answer_to_head(&disabled, post().signed()).await.rejected(403);
    let small = Server::with_app(|app: &mut App| app.limits.request_body_bytes_max = 1000).await;
    answer_to_head(&small, post().signed()).await.rejected(413);
}

#[tokio::test]
async fn a_body_without_a_length_is_rejected_at_the_limit() {
    let server = Server::with_app(|app: &mut App| app.limits.request_body_bytes_max = 1000).await;
    let body = json!({ "name": "e", "channel": NEWS, "data": "x".repeat(1000) }).to_string();
    let request = Request::post(EVENTS, body).signed();
    let mut http = server.http().await;
    http.write(&request.head("Transfer-Encoding: chunked\r\n")).await;
    for chunk in request.payload().chunks(100) {
        let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        if http.try_write(&chunk).await.is_err() {
            break;
        }
    }
    http.answer().await.rejected(413);
}

#[tokio::test]
async fn a_head_that_is_not_http_closes_only_its_connection() {
    let server = Server::with(|setup| setup.options.handshake_timeout = Duration::from_millis(500)).await;
    for head in [
        "hello\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /up HTTP/9.9\r\n\r\n".to_owned(),
        "GET /up HTTP/1.1\r\nno colon\r\n\r\n".to_owned(),
        "\r\n\r\n\0\0\0\0".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "x".repeat(100_000)),
        format!("GET /up HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /up HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000)),
        "POST /apps/1001/events HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(),
        "POST /apps/1001/events HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        "POST /apps/1001/events HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n".to_owned(),
    ] {
        let mut http = server.http().await;
        // The server may have responded and closed the connection before the end.
        let _ = http.try_write(head.as_bytes()).await;
        if let Some(answer) = http.answer_or_end().await {
            assert!((400..=505).contains(&answer.status), "{answer:?} to {:?}", &head[..head.len().min(60)]);
        }
    }
    assert_eq!(server.send(Request::get("/up")).await.status, 200);
}

#[tokio::test]
async fn a_client_that_disconnects_within_a_body_publishes_nothing() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).signed();
    for cut in [0, 1, 10, request.payload().len() - 1] {
        let mut http = server.http().await;
        http.write(&request.head_with_length(request.payload().len())).await;
        http.write(&request.payload()[..cut]).await;
        drop(http);
    }
    server.publish(NEWS, "marker", "").await;
    client.expect(event(NEWS, "marker")).await;
}
