use super::*;

fn user(id: &str) -> UserId {
    UserId::parse(id, 128).unwrap()
}

fn outbox(id: u32) -> Arc<Outbox> {
    Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX))
}

fn received(outbox: &Outbox) -> Vec<String> {
    let events = outbox.take_queued().into_iter().map(|frame| {
        let text = String::from_utf8_lossy(&frame).into_owned();
        let start = text.find("[{").unwrap();
        text[start..text.rfind(']').unwrap() + 1].replace('\\', "")
    });
    events.collect()
}

const ONLINE: &str = r#"[{"name":"online","user_ids":["8"]}]"#;
const OFFLINE: &str = r#"[{"name":"offline","user_ids":["8"]}]"#;

#[test]
fn watchers_receive_the_first_sign_in_and_the_end_of_the_last_connection() {
    let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
    let at = Duration::from_millis;
    users.watch(&app, &[user("8")], &watcher);
    assert_eq!(received(&watcher), [OFFLINE]);
    users.sign_in(&app, &user("8"), &outbox(2));
    users.sign_in(&app, &user("8"), &outbox(3));
    assert_eq!(received(&watcher), [ONLINE]);
    users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(0));
    users.expire_lingering(at(9000));
    assert!(received(&watcher).is_empty(), "another connection is left");
    users.sign_out(&app, &user("8"), SocketId::new(3, 0), at(9000));
    users.expire_lingering(at(10_999));
    assert!(received(&watcher).is_empty());
    users.expire_lingering(at(11_000));
    assert_eq!(received(&watcher), [OFFLINE]);
    users.unwatch(&app, &[user("8")], watcher.socket());
    assert!(users.is_empty());
}

#[test]
fn a_page_reload_does_not_flap() {
    let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
    users.sign_in(&app, &user("8"), &outbox(2));
    users.watch(&app, &[user("8"), user("9")], &watcher);
    assert_eq!(
        received(&watcher),
        [r#"[{"name":"online","user_ids":["8"]},{"name":"offline","user_ids":["9"]}]"#]
    );
    users.sign_out(&app, &user("8"), SocketId::new(2, 0), Duration::ZERO);
    users.sign_in(&app, &user("8"), &outbox(3));
    users.expire_lingering(Duration::from_secs(60));
    assert!(received(&watcher).is_empty());
}

#[test]
fn a_user_lingers_for_two_seconds_after_each_end_of_the_last_connection() {
    let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
    let at = Duration::from_millis;
    users.sign_in(&app, &user("8"), &outbox(2));
    users.watch(&app, &[user("8")], &watcher);
    assert_eq!(received(&watcher), [ONLINE]);
    users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(0));
    users.sign_in(&app, &user("8"), &outbox(3));
    users.sign_out(&app, &user("8"), SocketId::new(3, 0), at(1900));
    users.expire_lingering(at(2000));
    assert!(received(&watcher).is_empty(), "gone for a tenth of a second");
    users.expire_lingering(at(3900));
    assert_eq!(received(&watcher), [OFFLINE]);
}

#[test]
fn users_that_leave_concurrently_go_offline_whatever_the_order_of_their_clock_readings() {
    let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
    let at = Duration::from_millis;
    users.sign_in(&app, &user("8"), &outbox(2));
    users.sign_in(&app, &user("9"), &outbox(3));
    users.watch(&app, &[user("8"), user("9")], &watcher);
    watcher.take_queued();
    users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(1001));
    users.sign_out(&app, &user("9"), SocketId::new(3, 0), at(1000));
    users.expire_lingering(at(3000));
    assert_eq!(received(&watcher), [r#"[{"name":"offline","user_ids":["9"]}]"#]);
    users.expire_lingering(at(9000));
    assert_eq!(received(&watcher), [OFFLINE]);
}

#[test]
fn in_a_cluster_the_end_of_a_connection_does_not_keep_an_absent_user_online() {
    let (users, app, watcher) = (Users::in_cluster(), Arc::from("app"), outbox(1));
    let at = Duration::from_millis;
    users.sign_in(&app, &user("8"), &outbox(2));
    users.set_present(&app, &user("8"), true, at(0));
    users.watch(&app, &[user("8")], &watcher);
    assert_eq!(received(&watcher), [ONLINE]);
    users.set_present(&app, &user("8"), false, at(1000));
    users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(2000));
    users.expire_lingering(at(3000));
    assert_eq!(received(&watcher), [OFFLINE]);
}

#[test]
fn a_user_that_signs_in_and_out_repeatedly_has_one_timer() {
    let (users, app) = (Users::default(), Arc::from("app"));
    for at in 0..1000 {
        users.sign_in(&app, &user("8"), &outbox(2));
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), Duration::from_millis(at));
        users.expire_lingering(Duration::from_millis(at));
        assert_eq!(users.0.lingering.lock().len(), 1);
    }
    users.expire_lingering(Duration::from_millis(2999));
    assert!(users.is_empty());
}

#[test]
fn users_that_leave_at_once_expire_in_turns() {
    let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
    let ids: Vec<_> = (0..1000).map(|id: u32| user(&id.to_string())).collect();
    for (socket, id) in (2..).zip(&ids) {
        users.sign_in(&app, id, &outbox(socket));
        users.sign_out(&app, id, SocketId::new(socket, 0), Duration::ZERO);
    }
    users.watch(&app, &ids[..500], &watcher);
    watcher.take_queued();
    let mut turns = 1;
    while users.expire_lingering(LINGER) {
        turns += 1;
    }
    assert_eq!((received(&watcher).len(), users.len()), (500, 500), "watched users are kept");
    // 1000 users, and 500 events to watchers.
    assert_eq!(turns, 1500_usize.div_ceil(EXPIRED_PER_TURN));
    assert!(!users.expire_lingering(LINGER), "once each");
}

#[test]
fn connections_returns_those_that_are_signed_in_as_the_user_of_the_app() {
    let (users, app, other) = (Users::default(), Arc::from("app"), Arc::from("other"));
    users.sign_in(&app, &user("8"), &outbox(2));
    users.sign_in(&app, &user("9"), &outbox(3));
    users.sign_in(&other, &user("8"), &outbox(4));
    let sockets: Vec<_> = users.connections(&app, &user("8")).iter().map(|outbox| outbox.socket()).collect();
    assert_eq!(sockets, [SocketId::new(2, 0)]);
}
