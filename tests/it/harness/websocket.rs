//! A well-behaved WebSocket client.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::signing::{channel_auth, user_auth};
use super::{Stream, in_time};

/// A connection that was upgraded to a WebSocket, and that may be established or rejected.
pub struct Upgrade<S = TcpStream> {
    socket: WebSocketStream<S>,
    response: Response,
}

impl<S: Stream> Upgrade<S> {
    pub async fn of(stream: S, target: &str, headers: &[(&str, &str)]) -> Self {
        let uri = format!("ws://test{target}").parse().unwrap();
        let mut request = ClientRequestBuilder::new(uri);
        for (name, value) in headers {
            // The library checks that the server selects one of the subprotocols it knows of.
            request = match *name {
                "sec-websocket-protocol" => request.with_sub_protocol(*value),
                name => request.with_header(name, *value),
            };
        }
        let upgraded = in_time("the upgrade", client_async(request, stream)).await;
        let (socket, response) = upgraded.unwrap_or_else(|error| panic!("{target} is no WebSocket: {error}"));
        Self { socket, response }
    }

    /// A header of the upgrade response.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    /// The client, which must be established.
    pub async fn established(self) -> Client<S> {
        let mut client = self.client();
        let established = client.next().await;
        assert_eq!(established["event"], "pusher:connection_established", "{established}");
        client.id = data_of(&established)["socket_id"].as_str().unwrap().to_owned();
        client
    }

    /// The client, before its first frame.
    pub fn client(self) -> Client<S> {
        Client { socket: self.socket, id: String::new() }
    }

    /// Checks that the connection is rejected with an error frame and a close code, and returns the message.
    pub async fn rejected(self, code: u16) -> String {
        self.client().expect_close(code).await
    }
}

/// A client, by default of the demo app.
pub struct Client<S = TcpStream> {
    socket: WebSocketStream<S>,
    /// Its socket id.
    pub id: String,
}

/// The parsed data string of a frame.
pub fn data_of(frame: &Value) -> Value {
    let data = frame["data"].as_str().unwrap_or_else(|| panic!("data is a string: {frame}"));
    serde_json::from_str(data).unwrap_or_else(|error| panic!("data is JSON: {frame}: {error}"))
}

impl Client<TcpStream> {
    /// Resets the connection, as the kernel of a crashed client does.
    pub fn reset(self) {
        self.socket.get_ref().set_zero_linger().unwrap();
    }
}

impl<S: Stream> Client<S> {
    /// Sends a message.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text unchanged.
    pub async fn send_text(&mut self, text: &str) {
        in_time("the server takes a message", self.socket.send(Message::text(text))).await.unwrap();
    }

    /// Sends a message or a frame of the library.
    #[allow(dead_code, reason = "of the binaries with this harness, some need it")]
    pub async fn send_message(&mut self, message: Message) {
        in_time("the server takes a message", self.socket.send(message)).await.unwrap();
    }

    /// Sends several messages at once.
    pub async fn send_all(&mut self, messages: impl IntoIterator<Item = Value>) {
        for message in messages {
            in_time("a message", self.socket.feed(Message::text(message.to_string()))).await.unwrap();
        }
        in_time("the server takes messages", self.socket.flush()).await.unwrap();
    }

    /// Sends a ping of the WebSocket layer.
    pub async fn send_ws_ping(&mut self) {
        in_time("the server takes a ping", self.socket.send(Message::Ping("".into()))).await.unwrap();
    }

    /// The next text frame, unparsed.
    pub async fn next_text(&mut self) -> String {
        match self.next_message().await {
            Some(Message::Text(text)) => text.as_str().to_owned(),
            other => panic!("a text frame should have come, not {other:?}"),
        }
    }

    /// The next text frame, parsed.
    pub async fn next(&mut self) -> Value {
        let text = self.next_text().await;
        let frame: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(frame["event"].is_string(), "every frame has an event: {text}");
        frame
    }

    /// The next frame must be this one.
    pub async fn expect(&mut self, expected: Value) {
        assert_eq!(self.next().await, expected);
    }

    /// The next frame must be `event` of `channel`, with a JSON string as its data; returns the parsed data.
    pub async fn expect_event(&mut self, event: &str, channel: &str) -> Value {
        let frame = self.next().await;
        assert_eq!(frame, json!({ "event": event, "channel": channel, "data": frame["data"] }));
        data_of(&frame)
    }

    /// The next frame must be an error with this code and a message; returns the message.
    pub async fn expect_error(&mut self, code: impl Into<Value>) -> String {
        let frame = self.next().await;
        let message = frame["data"]["message"].as_str().unwrap_or_default().to_owned();
        let data = json!({ "code": code.into(), "message": message });
        assert_eq!(frame, json!({ "event": "pusher:error", "data": data }));
        assert!(!message.is_empty(), "an error has a message");
        message
    }

    /// The next two frames must refuse a subscription, on the channel and on the connection; returns the messages.
    pub async fn expect_refusal(
        &mut self,
        channel: &str,
        kind: &str,
        status: u16,
        code: impl Into<Value>,
    ) -> [String; 2] {
        let data = self.expect_event("pusher:subscription_error", channel).await;
        let error = data["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(data, json!({ "type": kind, "error": error, "status": status }));
        assert!(!error.is_empty(), "a refusal has a reason");
        [error, self.expect_error(code).await]
    }

    /// The subscription must be refused for its signature; returns the messages.
    pub async fn expect_unauthorized(&mut self, channel: &str) -> [String; 2] {
        self.expect_refusal(channel, "AuthError", 401, 4009).await
    }

    /// The server must close with `code`, one of its own codes after an error frame; returns the reason.
    pub async fn expect_close(&mut self, code: u16) -> String {
        let message = if code >= 4000 { Some(self.expect_error(code).await) } else { None };
        let (given, reason) = match self.next_message().await {
            Some(Message::Close(Some(frame))) => (u16::from(frame.code), frame.reason.as_str().to_owned()),
            other => panic!("a close with {code} should have come, not {other:?}"),
        };
        assert_eq!(given, code, "{reason}");
        if let Some(message) = message {
            assert!(message.starts_with(&*reason), "the reason is the message: {message:?}, {reason:?}");
        }
        assert!(reason.len() <= 123, "a reason has 123 bytes at most: {reason}");
        self.ends().await;
        reason
    }

    /// Waits for the end of the connection. No frame may come before it.
    pub async fn ends(&mut self) {
        let next = self.next_message().await;
        assert!(next.is_none(), "nothing follows a Close: {next:?}");
    }

    /// Shows that the connection works and that no other frame came before: the next one must be the pong.
    pub async fn fence(&mut self) {
        self.send(json!({ "event": "pusher:ping", "data": {} })).await;
        self.expect(json!({ "event": "pusher:pong", "data": "{}" })).await;
    }

    /// Sends a subscription to a public channel.
    pub async fn ask(&mut self, channel: &str) {
        self.send(json!({ "event": "pusher:subscribe", "data": { "channel": channel } })).await;
    }

    /// Sends a subscription with this `auth`.
    pub async fn ask_with(&mut self, channel: &str, auth: impl Into<Value>) {
        let data = json!({ "channel": channel, "auth": auth.into() });
        self.send(json!({ "event": "pusher:subscribe", "data": data })).await;
    }

    /// Sends a subscription with `channel_data` and a valid signature of both.
    pub async fn ask_as(&mut self, channel: &str, channel_data: &str) {
        let message = self.signed_subscribe(channel, Some(channel_data));
        self.send(message).await;
    }

    /// A subscription with a valid signature.
    pub fn signed_subscribe(&self, channel: &str, channel_data: Option<&str>) -> Value {
        let auth = channel_auth(&self.id, channel, channel_data);
        let mut data = json!({ "channel": channel, "auth": auth });
        if let Some(channel_data) = channel_data {
            data["channel_data"] = channel_data.into();
        }
        json!({ "event": "pusher:subscribe", "data": data })
    }

    /// Subscribes to a channel of any kind but presence, with a signature if it needs one.
    pub async fn subscribe(&mut self, channel: &str) {
        if channel.starts_with("private-") {
            self.send(self.signed_subscribe(channel, None)).await;
        } else {
            self.ask(channel).await;
        }
        self.expect_subscribed(channel).await;
    }

    /// Subscribes to a presence channel with `channel_data`; returns the members.
    pub async fn join(&mut self, channel: &str, channel_data: Value) -> Value {
        self.join_text(channel, &channel_data.to_string()).await
    }

    /// As [`Client::join`], with `channel_data` unchanged.
    pub async fn join_text(&mut self, channel: &str, channel_data: &str) -> Value {
        self.ask_as(channel, channel_data).await;
        self.expect_event("pusher_internal:subscription_succeeded", channel).await["presence"].take()
    }

    /// The next frame must be the success of a subscription to a channel without presence.
    pub async fn expect_subscribed(&mut self, channel: &str) {
        let event = "pusher_internal:subscription_succeeded";
        self.expect(json!({ "event": event, "channel": channel, "data": "{}" })).await;
    }

    /// Leaves a channel.
    pub async fn unsubscribe(&mut self, channel: &str) {
        self.send(json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } })).await;
    }

    /// Sends a client event.
    pub async fn whisper(&mut self, channel: &str, name: &str, data: Value) {
        self.send(json!({ "event": name, "channel": channel, "data": data })).await;
    }

    /// A sign-in with a valid signature.
    pub fn signed_sign_in(&self, user_data: &str) -> Value {
        let data = json!({ "auth": user_auth(&self.id, user_data), "user_data": user_data });
        json!({ "event": "pusher:signin", "data": data })
    }

    /// Signs in with `user_data`.
    pub async fn sign_in(&mut self, user_data: Value) {
        let user_data = user_data.to_string();
        self.send(self.signed_sign_in(&user_data)).await;
        self.expect_signed_in(&user_data).await;
    }

    /// The next frame must be the success of the sign-in.
    pub async fn expect_signed_in(&mut self, user_data: &str) {
        let frame = self.next().await;
        assert_eq!(frame, json!({ "event": "pusher:signin_success", "data": frame["data"] }));
        assert_eq!(data_of(&frame), json!({ "user_data": user_data }));
    }

    /// Closes the connection with a Close frame.
    pub async fn close(mut self) {
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        in_time("the server takes a Close", self.socket.close(Some(close))).await.unwrap();
        while self.next_message().await.is_some() {}
    }

    /// The next message that is not a ping or pong of the WebSocket layer; `None` at the end.
    async fn next_message(&mut self) -> Option<Message> {
        in_time(format_args!("a frame for {}", self.id), async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => return Some(message),
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await
    }
}
