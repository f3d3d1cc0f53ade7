//! A small HTTP/1.1 client that writes exactly what a test says, where a library would correct it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::raw::RawSocket;
use super::signing::{DEMO, Key, md5_hex, unix_now};
use super::{Stream, in_time};

/// The characters that a query value may contain unescaped.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request, signed or not.
#[derive(Clone)]
pub struct Request {
    method: String,
    path: String,
    /// Names and values, decoded.
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        });
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.collect(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Signs as the demo app, now.
    pub fn signed(self) -> Self {
        self.signed_with(&DEMO)
    }

    /// Signs with another key, now.
    pub fn signed_with(self, key: &Key) -> Self {
        self.signed_at(key, unix_now())
    }

    /// Signs at a given time.
    pub fn signed_at(mut self, key: &Key, timestamp: i64) -> Self {
        if !self.body.is_empty() {
            let md5 = md5_hex(&self.body);
            self = self.with("body_md5", &md5);
        }
        self.with("auth_key", key.key)
            .with("auth_timestamp", &timestamp.to_string())
            .with("auth_version", "1.0")
            .with_signature(key)
    }

    /// Adds the signature of the current method, path and query.
    pub fn with_signature(self, key: &Key) -> Self {
        let path = self.path.clone();
        self.with_signature_of_path(key, &path)
    }

    /// As [`Request::with_signature`], for a client that signed a path other than the one it sends.
    pub fn with_signature_of_path(self, key: &Key, path: &str) -> Self {
        let mut query: Vec<_> =
            self.query.iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        query.sort_by(|(one, _), (other, _)| one.cmp(other));
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let signature = key.sign(&format!("{}\n{path}\n{}", self.method, query.join("&")));
        self.with("auth_signature", &signature)
    }

    /// Adds a parameter. After signing, the signature does not cover it.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Changes the value of a parameter.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        for (_, old) in self.query.iter_mut().filter(|(given, _)| given == name) {
            value.clone_into(old);
        }
        self
    }

    /// Removes a parameter.
    pub fn without(mut self, name: &str) -> Self {
        self.query.retain(|(given, _)| given != name);
        self
    }

    /// The value of a parameter.
    pub fn value(&self, name: &str) -> &str {
        &self.query.iter().find(|(given, _)| given == name).unwrap().1
    }

    /// Changes the path. After signing, the signature does not cover it.
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Changes the method. After signing, the signature does not cover it.
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// The path with the whole query, as it is sent.
    pub fn target(&self) -> String {
        if self.query.is_empty() {
            return self.path.clone();
        }
        let encode = |text: &String| utf8_percent_encode(text, QUERY_VALUE).to_string();
        let query: Vec<_> =
            self.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        format!("{}?{}", self.path, query.join("&"))
    }

    /// The head with `framing`: the header that frames the body.
    pub fn head(&self, framing: &str) -> Vec<u8> {
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let target = self.target();
        format!("{} {target} HTTP/1.1\r\nHost: test\r\n{headers}{framing}\r\n", self.method).into_bytes()
    }

    /// The head of a request with a known length.
    pub fn head_with_length(&self, length: usize) -> Vec<u8> {
        self.head(&format!("Content-Length: {length}\r\n"))
    }

    /// The whole request.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = match self.body.len() {
            0 if self.method == "GET" => self.head(""),
            length => self.head_with_length(length),
        };
        [head, self.body.clone()].concat()
    }

    /// The body.
    pub fn payload(&self) -> &[u8] {
        &self.body
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body of a success: status 200, a JSON object.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert!(body.is_object(), "a success has an object: {body}");
        body
    }

    /// Checks that this is an error as clients expect it, and returns its sentence.
    pub fn rejected(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"));
        let text = self.text();
        assert!(!text.is_empty() && !text.contains('\n'), "one sentence: {text:?}");
        text
    }
}

/// A connection for several requests.
pub struct Http<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Stream> Http<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends a request and waits for the response.
    pub async fn send(&mut self, request: Request) -> Answer {
        self.write(&request.to_bytes()).await;
        self.answer().await
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        in_time("the server takes a request", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Writes bytes to a server that may have disconnected.
    pub async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        in_time("the server takes a request", self.stream.write_all(bytes)).await
    }

    /// Waits for the next response, whatever its status.
    pub async fn answer(&mut self) -> Answer {
        in_time("an HTTP answer", self.read_answer()).await.expect("the server hung up without an answer")
    }

    /// The next response, or `None` when the server disconnects instead.
    pub async fn answer_or_end(&mut self) -> Option<Answer> {
        in_time("an HTTP answer or the end of the connection", self.read_answer()).await
    }

    /// Waits until the server disconnects, and checks that it sends nothing more.
    pub async fn ends(&mut self) {
        in_time("the server disconnects", async { while self.read_more().await {} }).await;
        assert_eq!(String::from_utf8_lossy(&self.buffer), "");
    }

    /// The connection, after an upgrade.
    pub fn into_websocket(self) -> RawSocket<S> {
        RawSocket::after(self.stream, self.buffer)
    }

    async fn read_answer(&mut self) -> Option<Answer> {
        let head_len = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more().await {
                assert_eq!(String::from_utf8_lossy(&self.buffer), "", "half an answer");
                return None;
            }
        };
        let head: Vec<u8> = self.buffer.drain(..head_len).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        });
        let mut answer = Answer { status, headers: headers.collect(), body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        if answer.header("transfer-encoding") == Some("chunked") {
            assert_eq!(length, 0, "an answer in pieces has no length");
            answer.body = self.read_chunks().await;
            return Some(answer);
        }
        while self.buffer.len() < length {
            assert!(self.read_more().await, "the body of an answer ends early");
        }
        answer.body = self.buffer.drain(..length).collect();
        Some(answer)
    }

    /// The body of a chunked response.
    async fn read_chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = find(&self.buffer, b"\r\n") {
                    break end;
                }
                assert!(self.read_more().await, "an answer in pieces ends early");
            };
            let length = std::str::from_utf8(&self.buffer[..end]).unwrap();
            let length = usize::from_str_radix(length, 16).unwrap();
            while self.buffer.len() < end + 2 + length + 2 {
                assert!(self.read_more().await, "an answer in pieces ends early");
            }
            let chunk: Vec<u8> = self.buffer.drain(..end + 2 + length + 2).collect();
            body.extend_from_slice(&chunk[end + 2..end + 2 + length]);
            if length == 0 {
                return body;
            }
        }
    }

    /// Reads more; `false` at the end.
    async fn read_more(&mut self) -> bool {
        self.buffer.reserve(16 * 1024);
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) > 0
    }
}

/// The position of `part` in `all`.
pub(super) fn find(all: &[u8], part: &[u8]) -> Option<usize> {
    all.windows(part.len()).position(|window| window == part)
}
