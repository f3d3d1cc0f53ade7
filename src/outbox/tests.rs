use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::closing::last_messages;
use super::*;
use crate::protocol::CloseCode;
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::{pusher, websocket};

const SOCKET: SocketId = SocketId::new(1, 2);

async fn pair(bytes_max: usize) -> (Outbox, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    (Outbox::new(SOCKET, stream, bytes_max, Liveness::default()), client)
}

async fn flush(outbox: &Outbox) -> Option<Closing> {
    std::future::poll_fn(|cx| outbox.poll_flush(cx)).await
}

#[tokio::test]
async fn a_client_that_reads_gets_everything_in_order() {
    let (outbox, mut client) = pair(usize::MAX).await;
    let numbers: Vec<u8> = (0..=255).collect();
    let batch = Bytes::from(numbers.repeat(400));
    for _ in 0..200 {
        outbox.send_if(&batch, || true);
    }
    assert!(outbox.queued_bytes() > 0, "the socket does not accept 20 MB at once");
    let reading = tokio::spawn(async move {
        let mut all = vec![0; 200 * 102_400];
        client.read_exact(&mut all).await.unwrap();
        all
    });
    assert_eq!(flush(&outbox).await, None);
    assert!(reading.await.unwrap().chunks(256).all(|chunk| chunk == numbers));
    assert_eq!(outbox.queued_bytes(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_costs_no_more_than_its_limit() {
    let (outbox, _client) = pair(100_000).await;
    let batch = Bytes::from(vec![0; 10_000]);
    let mut sends = 0;
    while outbox.closing().is_none() && sends < 10_000 {
        outbox.send_if(&batch, || true);
        sends += 1;
        assert!(outbox.queued_bytes() <= 130_000);
    }
    assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::OutboxBytes)));
    assert!(outbox.queued_bytes() <= 10_400, "only the partly sent frame and the closing frames are kept");
}

#[test]
fn a_limit_that_changes_holds_from_the_next_frame_on() {
    let outbox = Outbox::detached(SOCKET, 100);
    let frame = Bytes::from(vec![0; 1000]);
    outbox.send_if(&frame, || true);
    outbox.set_bytes_max(10_000);
    outbox.send_if(&frame, || true);
    outbox.send_if(&frame, || true);
    assert_eq!(outbox.closing(), None);
    outbox.set_bytes_max(100);
    outbox.send_if(&frame, || true);
    assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::OutboxBytes)));
}

#[tokio::test]
async fn nothing_is_sent_after_a_close() {
    let (outbox, mut client) = pair(1000).await;
    outbox.close(CloseCode::Reconnect, "going away");
    outbox.send_if(&Bytes::from_static(b"late"), || true);
    outbox.close(CloseCode::PongTimeout, "second");
    assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
    drop(outbox);
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, last_messages(Form::Frame, CloseCode::Reconnect, "going away"));
}

#[tokio::test]
async fn a_partly_sent_frame_is_completed_before_the_closing_frames() {
    let (outbox, mut client) = pair(usize::MAX).await;
    let batch = Bytes::from(vec![7; 99_991]);
    while !outbox.state.lock().head_is_partial {
        outbox.send_if(&batch, || true);
        assert!(outbox.queued_bytes() < 10 * batch.len(), "the socket accepted whole batches only");
    }
    outbox.send_if(&batch, || true);
    outbox.close(CloseCode::Reconnect, "going away");
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.map(|_| all)
    });
    assert_eq!(flush(&outbox).await, Some(Closing::Code(CloseCode::Reconnect)));
    drop(outbox);
    let all = reading.await.unwrap().unwrap();
    let last_messages = last_messages(Form::Frame, CloseCode::Reconnect, "going away");
    let frames = all.strip_suffix(&last_messages[..]).expect("the closing frames come last");
    assert_eq!(frames.len() % batch.len(), 0, "no frame is cut");
}

#[tokio::test]
async fn a_disconnected_client_breaks_the_connection() {
    let (outbox, client) = pair(1000).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let mut buffer = [0; 16];
    let read = std::future::poll_fn(|cx| outbox.poll_read(cx, &mut buffer)).await;
    assert!(matches!(read, Ok(0) | Err(_)));
    outbox.send_if(&Bytes::from_static(b"x"), || true);
    outbox.send_if(&Bytes::from_static(b"x"), || true);
    assert_eq!(outbox.closing(), Some(Closing::Broken));
}

fn detached_with(budget: &Arc<Budget>, id: u32) -> Outbox {
    Outbox::detached(SocketId::new(id, 0), usize::MAX).with_budget(budget)
}

#[test]
fn the_queues_of_all_clients_never_exceed_the_budget() {
    let budget = Arc::new(Budget::new(100_000));
    let outboxes: Vec<_> = (0..20).map(|id| detached_with(&budget, id)).collect();
    for round in 0..10 {
        for outbox in &outboxes {
            outbox.send_if(&Bytes::from(vec![0; 3000]), || true);
            // Closing frames may exceed it.
            assert!(budget.bytes() <= 100_000 + 20 * 400, "{round}");
        }
    }
    let closed = |outbox: &&Outbox| outbox.closing() == Some(Closing::Limit(Limit::QueuedBytes));
    assert!(outboxes.iter().filter(closed).count() > 0);
    for outbox in &outboxes[..10] {
        outbox.take_queued();
    }
    drop(outboxes);
    assert_eq!(budget.bytes(), 0, "taken, closed or dropped: all is released");
}

#[test]
fn a_shared_batch_counts_once_in_the_budget() {
    let budget = Arc::new(Budget::new(100_000));
    let outboxes: Vec<_> = (0..100).map(|id| detached_with(&budget, id)).collect();
    let batch = SharedBytes::from(Bytes::from(vec![0; 50_000]));
    for outbox in &outboxes {
        outbox.send_shared(&batch, || true);
        assert_eq!((outbox.closing(), outbox.queued_bytes() > 50_000), (None, true));
    }
    assert!((50_000..60_000).contains(&budget.bytes()), "{}", budget.bytes());
    drop(batch);
    outboxes[1..].iter().for_each(|outbox| drop(outbox.take_queued()));
    assert!(budget.bytes() > 50_000, "one queue still holds it");
    outboxes[0].take_queued();
    assert_eq!(budget.bytes(), 0);
}

#[tokio::test]
async fn flushed_bytes_are_released_to_the_budget() {
    let (outbox, mut client) = pair(usize::MAX).await;
    let budget = Arc::new(Budget::new(usize::MAX));
    let outbox = outbox.with_budget(&budget);
    for _ in 0..5000 {
        outbox.send_if(&Bytes::from(vec![7; 1000]), || true);
    }
    assert!(budget.bytes() > 1_000_000 && budget.bytes() == outbox.queued_bytes());
    let reading = tokio::spawn(async move {
        let mut all = vec![0; 5_000_000];
        client.read_exact(&mut all).await.unwrap();
        all
    });
    assert_eq!(flush(&outbox).await, None);
    assert!(reading.await.unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(budget.bytes(), 0);
}

#[tokio::test]
async fn small_queued_frames_are_written_together_and_in_order() {
    let (outbox, mut client) = pair(usize::MAX).await;
    // First more than the socket accepts at once.
    let mut expected = vec![0; 10_000_000];
    outbox.send_if(&Bytes::from(expected.clone()), || true);
    for number in 0..10_000u32 {
        let frame = number.to_be_bytes();
        expected.extend_from_slice(&frame);
        outbox.send_if(&Bytes::copy_from_slice(&frame), || true);
    }
    assert!(outbox.queued_bytes() > 40_000, "they are queued");
    let length = expected.len();
    let reading = tokio::spawn(async move {
        let mut all = vec![0; length];
        client.read_exact(&mut all).await.unwrap();
        all
    });
    assert_eq!(flush(&outbox).await, None);
    assert!(reading.await.unwrap() == expected);
}

#[tokio::test]
async fn an_evicted_connection_keeps_no_large_frame() {
    let budget = Arc::new(Budget::new(usize::MAX));
    let (outbox, _client) = pair(usize::MAX).await;
    let outbox = outbox.with_budget(&budget);
    while !outbox.state.lock().head_is_partial {
        outbox.send_if(&Bytes::from(vec![0; 10_000_000]), || true);
    }
    outbox.evict();
    assert_eq!(outbox.closing(), Some(Closing::Limit(Limit::QueuedBytes)));
    assert_eq!((outbox.queued_bytes(), budget.bytes()), (0, 0));
}

#[tokio::test]
async fn a_stalled_client_is_timed_from_the_sweep_that_saw_it_first() {
    let secs = Duration::from_secs;
    let (outbox, mut client) = pair(usize::MAX).await;
    assert_eq!(outbox.stalled_for(secs(5)), None, "nothing is queued");
    let mut sent = 0;
    while outbox.queued_bytes() < 1_000_000 {
        outbox.send_if(&Bytes::from(vec![0; 100_000]), || true);
        sent += 100_000;
    }
    assert_eq!(outbox.stalled_for(secs(10)), Some(secs(0)));
    assert_eq!(outbox.stalled_for(secs(40)), Some(secs(30)));
    let reading = tokio::spawn(async move {
        let mut all = vec![0; sent];
        client.read_exact(&mut all).await.map(|_| client)
    });
    assert_eq!(flush(&outbox).await, None);
    assert_eq!(outbox.stalled_for(secs(41)), None, "it has read all");
    drop(reading.await.unwrap());
}

#[test]
fn charges_are_taken_once() {
    let outbox = Outbox::detached(SOCKET, usize::MAX);
    outbox.reply(&ServerMessage::Pong);
    let (bytes, changes) = outbox.take_charges();
    assert!((30..60).contains(&bytes) && changes == 0, "{bytes}");
    outbox.send_if(&Bytes::from_static(b"an event"), || true);
    assert_eq!(outbox.take_charges(), (0, 0), "the client has not caused it");
    outbox.charge(usize::MAX, 3);
    outbox.charge(7, 0);
    assert_eq!(outbox.take_charges(), (u32::MAX, 3));
}

#[test]
fn many_small_frames_are_bounded_like_few_large_ones() {
    let outbox = Outbox::detached(SOCKET, 10_000);
    outbox.send_if(&Bytes::from_static(b"x"), || true);
    for _ in 0..1_000 {
        outbox.send_control(&websocket::pong(b""));
    }
    assert!(outbox.take_queued().len() < 160);
}

#[test]
fn a_pong_overtakes_queued_frames_but_not_a_partly_sent_one() {
    let outbox = Outbox::detached(SOCKET, 1000);
    outbox.send_if(&Bytes::from_static(b"a"), || true);
    outbox.send_if(&Bytes::from_static(b"b"), || true);
    outbox.send_control(&Bytes::from_static(b"pong"));
    assert_eq!(outbox.take_queued(), ["pong", "a", "b"]);
    outbox.send_if(&Bytes::from_static(b"a"), || true);
    outbox.state.lock().head_is_partial = true;
    outbox.send_control(&Bytes::from_static(b"pong"));
    assert_eq!(outbox.take_queued(), ["a", "pong"]);
}

fn taken(outbox: &Outbox) -> Vec<u8> {
    outbox.take_queued().concat()
}

#[test]
fn messages_and_replies_are_written_in_the_form_of_the_connection() {
    let frame = Frame::from_text(&format!("[{}\n1]", "1, ".repeat(500)));
    let line = format!("{}\n", frame.text().replace('\n', " "));
    let deflated = Form::DeflatedFrame { bytes_min: 0 };
    let forms =
        [(Form::Frame, &frame.bytes()[..]), (deflated, &frame.bytes()[..]), (Form::Text, line.as_bytes())];
    for (form, expected) in forms {
        let outbox = Outbox::detached(SOCKET, usize::MAX).with_form(form);
        outbox.send(&frame);
        assert_eq!(taken(&outbox), expected, "{form:?}");
        assert_eq!(outbox.take_charges(), (0, 0));
        outbox.reply_frame(&frame);
        assert_eq!(taken(&outbox), expected, "{form:?}");
        assert_eq!(outbox.take_charges(), (expected.len() as u32, 0), "what is written is charged");
        outbox.send_if(&Bytes::from_static(b"queued"), || true);
        outbox.send_first(&frame);
        assert_eq!(taken(&outbox), [expected, b"queued"].concat(), "{form:?}");
    }
}

#[test]
fn a_form_without_control_frames_gets_neither_ping_nor_pong() {
    for (form, pings) in [(Form::Frame, 1), (Form::DeflatedFrame { bytes_min: 0 }, 1), (Form::Text, 0)] {
        let outbox = Outbox::detached(SOCKET, usize::MAX).with_form(form);
        outbox.send_control(&websocket::ping());
        assert_eq!(outbox.take_queued().len(), pings, "{form:?}");
        outbox.send_if(&Bytes::from_static(b"queued"), || true);
        outbox.send_control(&websocket::pong(b""));
        assert_eq!(outbox.take_queued().len(), 1 + pings, "{form:?}");
    }
}

#[test]
fn a_form_without_control_frames_is_closed_with_an_error_at_most() {
    let text = || Outbox::detached(SOCKET, usize::MAX).with_form(Form::Text);
    let outbox = text();
    outbox.send_if(&Bytes::from_static(b"dropped"), || true);
    outbox.close(CloseCode::Reconnect, "going away");
    let error = pusher::encode(&ServerMessage::Error { code: Some(4200), message: "going away" });
    assert_eq!(taken(&outbox), format!("{}\n", error.text()).as_bytes());
    assert_eq!(outbox.closing(), Some(Closing::Code(CloseCode::Reconnect)));

    let outbox = text();
    outbox.state.lock().push(Bytes::from_static(b"partly sent"), Accounting::Own).unwrap();
    outbox.state.lock().head_is_partial = true;
    outbox.close(CloseCode::TooBig, "too big");
    assert_eq!(outbox.take_queued(), ["partly sent"], "only Pusher's own codes have an error");
    assert_eq!(outbox.closing(), Some(Closing::Code(CloseCode::TooBig)));

    let outbox = text();
    outbox.reply_to_close(Some(1000));
    assert!(outbox.take_queued().is_empty());
    assert_eq!(outbox.closing(), Some(Closing::Code(CloseCode::Normal)), "its task ends");
}

/// A connection over a socket that keeps writes apart: the client receives each system call as one message.
fn pair_of_messages() -> (Outbox, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (server, client) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let stream = TcpStream::from_std(std::net::TcpStream::from(server)).unwrap();
    (Outbox::new(SOCKET, stream, usize::MAX, Liveness::default()), client)
}

#[tokio::test]
async fn small_queued_frames_take_few_system_calls() {
    const QUEUED: usize = 200;
    let (outbox, client) = pair_of_messages();
    let frame = Bytes::from_static(b"frame");
    let mut sent = 0;
    // The last of them is queued.
    while outbox.queued_bytes() == 0 {
        outbox.send_if(&frame, || true);
        sent += 1;
    }
    for _ in 1..QUEUED {
        outbox.send_if(&frame, || true);
    }
    let frames = sent - 1 + QUEUED;
    let reading = async {
        let (mut messages, mut bytes, mut buffer) = (0, 0, [0; 4096]);
        while bytes < frames * frame.len() {
            match recv(&client, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((read, _)) => (messages, bytes) = (messages + 1, bytes + read),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        messages
    };
    let (messages, closing) = tokio::join!(reading, flush(&outbox));
    assert_eq!(closing, None);
    assert_eq!(messages, sent - 1 + QUEUED.div_ceil(state::CHUNKS_PER_WRITE), "of {frames} frames");
}
