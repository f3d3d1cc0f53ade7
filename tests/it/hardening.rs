//! Requests that no honest HTTP client sends: ambiguous ones, oversized heads, and invalid targets. Source: RFC 9112.
//!
//! Behind a proxy, a client that smuggles a second request past it speaks with the proxy's authority. So for each attempt
//! a test shows that the server responds once and disconnects, or reads it as the one request that it is.

use std::time::Duration;

use crate::harness::{Answer, Http, RawSocket, Request, Server};

/// A request that must not be responded to: the server must read it as a body, or reject it.
const SMUGGLED: &str = "GET /health HTTP/1.1\r\nHost: test\r\n\r\n";

/// All responses to `bytes` until the server disconnects, or until it has responded to a request that follows them.
async fn answers(server: &Server, bytes: &[u8]) -> Vec<Answer> {
    let mut http = server.http().await;
    let end = b"GET /nothing-more HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    // The server may disconnect a rejected client before everything is sent.
    let _ = http.try_write(&[bytes, end].concat()).await;
    let mut answers = Vec::new();
    while let Some(answer) = http.answer_or_end().await {
        answers.push(answer);
    }
    answers
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

#[tokio::test]
async fn ambiguous_requests_are_rejected_and_closed() {
    let server = Server::start().await;
    let post = "POST /up HTTP/1.1\r\nHost: test\r\n";
    for (what, head) in [
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n"),
        ("two lengths in one line", "Content-Length: 5, 6\r\n"),
        ("a length with a sign", "Content-Length: +5\r\n"),
        ("a negative length", "Content-Length: -1\r\n"),
        ("a hexadecimal length", "Content-Length: 0x5\r\n"),
        ("an endless length", "Content-Length: 99999999999999999999999\r\n"),
        ("an empty length", "Content-Length: \r\n"),
        ("an unknown coding", "Transfer-Encoding: gzip\r\n"),
        ("chunked, but not last", "Transfer-Encoding: chunked, gzip\r\n"),
        ("a coding that is nearly chunked", "Transfer-Encoding: xchunked\r\n"),
        ("a folded header", "X-A: 1\r\n 2\r\n"),
        ("a folded coding", "Transfer-Encoding:\r\n chunked\r\n"),
        ("a space before the colon", "Content-Length : 5\r\n"),
        ("a space before the name", " Content-Length: 5\r\n"),
        ("a header without a colon", "Content-Length 5\r\n"),
        ("a name with a NUL", "Content\0-Length: 5\r\n"),
        ("a value with a NUL", "X-A: \0\r\n"),
        ("a bare CR in a value", "X-A: 1\rX-B: 2\r\n"),
        ("a name that is no token", "X(A): 1\r\n"),
    ] {
        let answers = answers(&server, format!("{post}{head}\r\n{SMUGGLED}").as_bytes()).await;
        assert_eq!(statuses(&answers), [400], "{what}");
    }
}

#[tokio::test]
async fn a_content_length_beside_chunks_smuggles_no_request() {
    let server = Server::start().await;
    let (length, coding) = ("Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n");
    for headers in [format!("{length}{coding}"), format!("{coding}{length}")] {
        let head = format!("POST /up HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
        // A server that counts four bytes sees the smuggled request next; one that reads chunks sees it after the last.
        for body in [format!("0\r\n\r\n{SMUGGLED}"), format!("2\r\nxx\r\n0\r\n\r\n{SMUGGLED}")] {
            let answers = answers(&server, format!("{head}{body}").as_bytes()).await;
            assert_eq!(answers.len(), 1, "it hangs up: {:?}", statuses(&answers));
            assert_ne!(answers[0].status, 200);
        }
    }
}

#[tokio::test]
async fn invalid_chunks_close_the_connection() {
    let server = Server::start().await;
    let request = Request::post("/apps/1001/events", "{}").signed();
    let head = request.head("Transfer-Encoding: chunked\r\n");
    for (what, chunks) in [
        ("no number", "x\r\n{}\r\n0\r\n\r\n"),
        ("a number with a sign", "+2\r\n{}\r\n0\r\n\r\n"),
        ("a number without end", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        ("more bytes than it says", "1\r\n{}\r\n0\r\n\r\n"),
        ("a bare LF behind the number", "2\n{}\r\n0\r\n\r\n"),
        ("a bare LF in an extension", "2;a\nb\r\n{}\r\n0\r\n\r\n"),
        ("an endless extension", &format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(40_000))),
        ("endless trailers", &format!("2\r\n{{}}\r\n0\r\n{}\r\n", "X-A: 1\r\n".repeat(5000))),
    ] {
        let bytes = [&head[..], chunks.as_bytes(), SMUGGLED.as_bytes()].concat();
        let answers = answers(&server, &bytes).await;
        assert!(answers.iter().all(|answer| answer.status == 400), "{what}: {:?}", statuses(&answers));
        assert!(answers.len() <= 1, "{what}: {:?}", statuses(&answers));
    }
    // Extensions and trailers are legal, and ignored.
    let event = r#"{"name":"e","channel":"news","data":""}"#;
    let request = Request::post("/apps/1001/events", event).signed();
    let chunks = format!("{:X};a=\"b\"\r\n{event}\r\n0\r\nX-Trailer: 1\r\n\r\n", event.len());
    let head = request.head("Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n");
    let answers = answers(&server, &[&head[..], chunks.as_bytes()].concat()).await;
    assert_eq!(statuses(&answers), [200, 404]);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let server = Server::start().await;
    for (hosts, status) in [
        ("Host: test\r\n", 200),
        ("Host: test:6001\r\n", 200),
        ("Host: [::1]:6001\r\n", 200),
        ("Host: \r\n", 200),
        ("", 400),
        ("Host: test\r\nHost: test\r\n", 400),
        ("Host: test\r\nhost: evil.test\r\n", 400),
        ("Host: test, evil.test\r\n", 400),
        ("Host: test evil.test\r\n", 400),
        ("Host: user@evil.test\r\n", 400),
        ("Host: test/path\r\n", 400),
        ("Host: t\u{e9}st\r\n", 400),
    ] {
        let head = format!("GET /up HTTP/1.1\r\n{hosts}\r\n");
        let answers = answers(&server, head.as_bytes()).await;
        let expected = if status == 200 { vec![200, 404] } else { vec![400] };
        assert_eq!(statuses(&answers), expected, "{hosts:?}");
    }
    let upgrade = RawSocket::upgrade_request("/app/demo-key").replace("Host: test\r\n", "");
    assert_eq!(statuses(&answers(&server, upgrade.as_bytes()).await), [400]);
    // HTTP/1.0 needs no Host, and has no second request.
    assert_eq!(statuses(&answers(&server, b"GET /up HTTP/1.0\r\n\r\n").await), [200]);
}

#[tokio::test]
async fn oversized_heads_are_rejected() {
    let server = Server::start().await;
    let head = |line: &str, headers: &str| format!("{line}\r\nHost: test\r\n{headers}\r\n");
    for (what, bytes) in [
        ("many headers", head("GET /up HTTP/1.1", &"X-A: 1\r\n".repeat(200))),
        ("a long header", head("GET /up HTTP/1.1", &format!("X-A: {}\r\n", "x".repeat(20_000)))),
        ("a long name", head("GET /up HTTP/1.1", &format!("{}: 1\r\n", "x".repeat(20_000)))),
        ("a long target", head(&format!("GET /{} HTTP/1.1", "x".repeat(20_000)), "")),
        ("a very long target", head(&format!("GET /{} HTTP/1.1", "x".repeat(100_000)), "")),
        ("a long method", head(&format!("{} /up HTTP/1.1", "X".repeat(20_000)), "")),
    ] {
        let answers = answers(&server, bytes.as_bytes()).await;
        assert!(answers.len() <= 1, "{what}: {:?}", statuses(&answers));
        assert!(
            answers.iter().all(|answer| [400, 414, 431].contains(&answer.status)),
            "{what}: {:?}",
            statuses(&answers)
        );
    }
    // A head within the limit is served.
    let large = format!("X-A: {}\r\n", "x".repeat(15_000));
    assert_eq!(statuses(&answers(&server, head("GET /up HTTP/1.1", &large).as_bytes()).await), [200, 404]);
}

#[tokio::test]
async fn a_target_of_any_form_is_read_as_a_path() {
    let server = Server::start().await;
    for (line, status) in [
        ("GET http://evil.test/up HTTP/1.1", 200),
        ("GET /up?x=1 HTTP/1.1", 200),
        ("GET //up HTTP/1.1", 200),
        ("GET /../up HTTP/1.1", 404),
        ("GET /%2e%2e/up HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 204),
    ] {
        let answers = answers(&server, format!("{line}\r\nHost: test\r\n\r\n").as_bytes()).await;
        assert_eq!(statuses(&answers), [status, 404], "{line}");
    }
    for line in [
        "CONNECT evil.test:443 HTTP/1.1",
        "CONNECT /up HTTP/1.1",
        "GET evil.test:443 HTTP/1.1",
        "GET  /up HTTP/1.1",
        "GET /up",
        "GET /up HTTP/2.0",
        "GET /up HTTP/1.2",
        "GET /u\u{0}p HTTP/1.1",
    ] {
        let answers = answers(&server, format!("{line}\r\nHost: test\r\n\r\n").as_bytes()).await;
        assert!(answers.iter().all(|answer| answer.status >= 400), "{line:?}: {:?}", statuses(&answers));
    }
}

/// RFC 9112 §2.2 lets a server accept a bare LF as the end of a line. It must not hide a request.
#[tokio::test]
async fn a_bare_lf_ends_a_line_and_smuggles_nothing() {
    let server = Server::start().await;
    let answers = answers(&server, b"POST /up HTTP/1.1\nHost: test\nContent-Length: 5\n\nGET /").await;
    assert_eq!(answers[0].status, 405);
    assert!(!answers.iter().any(|answer| answer.status == 200), "{:?}", statuses(&answers));
}

#[tokio::test]
async fn a_head_sent_byte_by_byte_has_a_deadline() {
    let server = Server::with(|setup| setup.options.handshake_timeout = Duration::from_millis(300)).await;
    let mut slow = Http::over(server.tcp().await);
    let head = b"GET /app/demo-key HTTP/1.1\r\nHost: test\r\nX-Slow: ";
    for byte in head.iter().chain(std::iter::repeat(&b'x')) {
        if slow.try_write(&[*byte]).await.is_err() {
            return;
        }
        // The pace of the client: many bytes within the timeout of a head.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
