use super::*;

#[test]
fn an_app_is_found_by_its_id_and_by_each_of_its_keys() {
    let mut app = App::new("1", "old", "s1");
    app.keys.push(KeyPair { key: "new".into(), secret: SigningKey::new("s2") });
    let apps = Apps::new([app, App::new("2", "other", "s3")]);
    assert_eq!(&*apps.by_key("old").unwrap().id.0, "1");
    assert_eq!(&*apps.by_key("new").unwrap().id.0, "1");
    assert!(apps.by_id("3").is_none());
    assert!(apps.by_key("").is_none());
    assert!(apps.by_id("1").unwrap().secret("other").is_none(), "a key of another app");
}

#[test]
fn the_last_permit_is_acquired_once_and_released() {
    let mut app = App::new("1", "k", "s");
    app.limits.connections_max = Some(10);
    let app = Arc::new(app);
    let (send, permits) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (app, send) = (&app, send.clone());
            scope.spawn(move || (0..10).for_each(|_| send.send(ConnectionPermit::acquire(app)).unwrap()));
        }
    });
    drop(send);
    let permits: Vec<_> = permits.into_iter().flatten().collect();
    assert_eq!((permits.len(), app.state.connections.now()), (10, 10));
    drop(permits);
    assert_eq!(app.state.connections.now(), 0);
}

#[test]
fn the_rate_of_events_always_accepts_one_batch() {
    let mut app = App::new("1", "k", "s");
    app.limits.events_per_second = Some(2);
    assert_eq!(app.count_events(10, || Duration::ZERO), Ok(()));
    assert_eq!(app.count_events(1, || Duration::ZERO), Err(Duration::from_millis(500)));
    assert_eq!(app.count_events(10, || Duration::from_secs(5)), Ok(()));
    assert_eq!(app.count_request(|| Duration::ZERO), Ok(()), "requests have a rate of their own");
}

#[test]
fn the_longest_prefix_is_split_off_at_a_slash() {
    let app = |id: &str, prefix: &str| App { path_prefix: prefix.into(), ..App::new(id, id, "s") };
    let apps = Apps::new([app("1", ""), app("2", "/rt"), app("3", "/rt/deep")]);
    assert_eq!(apps.split_prefix("/app/k"), ("", "/app/k"));
    assert_eq!(apps.split_prefix("/rt/app/k"), ("/rt", "/app/k"));
    assert_eq!(apps.split_prefix("/rt/deep/app/k"), ("/rt/deep", "/app/k"));
    assert_eq!(apps.split_prefix("/rtx/app/k"), ("", "/rtx/app/k"));
    assert_eq!(apps.split_prefix("/rt"), ("", "/rt"));
}

#[test]
fn a_snapshot_does_not_change_and_says_that_it_was_replaced() {
    let apps = Apps::new([App::new("1", "k", "s"), App::new("2", "k2", "s")]);
    let before = apps.by_id("1").unwrap();
    assert!(!before.is_replaced());
    apps.replace([App { client_events: false, ..App::new("1", "k", "s") }]);
    assert!(before.is_replaced() && before.client_events);
    let now = apps.by_key("k").unwrap();
    assert!(!now.is_replaced() && !now.client_events);
    assert!(Arc::ptr_eq(&before.state, &now.state), "what the app has is not replaced");
    assert!(apps.by_id("2").is_none() && apps.by_key("k2").is_none());
}

#[test]
fn a_removed_app_is_known_as_long_as_it_has_connections() {
    let apps = Apps::new([App::new("1", "k", "s")]);
    let (snapshot, permit) = {
        let app = apps.by_id("1").unwrap();
        (Arc::clone(&app), ConnectionPermit::acquire(&app).unwrap())
    };
    apps.replace([]);
    apps.replace([]);
    assert!(apps.by_id("1").is_none() && apps.by_id_or_removed("1").is_some());
    drop(snapshot);
    assert!(apps.by_id_or_removed("1").is_some(), "a connection may have an earlier snapshot, or none");
    apps.replace([App::new("1", "k", "s")]);
    assert_eq!(apps.by_id("1").unwrap().state.connections.now(), 1, "a permit of before still counts");
    apps.replace([]);
    drop(permit);
    assert!(apps.by_id_or_removed("1").is_none());
    apps.replace([App::new("1", "k", "s")]);
    assert_eq!(apps.by_id("1").unwrap().state.connections.now(), 0);
    let state = Arc::downgrade(&apps.by_id("1").unwrap().state);
    apps.replace([]);
    assert_eq!(state.strong_count(), 0, "nothing of it is left");
}

#[tokio::test]
async fn a_replacement_is_announced_once_also_to_a_later_caller() {
    let apps = Apps::new([App::new("1", "k", "s")]);
    let is_announced = async |apps: &Apps| {
        let mut replaced = std::pin::pin!(apps.replaced());
        std::future::poll_fn(|cx| std::task::Poll::Ready(replaced.as_mut().poll(cx).is_ready())).await
    };
    assert!(!is_announced(&apps).await, "the first list replaces nothing");
    apps.replace([]);
    apps.replace([]);
    assert!(is_announced(&apps).await);
    assert!(!is_announced(&apps).await);
}
