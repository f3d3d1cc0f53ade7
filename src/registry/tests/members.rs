use super::*;

#[test]
fn member_events_are_about_users_not_connections() {
    let (registry, a, b, b2) = (Registry::default(), outbox(1), outbox(2), outbox(3));
    assert!(join(&registry, "presence-x", &a, &presence("7")).member_added);
    assert!(join(&registry, "presence-x", &b, &presence("8")).member_added);
    assert!(!join(&registry, "presence-x", &b2, &presence("8")).member_added);
    assert_eq!(leave(&registry, "presence-x", &b).unwrap().member_removed, None);
    assert_eq!(leave(&registry, "presence-x", &b2).unwrap().member_removed, Some(member("8").id));
    assert_eq!(received(&a), ["ok 7", "+8", "-8"]);
    assert_eq!(received(&b), ["ok 7,8"]);
    assert_eq!(received(&b2), ["ok 7,8"]);
    assert!(leave(&registry, "presence-x", &a).unwrap().vacated);
    assert!(registry.is_empty());
}

#[test]
fn a_presence_channel_at_its_limit_refuses_only_new_users() {
    let registry = Registry::default();
    for id in ["1", "2", "3"] {
        join(&registry, "presence-x", &outbox(id.parse().unwrap()), &presence(id));
    }
    let refused = registry.join(&key("presence-x"), &outbox(9), &presence("4"), NOW);
    assert_eq!(refused.unwrap_err(), JoinError::TooManyMembers);
    let second_tab = outbox(10);
    join(&registry, "presence-x", &second_tab, &presence("3"));
    assert_eq!(received(&second_tab), ["ok 1,2,3"]);
}

#[test]
fn subscribing_twice_changes_nothing() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    join(&registry, "presence-x", &a, &presence("7"));
    join(&registry, "presence-x", &b, &presence("8"));
    let again = join(&registry, "presence-x", &b, &presence("8"));
    assert!(again.already_subscribed && !again.occupied && !again.member_added);
    assert_eq!(received(&b), ["ok 7,8", "ok 7,8"]);
    assert_eq!(received(&a), ["ok 7", "+8"]);
    assert_eq!(leave(&registry, "presence-x", &b).unwrap().member_removed, Some(member("8").id));
}

#[test]
fn a_join_or_leave_charges_the_connection_for_the_messages_to_all_subscribers() {
    let registry = Registry::default();
    let members: Vec<_> = (1..=10).map(outbox).collect();
    let as_user = |id: u32| Join { member: Some(member(&id.to_string())), ..plain() };
    for (id, each) in (1..).zip(&members) {
        join(&registry, "presence-x", each, &as_user(id));
        let (_, changes) = each.take_charges();
        assert_eq!(changes, if id == 1 { 2 } else { 1 }, "a member, and for the first one the channel");
    }
    let tenth = &members[9];
    members.iter().for_each(|each| drop(each.take_queued()));
    leave(&registry, "presence-x", tenth);
    let removed: usize = members[0].take_queued().iter().map(|frame| frame.len()).sum();
    assert_eq!(tenth.take_charges(), ((9 * removed) as u32, 1));

    join(&registry, "presence-x", tenth, &as_user(10));
    let added: usize = members[0].take_queued().iter().map(|frame| frame.len()).sum();
    let roster: usize = tenth.take_queued().iter().map(|frame| frame.len()).sum();
    assert_eq!(tenth.take_charges(), ((roster + 10 * added) as u32, 1));

    join(&registry, "presence-x", tenth, &as_user(10));
    assert_eq!(tenth.take_charges(), (roster as u32, 0), "acknowledged again, nothing changed");
    assert_eq!(members[0].take_charges(), (0, 0), "others are charged nothing");

    join(&registry, "y", tenth, &plain());
    leave(&registry, "y", tenth);
    assert_eq!(tenth.take_charges().1, 2, "the channel became occupied and vacated");
}

#[test]
fn a_scan_returns_the_connections_of_a_member() {
    let registry = Registry::default();
    let join = |key: &ChannelKey, id: u32, user: &str| {
        let outbox = outbox(id);
        registry.join(key, &outbox, &presence(user), NOW).unwrap();
        outbox.socket()
    };
    let mut expected = Vec::new();
    for at in 0..1000 {
        let key = key(&format!("presence-{at}"));
        join(&key, 2 * at, "other");
        expected.extend((at % 10 == 0).then(|| join(&key, 2 * at + 1, "7")));
    }
    join(&ChannelKey { app: "other".into(), channel: name("presence-1") }, 3000, "7");
    registry.join(&key("private-7"), &outbox(3001), &plain(), NOW).unwrap();
    let many = key("presence-many");
    expected.extend((4000..4100).map(|id| join(&many, id, "7")));
    registry.leave(&many, expected.pop().unwrap(), false, NOW);

    let mut members = registry.connections_of_member("app", &member("7").id);
    let (mut found, mut turns) = (Vec::new(), 0);
    while let Some(some) = members.next_chunk() {
        found.extend(some.iter().map(|outbox| outbox.socket()));
        turns += 1;
    }
    found.sort_unstable_by_key(|socket| socket.number());
    expected.sort_unstable_by_key(|socket| socket.number());
    assert_eq!(found, expected);
    assert!(turns > 1, "in several chunks");
    assert!(registry.connections_of_member("app", &member("nobody").id).next_chunk().unwrap().is_empty());
}
