//! The task of a connection: it owns the reading side of the socket and the session, and waits in one place.
//!
//! It is one hand-written poll, not a `select!` over several futures. An idle connection is this struct and its outbox,
//! and nothing else: input is read into a buffer that all connections of a thread share.
//!
//! `input` handles what the client sends, `actions` performs what the session decides, `backpressure` pauses a client
//! that causes too much, `teardown` ends the connection.

mod actions;
mod backpressure;
mod input;
mod teardown;

use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Endpoint;
use super::admission::{APP_DISABLED, Admitted, Permits, Rejected};
use super::upgrade::ClientInfo;
use crate::apps::App;
use crate::observers::{Fact, Kind};
use crate::outbox::{Liveness, Outbox, Transport};
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::Form;
use crate::protocol::wire::websocket::Decoder;
use crate::protocol::{CloseCode, SocketId};
use crate::session::Session;
use backpressure::Backpressure;
use teardown::Teardown;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// The connection of one client, from its first frame to its last. Dropping it leaves every channel.
#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Endpoint,
    outbox: Arc<Outbox>,
    decoder: Decoder,
    /// `None` while the connection is closing, and if it was rejected.
    established: Option<Box<Established>>,
    /// Set after a Close or a framing error: further input cannot be decoded.
    ignores_input: bool,
    /// Set while no input is read.
    backpressure: Option<Box<Backpressure>>,
    /// Set while the connection is closing.
    teardown: Option<Box<Teardown>>,
}

/// Every client has one, so each byte counts.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Connection>() <= 88);

/// An established connection.
#[derive(Debug)]
struct Established {
    session: Session,
    permits: Permits,
    /// The client's address, for the log of rejections.
    address: IpAddr,
    /// When it was established, in whole seconds of the node's clock.
    since_secs: u32,
}

impl Connection {
    /// Establishes the connection, or tells the client why it is rejected. `early` is input that the client sent before
    /// it saw the upgrade response, in which `form` was negotiated.
    pub(super) fn new(
        endpoint: &Endpoint,
        transport: Transport,
        early: &Bytes,
        admitted: Result<Admitted, Rejected>,
        form: Form,
        client_info: &ClientInfo,
    ) -> Self {
        let hub = &endpoint.0.hub;
        let socket = loop {
            // Two halves of one random number are as good as two random numbers.
            let random = getrandom::u64().expect("the system has randomness");
            let socket = SocketId::new((random >> 32) as u32, random as u32);
            if !hub.connections().has(socket) {
                break socket;
            }
        };
        let now = hub.now();
        let app = admitted.as_ref().ok().map(|admitted| &admitted.app);
        let authorize_by = app.and_then(|app| app.authorized_connections_timeout).map(|by| now + by);
        let bytes_max = app.map_or(0, |app| app.limits.outbox_bytes_max);
        let outbox = Outbox::new(socket, transport, bytes_max, Liveness::new(now, authorize_by));
        let mut connection = Self {
            endpoint: endpoint.clone(),
            outbox: Arc::new(outbox.with_budget(&endpoint.0.budget).with_form(form)),
            decoder: Decoder::new(form),
            established: None,
            ignores_input: false,
            backpressure: None,
            teardown: None,
        };
        match admitted {
            Ok(Admitted { app, permits }) => {
                let session = Session::new(socket, Arc::clone(&app));
                let (address, since_secs) = (client_info.address, now.as_secs() as u32);
                connection.established =
                    Some(Box::new(Established { session, permits, address, since_secs }));
                connection.establish(&app, client_info);
                connection.receive(&mut early.to_vec());
            }
            Err(Rejected { code, message, .. }) => connection.outbox.close(code, &message),
        }
        connection
    }

    /// Adopts the current settings of the app, if they were replaced. Closes the connection if the app was removed or
    /// disabled, as it would reject a new one.
    fn adopt_settings(&mut self) {
        if self.established.as_ref().is_some_and(|established| established.session.app().is_replaced()) {
            self.adopt_replaced_settings();
        }
    }

    /// Not inlined, so that the check before each message stays small.
    #[cold]
    #[inline(never)]
    fn adopt_replaced_settings(&mut self) {
        let Some(established) = self.established.as_deref_mut() else { return };
        let app = established.session.app();
        match self.endpoint.0.apps.by_id(&app.id.0) {
            None => self.close(CloseCode::UnknownApp, "This app was removed"),
            Some(app) if !app.enabled => self.close(CloseCode::AppDisabled, APP_DISABLED),
            Some(app) => {
                self.outbox.set_bytes_max(app.limits.outbox_bytes_max);
                established.session.adopt_settings(app);
            }
        }
    }

    fn establish(&self, app: &App, client_info: &ClientInfo) {
        let hub = &self.endpoint.0.hub;
        let activity_timeout_secs = self.endpoint.0.options.activity_timeout.as_secs();
        self.outbox
            .reply(&ServerMessage::Established { socket: self.outbox.socket(), activity_timeout_secs });
        let is_new = hub.connections().add(&self.outbox);
        if !is_new {
            self.outbox.close(CloseCode::OverCapacity, "Socket id is taken");
        } else if hub.is_draining() {
            // The drain may have listed the connections just before this one was added.
            self.outbox.close(hub.drain_close_code(), "Server is shutting down");
        } else {
            hub.observers().observe(Kind::Connected, || Fact::Connected {
                app: (&*app.id.0).into(),
                socket: self.outbox.socket(),
                address: client_info.address,
                origin: client_info.origin.as_deref().map(Into::into),
                library: client_info.library.as_deref().map(Into::into),
            });
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.adopt_settings();
            let end = self.poll_closed(cx);
            if !self.leave_channels() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if end.is_ready() || self.teardown.as_ref().is_some_and(|teardown| teardown.is_disconnected) {
                return Poll::Ready(());
            }
            let this = &mut *self;
            if let Some(backpressure) = &mut this.backpressure {
                // A closing connection causes nothing any more.
                if this.established.is_some() {
                    ready!(backpressure.poll_ready(&this.outbox, cx));
                }
                this.backpressure = None;
                this.decode(&mut []);
                continue;
            }
            let read = BUFFER.with_borrow_mut(|buffer| {
                let read = ready!(self.outbox.poll_read(cx, buffer));
                if let Ok(read) = read {
                    self.receive(&mut buffer[..read]);
                }
                Poll::Ready(read)
            });
            if !matches!(ready!(read), Ok(1..)) {
                self.begin_teardown();
                self.teardown.get_or_insert_default().is_disconnected = true;
                continue;
            }
            if self.outbox.form().is_deflated() {
                // Inflating costs CPU time, so the task yields after each read.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.begin_teardown();
        while !self.leave_channels() {}
    }
}
