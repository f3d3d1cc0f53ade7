//! Transcripts: messages of a client, time that passes, and the actions of the session.
//!
//! ```text
//! > {..}     the client sends this; `"?"` as auth is replaced by a valid signature
//! = join x   the session returns this action
//! + 500ms    time passes
//! ```

use super::*;
use crate::protocol::wire::pusher;

const SOCKET: SocketId = SocketId::new(123_456, 7890);
const KEY: &str = "demo-key";
const SECRET: &str = "demo-secret";

fn transcript(script: &str) {
    transcript_of(|_| {}, script);
}

fn transcript_of(change: impl FnOnce(&mut App), script: &str) {
    let mut app = App::new("1001", KEY, SECRET);
    change(&mut app);
    let mut session = Session::new(SOCKET, Arc::new(app));
    let mut now = Duration::ZERO;
    let mut wanted: Option<String> = None;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (sign, rest) = line.split_at(1);
        let rest = rest.trim();
        match sign {
            "=" => assert_eq!(wanted.take().as_deref(), Some(rest), "{script}"),
            _ if wanted.is_some() => panic!("unexpected action {wanted:?}: {line}"),
            "+" => now += Duration::from_millis(rest.trim_end_matches("ms").parse().unwrap()),
            ">" => wanted = say(&mut session, &signed(rest), now),
            other => panic!("{other} {rest}"),
        }
    }
    assert_eq!(wanted, None, "{script}");
}

/// Replaces `"?"` by a valid signature.
fn signed(text: &str) -> String {
    if !text.contains("\"?\"") {
        return text.to_owned();
    }
    let message: serde_json::Value = serde_json::from_str(text).unwrap();
    let data = &message["data"];
    let key = crate::protocol::signature::SigningKey::new(SECRET);
    let socket = SOCKET.to_string();
    let signature = if let Some(user_data) = data["user_data"].as_str() {
        key.sign(&[&socket, "::user::", user_data])
    } else {
        let channel = data["channel"].as_str().unwrap();
        match data["channel_data"].as_str() {
            Some(channel_data) => key.sign(&[&socket, ":", channel, ":", channel_data]),
            None => key.sign(&[&socket, ":", channel]),
        }
    };
    text.replace("\"?\"", &format!("\"{KEY}:{signature}\""))
}

/// The action of the session, in words. A join is carried out.
fn say(session: &mut Session, text: &str, now: Duration) -> Option<String> {
    let action = session.admit(now).unwrap_or_else(|| match pusher::decode(text) {
        Ok(message) => session.receive(message, now),
        Err(error) => session.malformed(error, now),
    });
    Some(match action {
        Action::Nothing => return None,
        Action::Pong => "pong".into(),
        Action::Join { channel, member } => {
            session.subscribed(channel.clone(), member.as_ref().map(|member| member.id.clone()));
            match member {
                None => format!("join {channel}"),
                Some(member) => format!("join {channel} as {} {}", member.id, member.info),
            }
        }
        Action::Refuse { channel, refusal, .. } => {
            let code = refusal.code.map_or(0, CloseCode::number);
            format!("refuse {channel} {} {} {code}", refusal.kind.as_str(), refusal.status)
        }
        Action::Leave { channel } => format!("leave {channel}"),
        Action::Publish { channel, name, data, user } => {
            let user = user.map(|user| format!(" by {user}")).unwrap_or_default();
            format!("publish {channel} {name} {data}{user}")
        }
        Action::SignIn { signed_in, previous_watchlist, truncated_to, .. } => {
            let ids = |users: &[UserId]| users.iter().map(UserId::as_str).collect::<Vec<_>>().join(",");
            let cut = truncated_to.map(|users| format!(" cut to {users}")).unwrap_or_default();
            let (id, watchlist) = (&signed_in.member.id, ids(&signed_in.watchlist));
            format!("sign in {id} watching [{watchlist}] instead of [{}]{cut}", ids(&previous_watchlist))
        }
        Action::Reject { error, .. } => {
            let (code, message) = error?;
            format!("error {} {message}", code.unwrap_or(0))
        }
        Action::Error { code, message, .. } => format!("error {} {message}", code.unwrap_or(0)),
        Action::Close { code, .. } => format!("close {}", code.number()),
    })
}

#[test]
fn a_public_channel_needs_no_signature_and_ignores_one() {
    transcript(
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"","channel":"news"}}
        = join news
        > {"event":"pusher:subscribe","data":{"auth":{"x":1},"channel":"cache-news","channel_data":{}}}
        = join cache-news
        > {"event":"pusher:unsubscribe","data":{"channel":"news"}}
        = leave news
        > {"event":"pusher:unsubscribe","data":{"channel":"news"}}
        "#,
    );
}

#[test]
fn every_authorised_prefix_needs_a_signature() {
    for prefix in [
        "private-",
        "private-cache-",
        "private-encrypted-",
        "private-encrypted-cache-",
        "presence-",
        "presence-cache-",
    ] {
        transcript(&format!(
            r#"
            > {{"event":"pusher:subscribe","data":{{"channel":"{prefix}x"}}}}
            = refuse {prefix}x AuthError 401 4009
            > {{"event":"pusher:subscribe","data":{{"channel":"{prefix}x","auth":""}}}}
            = refuse {prefix}x AuthError 401 4009
            > {{"event":"pusher:subscribe","data":{{"channel":"{prefix}x","auth":"{KEY}:00"}}}}
            = refuse {prefix}x AuthError 401 4009
            > {{"event":"pusher:subscribe","data":{{"channel":"{prefix}x","auth":7}}}}
            = refuse {prefix}x AuthError 401 4009
            > {{"event":"pusher:subscribe","data":{{"channel":"{prefix}x","auth":null}}}}
            = refuse {prefix}x AuthError 401 4009
            "#
        ));
    }
}

#[test]
fn a_key_of_another_app_is_refused_even_with_the_right_signature() {
    let signature = "dda12131b20cbe78d47e334d5674b214c4f954ad2d4f645bde47cbe705c19463";
    transcript(&format!(
        r#"
        > {{"event":"pusher:subscribe","data":{{"auth":"other:{signature}","channel":"private-room"}}}}
        = refuse private-room AuthError 401 4009
        > {{"event":"pusher:subscribe","data":{{"auth":"{signature}","channel":"private-room"}}}}
        = refuse private-room AuthError 401 4009
        > {{"event":"pusher:subscribe","data":{{"auth":"demo-key:{signature}","channel":"private-room"}}}}
        = join private-room
        "#
    ));
}

#[test]
fn the_signature_for_a_private_channel_covers_channel_data() {
    transcript(
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"private-x","channel_data":"{\"note\":1}"}}
        = join private-x
        > {"event":"pusher:subscribe","data":{"auth":"demo-key:20f91c5a5e45c8c23244e35509b45f6c66c1240c4e5a31652c67d976483b9276","channel":"private-room"}}
        = refuse private-room AuthError 401 4009
        "#,
    );
}

#[test]
fn a_presence_channel_needs_a_user_id() {
    transcript(
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a","channel_data":"{\"user_id\":7}"}}
        = join presence-a as 7 null
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-b","channel_data":"{\"user_id\":\"x\",\"user_info\": true}"}}
        = join presence-b as x true
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-c","channel_data":"{\"user_id\":\"x\",\"user_id\":\"y\",\"more\":1}"}}
        = join presence-c as y null
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-d"}}
        = refuse presence-d AuthError 401 4009
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-d","channel_data":"{}"}}
        = refuse presence-d AuthError 401 4009
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-d","channel_data":"[]"}}
        = refuse presence-d AuthError 401 4009
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-d","channel_data":"{\"user_id\":null}"}}
        = refuse presence-d AuthError 401 4009
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-d","channel_data":"{\"user_id\":\"\"}"}}
        = refuse presence-d AuthError 401 4009
        "#,
    );
}

#[test]
fn a_second_subscription_is_verified_again_and_may_not_change_the_user() {
    transcript(
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a","channel_data":"{\"user_id\":7}"}}
        = join presence-a as 7 null
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a","channel_data":"{\"user_id\":\"7\"}"}}
        = join presence-a as 7 null
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a","channel_data":"{\"user_id\":8}"}}
        = refuse presence-a AuthError 409 0
        > {"event":"pusher:subscribe","data":{"auth":"demo-key:00","channel":"presence-a","channel_data":"{\"user_id\":7}"}}
        = refuse presence-a AuthError 401 4009
        > {"event":"pusher:unsubscribe","data":{"channel":"presence-a"}}
        = leave presence-a
        "#,
    );
}

#[test]
fn names_and_sizes_have_limits_that_are_checked_after_the_signature() {
    let long = "x".repeat(201);
    let info = "x".repeat(8192);
    let user = "x".repeat(129);
    let data = "x".repeat(10_752);
    transcript(&format!(
        r#"
        > {{"event":"pusher:subscribe","data":{{"channel":"{long}"}}}}
        = refuse {long} LimitReached 413 0
        > {{"event":"pusher:subscribe","data":{{"channel":"a b"}}}}
        = refuse a b InvalidChannel 400 0
        > {{"event":"pusher:subscribe","data":{{"channel":""}}}}
        = refuse  InvalidChannel 400 0
        > {{"event":"pusher:subscribe","data":{{"auth":"?","channel":"presence-a","channel_data":"{{\"user_id\":7,\"user_info\":\"{info}\"}}"}}}}
        = refuse presence-a LimitReached 4301 0
        > {{"event":"pusher:subscribe","data":{{"auth":"?","channel":"presence-a","channel_data":"{{\"user_id\":\"{user}\"}}"}}}}
        = refuse presence-a LimitReached 4301 0
        > {{"event":"pusher:subscribe","data":{{"auth":"?","channel":"presence-a","channel_data":"{{\"user_id\":7,\"x\":\"{data}\"}}"}}}}
        = refuse presence-a LimitReached 4301 0
        > {{"event":"pusher:subscribe","data":{{"auth":"demo-key:00","channel":"presence-a","channel_data":"{{\"user_id\":7,\"x\":\"{data}\"}}"}}}}
        = refuse presence-a AuthError 401 4009
        "#
    ));
}

#[test]
fn a_connection_has_a_limit_of_channels() {
    transcript_of(
        |app| app.limits.channels_per_connection_max = 2,
        r#"
        > {"event":"pusher:subscribe","data":{"channel":"a"}}
        = join a
        > {"event":"pusher:subscribe","data":{"channel":"b"}}
        = join b
        > {"event":"pusher:subscribe","data":{"channel":"c"}}
        = refuse c LimitReached 429 0
        > {"event":"pusher:subscribe","data":{"channel":"a"}}
        = join a
        > {"event":"pusher:unsubscribe","data":{"channel":"a"}}
        = leave a
        > {"event":"pusher:subscribe","data":{"channel":"c"}}
        = join c
        "#,
    );
}

#[test]
fn a_client_event_needs_a_subscription_a_name_and_a_channel_of_a_supported_kind() {
    transcript(
        r#"
        > {"event":"client-x","channel":"private-a","data":1}
        = error 0 Client event rejected: not subscribed to private-a
        + 1000ms
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"private-a"}}
        = join private-a
        > {"event":"client-x","channel":"private-a","data":{"on": true},"user_id":"spoof","socket_id":"1.1"}
        = publish private-a client-x {"on": true}
        > {"event":"client-x","channel":"private-a"}
        = publish private-a client-x null
        > {"event":"client-","channel":"private-a","data":1}
        = error 0 Client event rejected: the name is only a prefix
        + 1000ms
        > {"event":"client-x","data":1}
        = error 0 Client event rejected: the channel is missing
        + 1000ms
        > {"event":"pusher:subscribe","data":{"channel":"a"}}
        = join a
        > {"event":"client-x","channel":"a","data":1}
        = error 0 Client event rejected: only supported on private and presence channels that are not encrypted
        + 1000ms
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"private-encrypted-a"}}
        = join private-encrypted-a
        > {"event":"client-x","channel":"private-encrypted-a","data":1}
        = error 0 Client event rejected: only supported on private and presence channels that are not encrypted
        > {"event":"client-x","channel":"private-encrypted-a","data":1}
        + 1000ms
        > {"event":"pusher:unsubscribe","data":{"channel":"private-a"}}
        = leave private-a
        > {"event":"client-x","channel":"private-a","data":1}
        = error 0 Client event rejected: not subscribed to private-a
        "#,
    );
}

#[test]
fn on_presence_channels_a_client_event_carries_the_user() {
    transcript(
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a","channel_data":"{\"user_id\":7}"}}
        = join presence-a as 7 null
        > {"event":"client-x","channel":"presence-a","data":"s","user_id":"8"}
        = publish presence-a client-x "s" by 7
        "#,
    );
}

#[test]
fn client_events_have_a_size_and_a_rate() {
    let (fits, large) = ("x".repeat(10_240), "x".repeat(10_241));
    let mut script = format!(
        r#"
        > {{"event":"pusher:subscribe","data":{{"auth":"?","channel":"private-a"}}}}
        = join private-a
        > {{"event":"client-x","channel":"private-a","data":"{large}"}}
        = error 0 Client event rejected: the data has 10241 bytes, more than the 10240 allowed (limits.client_event_data_bytes of the app)
        > {{"event":"client-x","channel":"private-a","data":"{fits}"}}
        = publish private-a client-x "{fits}"
        + 1000ms
        "#
    );
    for _ in 0..10 {
        script += "> {\"event\":\"client-x\",\"channel\":\"private-a\",\"data\":1}\n= publish private-a client-x 1\n";
    }
    script += r#"
        > {"event":"client-x","channel":"private-a","data":1}
        = error 4301 Client event rejected: over 10 per second (limits.client_events_per_second of the app)
        > {"event":"client-x","channel":"private-a","data":1}
        + 100ms
        > {"event":"client-x","channel":"private-a","data":1}
        = publish private-a client-x 1
    "#;
    transcript(&script);
}

#[test]
fn client_events_can_be_disabled() {
    transcript_of(
        |app| app.client_events = false,
        r#"
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"private-a"}}
        = join private-a
        > {"event":"client-x","channel":"private-a","data":1}
        = error 0 Client event rejected: client events are switched off for this app
        "#,
    );
}

#[test]
fn signing_in_opens_the_users_own_channel_and_no_other() {
    transcript(
        r##"
        > {"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-7"}}
        = refuse #server-to-user-7 AuthError 401 4009
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"7\",\"user_info\":{\"a\":1},\"watchlist\":[\"8\",9,\"8\",null]}"}}
        = sign in 7 watching [8,9] instead of []
        > {"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-7"}}
        = join #server-to-user-7
        > {"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-8"}}
        = refuse #server-to-user-8 AuthError 401 4009
        > {"event":"client-x","channel":"#server-to-user-7","data":1}
        = error 0 Client event rejected: only supported on private and presence channels that are not encrypted
        > {"event":"pusher:subscribe","data":{"auth":"?","channel":"presence-a"}}
        = join presence-a as 7 {"a":1}
        "##,
    );
}

#[test]
fn a_connection_cannot_sign_in_as_another_user() {
    transcript(
        r#"
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":7,\"watchlist\":[\"8\"]}"}}
        = sign in 7 watching [8] instead of []
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"8\"}"}}
        = error 4009 Sign-in refused: the connection is signed in as another user
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"7\",\"watchlist\":[\"9\"]}"}}
        = sign in 7 watching [9] instead of [8]
        "#,
    );
}

#[test]
fn an_invalid_sign_in_is_an_error_and_the_connection_stays_open() {
    transcript(
        r#"
        > {"event":"pusher:signin","data":{"auth":"demo-key:00","user_data":"{\"id\":\"7\"}"}}
        = error 4009 Sign-in refused: invalid signature
        > {"event":"pusher:signin","data":{"auth":"other:f5bacb96a19e4fdaa3cd30ac43af440ec6e36bef9d44d0ca00792bc3ce4f364a","user_data":"{\"id\":\"7\"}"}}
        = error 4009 Sign-in refused: invalid signature
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{}"}}
        = error 4009 Sign-in refused: user_data has no id
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"[]"}}
        = error 4009 Sign-in refused: user_data is not a JSON object
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"a:b\"}"}}
        = error 4009 Sign-in refused: user id contains a character that is not allowed
        > {"event":"pusher:signin","data":{"auth":"x:y"}}
        = error 0 Missing parameter: data.user_data
        > {"event":"pusher:signin","data":{"user_data":"{}"}}
        = error 0 Missing parameter: data.auth
        > {"event":"pusher:signin"}
        = error 0 Missing parameter: data.user_data
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"7\",\"user_info\":{\"name\":\"Zoë\"},\"watchlist\":[\"8\",\"9\"]}"}}
        = sign in 7 watching [8,9] instead of []
        "#,
    );
}

#[test]
fn a_watchlist_above_the_limit_is_truncated() {
    let ids: Vec<_> = (0..101).map(|id| id.to_string()).collect();
    let kept = ids[..100].join(",");
    transcript(&format!(
        r#"
        > {{"event":"pusher:signin","data":{{"auth":"?","user_data":"{{\"id\":\"7\",\"watchlist\":[{}]}}"}}}}
        = sign in 7 watching [{kept}] instead of [] cut to 100
        "#,
        ids.join(",")
    ));
    transcript_of(
        |app| app.watchlist = false,
        r#"
        > {"event":"pusher:signin","data":{"auth":"?","user_data":"{\"id\":\"7\",\"watchlist\":[\"8\"]}"}}
        = sign in 7 watching [] instead of []
        "#,
    );
}

#[test]
fn an_unsupported_message_is_an_error_and_never_relayed() {
    transcript(
        r#"
        > {"event":"pusher:ping"}
        = pong
        > {"event":"pusher:pong","data":{}}
        > {"event":"pusher_internal:member_removed","channel":"presence-a","data":"{}"}
        = error 0 Unsupported event received on socket: pusher_internal:member_removed
        > {"event":"pusher_internal:x-client-y","channel":"private-a"}
        = error 0 Unsupported event received on socket: pusher_internal:x-client-y
        > nonsense
        = error 0 Received invalid JSON
        > {"data":{}}
        = error 0 Received a message without an event name
        > {"event":"pusher:subscribe","data":{}}
        = error 0 Missing parameter: data.channel
        "#,
    );
}

#[test]
fn a_flood_of_messages_closes_the_connection_and_a_reconnecting_client_does_not() {
    let subscribes: String = (0..1000)
        .map(|id| {
            format!("> {{\"event\":\"pusher:subscribe\",\"data\":{{\"channel\":\"c{id}\"}}}}\n= join c{id}\n")
        })
        .collect();
    let pings = "> {\"event\":\"pusher:ping\"}\n= pong\n".repeat(500);
    transcript(&format!("{subscribes}{pings}> {{\"event\":\"pusher:ping\"}}\n= close 4100"));
    transcript(&format!("{subscribes}{pings}+ 1000ms\n> {{\"event\":\"pusher:ping\"}}\n= pong"));
}

fn session() -> Session {
    Session::new(SOCKET, Arc::new(App::new("1001", KEY, SECRET)))
}

#[test]
fn a_client_that_reconnects_with_all_its_channels_is_not_throttled() {
    let (mut thousand, mut large, now) = (session(), session(), Duration::from_secs(5));
    for _ in 0..1000 {
        assert_eq!(thousand.charge(150, 1, now), Throttle::Continue);
    }
    // A hundred presence channels of a thousand members each: the member list, and an event to every member.
    for _ in 0..100 {
        assert_eq!(large.charge(110_000 + 1000 * 180, 1, now), Throttle::Continue);
    }
}

#[test]
fn a_client_that_causes_too_many_bytes_is_throttled() {
    let (mut session, mut now, mut pauses) = (session(), Duration::from_secs(5), 0);
    // A presence channel of a thousand members with 2 KB each, left and joined 95 times a second for 8 s.
    let (mut caused, begin) = (0u64, now);
    while now < begin + Duration::from_secs(8) {
        let bytes = 2_200_000 + 1000 * 2_200;
        caused += bytes;
        if let Throttle::Pause(wait, limit) = session.charge(bytes as u32, 2, now) {
            assert_eq!(limit, Limit::AnswerBytes);
            (pauses, now) = (pauses + 1, now + wait);
        }
        now += Duration::from_millis(21);
    }
    assert!(pauses > 0 && caused < 50_000_000, "{caused} bytes of 1,640,000,000");
}

#[test]
fn changes_have_a_rate_of_their_own() {
    let (mut session, now) = (session(), Duration::from_secs(5));
    assert_eq!(session.charge(0, 1000, now), Throttle::Continue);
    let Throttle::Pause(wait, limit) = session.charge(0, 2, now) else { panic!("two above the burst") };
    assert_eq!((wait.as_millis(), limit), (100, Limit::Changes));
}

#[test]
fn a_client_that_is_throttled_for_a_minute_is_closed() {
    let (mut session, mut now) = (session(), Duration::from_secs(5));
    let begin = now;
    session.charge(0, 1000, now);
    let closed_at = loop {
        match session.charge(0, 20, now) {
            Throttle::Continue => {}
            Throttle::Pause(wait, _) => now += wait,
            Throttle::Close(limit) => {
                assert_eq!(limit, Limit::Changes);
                break now;
            }
        }
    };
    assert!((60..65).contains(&(closed_at - begin).as_secs()), "{closed_at:?}");

    for _ in 0..10 {
        // The whole burst, and the time in which it is refilled.
        now += Duration::from_secs(60);
        assert_eq!(session.charge(0, 1000, now), Throttle::Continue);
        assert!(matches!(session.charge(0, 20, now), Throttle::Pause(..)));
    }
}
