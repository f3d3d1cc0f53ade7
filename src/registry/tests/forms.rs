//! Subscribers of one channel in all forms.

use super::*;

const DEFLATED: Form = Form::DeflatedFrame { bytes_min: 200 };
const FORMS: [Form; 3] = [Form::Frame, DEFLATED, Form::Text];

/// A connection in each form, with these ids.
fn in_each_form(ids: [u32; 3]) -> [Arc<Outbox>; 3] {
    std::array::from_fn(|at| outbox_in(FORMS[at], ids[at]))
}

#[test]
fn every_subscriber_gets_what_it_may_get_in_its_form_and_in_order() {
    let registry = Registry::default();
    let all = in_each_form([1, 2, 3]);
    for subscriber in &all {
        join(&registry, "x", subscriber, &plain());
    }
    let x = name("x");
    let long = |word: &str| format!("\"{}\"", word.repeat(300));
    // Published while a driver exists, so they become one batch.
    let say = |data: &str, except: Option<u32>| {
        let except = except.map(|id| SocketId::new(id, 0));
        let event = Event { channel: &x, name: "e", data, except, source: Source::App };
        registry.publish(&"app".into(), &event, cache(), NOW).drive
    };
    let first = say(&long("a"), None);
    assert!(first.is_some());
    for (data, except) in [(long("b"), 1), (long("c"), 2), ("\"d\"".to_owned(), 3)] {
        assert!(say(&data, Some(except)).is_none(), "there is a driver");
    }
    let late = in_each_form([4, 5, 6]);
    for subscriber in &late {
        join(&registry, "x", subscriber, &plain());
    }
    assert!(say(&long("f"), None).is_none());
    drive(first);

    let ok = (false, "ok".to_owned());
    for (excepted, subscriber) in (1..).zip(&all) {
        let got = data(subscriber);
        let compresses = subscriber.form() == DEFLATED;
        let event = |(by, word): (u32, &str)| {
            let data = if word == "d" { word.to_owned() } else { word.repeat(300) };
            (by != excepted).then_some((compresses && word != "d", data))
        };
        let events = [(0, "a"), (1, "b"), (2, "c"), (3, "d"), (0, "f")].into_iter().filter_map(event);
        let expected: Vec<_> = std::iter::once(ok.clone()).chain(events).collect();
        assert_eq!(got, expected, "{:?}", subscriber.form());
    }
    for subscriber in &late {
        let expected = [ok.clone(), (subscriber.form() == DEFLATED, "f".repeat(300))];
        assert_eq!(data(subscriber), expected, "{:?} gets only what came after it", subscriber.form());
    }
}

/// What a connection received: acknowledgements as `ok`, events as their data; and whether each was compressed.
fn data(outbox: &Outbox) -> Vec<(bool, String)> {
    let data = |text: &str| {
        let message: serde_json::Value = serde_json::from_str(text).unwrap();
        match message["event"].as_str().unwrap() {
            "e" => message["data"].as_str().unwrap().to_owned(),
            "pusher_internal:subscription_succeeded" => "ok".to_owned(),
            other => panic!("{other}"),
        }
    };
    messages(outbox).into_iter().map(|(compressed, text)| (compressed, data(&text))).collect()
}

#[test]
fn subscribers_of_one_form_share_its_bytes() {
    let registry = Registry::default();
    let pairs = [in_each_form([1, 2, 3]), in_each_form([4, 5, 6])];
    for subscriber in pairs.iter().flatten() {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    publish(&registry, "x", &format!("\"{}\"", "long ".repeat(100)), None);
    let [one, two] = pairs.map(|pair| pair.map(|outbox| outbox.take_queued()[0].as_ptr()));
    assert_eq!(one, two, "each form is made once");
    assert!(one[0] != one[1] && one[1] != one[2] && one[0] != one[2], "the forms differ");
}

#[test]
fn short_messages_are_shared_by_subscribers_with_and_without_compression() {
    let registry = Registry::default();
    let [frame, deflated, _] = in_each_form([1, 2, 3]);
    for subscriber in [&frame, &deflated] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    publish(&registry, "x", "\"short\"", None);
    let (plain, compressed) = (frame.take_queued(), deflated.take_queued());
    assert_eq!(plain, compressed);
    assert_eq!(plain[0].as_ptr(), compressed[0].as_ptr(), "the same bytes");
}

#[test]
fn acknowledgement_member_list_and_cached_event_have_the_form_of_the_subscriber() {
    let registry = Registry::default();
    let long = "1".repeat(300);
    let [frame, deflated, text] = in_each_form([1, 2, 3]);
    let all = [&frame, &deflated, &text];
    for subscriber in all {
        join(&registry, "cache-x", subscriber, &plain());
        assert_eq!(received(subscriber), ["ok", "cache_miss {}"]);
        leave(&registry, "cache-x", subscriber);
    }
    publish(&registry, "cache-x", &long, None);
    for subscriber in all {
        join(&registry, "cache-x", subscriber, &plain());
        let messages = messages(subscriber);
        assert!(messages[1].1.contains(&long), "{messages:?}");
        assert!(messages.iter().all(|(compressed, _)| !compressed), "they go to one connection");
    }
    let members = ["ok a", "ok a,b", "ok a,b,c"];
    for (subscriber, (id, members)) in all.into_iter().zip(["a", "b", "c"].into_iter().zip(members)) {
        join(&registry, "presence-x", subscriber, &presence(id));
        assert_eq!(received(subscriber).pop().as_deref(), Some(members));
    }
    leave(&registry, "presence-x", &frame);
    assert_eq!(received(&deflated), ["+c", "-a"]);
    assert_eq!(received(&text), ["-a"]);
    // A repeated subscription is acknowledged too.
    join(&registry, "presence-x", &text, &presence("c"));
    assert_eq!(received(&text), ["ok b,c"]);
    let acknowledgement = Frame::from_text(r#"{"event":"other","data":"x"}"#);
    join(&registry, "y", &text, &Join { acknowledgement: Some(&acknowledgement), ..plain() });
    assert_eq!(received(&text), ["other x"]);
}

#[test]
fn the_states_of_watched_users_have_the_form_of_the_watcher() {
    let users = Users::default();
    let app: Arc<str> = "app".into();
    let user = UserId::parse("u", 10).unwrap();
    for watcher in in_each_form([1, 2, 3]) {
        users.watch(&app, std::slice::from_ref(&user), &watcher);
        users.sign_in(&app, &user, &outbox(9));
        users.sign_out(&app, &user, SocketId::new(9, 0), NOW);
        assert!(!users.expire_lingering(NOW + Duration::from_secs(10)));
        let word =
            |state| format!(r#"watchlist_events {{"events":[{{"name":"{state}","user_ids":["u"]}}]}}"#);
        assert_eq!(received(&watcher), [word("offline"), word("online"), word("offline")]);
        users.unwatch(&app, std::slice::from_ref(&user), watcher.socket());
    }
}
