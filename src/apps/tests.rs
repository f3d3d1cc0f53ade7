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
    assert_eq!((permits.len(), app.connections.now()), (10, 10));
    drop(permits);
    assert_eq!(app.connections.now(), 0);
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
