use proptest::prelude::*;

use super::*;

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text, &NameRules::default()).unwrap()
}

#[test]
fn siblings_are_the_same_name_with_another_prefix() {
    let rules = NameRules::default();
    for (name, bare) in [("orders", "orders"), ("private-orders", "orders"), ("presence-cache-a-b", "a-b")] {
        let siblings = ChannelName::parse(name, &rules).unwrap().siblings(&rules);
        let mut names: Vec<_> = siblings.iter().map(ChannelName::as_str).collect();
        assert_eq!(names.len(), PREFIXES.len() - 1, "{names:?}");
        names.push(name);
        for prefix in PREFIXES {
            assert!(names.contains(&&*format!("{prefix}{bare}")), "{prefix}{bare}: {names:?}");
        }
    }
}

#[test]
fn the_prefix_alone_decides_what_a_channel_is() {
    use Access::{Encrypted, Presence, Private, Public, User};
    // name, access, cached, client events
    let table = [
        ("#server-to-user-7", User, false, false),
        ("private-encrypted-cache-x", Encrypted, true, false),
        ("private-encrypted-x", Encrypted, false, false),
        ("private-cache-x", Private, true, true),
        ("private-x", Private, false, true),
        ("presence-cache-x", Presence, true, true),
        ("presence-x", Presence, false, true),
        ("cache-x", Public, true, false),
        ("x", Public, false, false),
        // The dash belongs to the prefix.
        ("privateroom", Public, false, false),
        ("cached", Public, false, false),
        ("presence", Public, false, false),
        // A prefix in the middle means nothing, and prefixes combine in one order only.
        ("room-private-x", Public, false, false),
        ("x-cache-y", Public, false, false),
        ("private-x-cache-y", Private, false, true),
        ("cache-private-x", Public, true, false),
        ("Private-x", Public, false, false),
        // A bare prefix is of its type.
        ("private-", Private, false, true),
        ("private-cache-", Private, true, true),
    ];
    for (text, access, cached, client_events) in table {
        let name = name(text);
        assert_eq!(name.access(), access, "{text}");
        assert_eq!(name.is_cached(), cached, "{text}");
        assert_eq!(name.is_presence(), access == Presence, "{text}");
        assert_eq!(name.takes_client_events(), client_events, "{text}");
    }
}

#[test]
fn names_outside_the_grammar_are_rejected() {
    for text in ["a b", "a/b", "a:b", "a%b", "é", "a#b", "#x", "#", "#server-to-user-", "#private-x", "a\n"]
    {
        assert_eq!(
            ChannelName::parse(text, &NameRules::default()),
            Err(ChannelNameError::Alphabet),
            "{text:?}"
        );
    }
    assert_eq!(ChannelName::parse("", &NameRules::default()), Err(ChannelNameError::Empty));
}

#[test]
fn the_length_limit_is_inclusive_and_per_app() {
    let rules = NameRules { bytes_max: 164, ..NameRules::default() };
    assert!(ChannelName::parse(&"x".repeat(164), &rules).is_ok());
    assert_eq!(
        ChannelName::parse(&"x".repeat(165), &rules),
        Err(ChannelNameError::TooLong { bytes: 165, bytes_max: 164 })
    );
    assert!(ChannelName::parse(&"x".repeat(200), &NameRules::default()).is_ok());
    assert!(ChannelName::parse(&"x".repeat(201), &NameRules::default()).is_err());
}

#[test]
fn an_app_may_allow_extra_characters_but_never_the_colon() {
    let rules = NameRules { extra_chars: "/:".into(), ..NameRules::default() };
    assert!(ChannelName::parse("a/b", &rules).is_ok());
    assert!(ChannelName::parse("a:b", &rules).is_err());
}

#[test]
fn a_users_channel_belongs_to_that_user_only() {
    let id = |text| UserId::parse(text, 128).unwrap();
    assert!(name("#server-to-user-7").belongs_to(&id("7")));
    assert!(!name("#server-to-user-77").belongs_to(&id("7")));
    assert!(!name("server-to-user-7").belongs_to(&id("7")));
    assert_eq!(ChannelName::of_user(&id("7")), name("#server-to-user-7"));
}

proptest! {
    #[test]
    fn every_text_of_the_alphabet_is_a_name_and_round_trips(text in "[-A-Za-z0-9_=@,.;]{1,200}") {
        let name = ChannelName::parse(&text, &NameRules::default()).unwrap();
        prop_assert_eq!(name.as_str(), text);
    }

    #[test]
    fn any_text_is_a_name_or_an_error_by_the_grammar(text in "\\PC{0,210}") {
        let grammar = |text: &str| {
            let plain = text.strip_prefix("#server-to-user-").unwrap_or(text);
            !plain.is_empty() && text.len() <= 200
                && plain.chars().all(|c| c.is_ascii_alphanumeric() || "_-=@,.;".contains(c))
        };
        prop_assert_eq!(ChannelName::parse(&text, &NameRules::default()).is_ok(), grammar(&text));
    }
}

#[test]
fn a_name_of_another_node_may_follow_other_rules_of_the_app() {
    let long = "n".repeat(300);
    for name in ["a", "presence-a/b", "!$%&'()*+/<>?[]^`{|}~", "#server-to-user-7", &long] {
        assert_eq!(ChannelName::of_node(name).unwrap().as_str(), name);
    }
    for name in ["", "a:b", "a b", "a\"", "a\\", "a#b", "#", "#server-to-user-", "ä", "a\n", "a\u{7f}"] {
        assert!(ChannelName::of_node(name).is_err(), "{name:?}");
    }
}
