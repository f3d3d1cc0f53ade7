use proptest::prelude::*;

use super::*;

fn assert_all(table: &[(&str, &str, bool)]) {
    for (pattern, origin, expected) in table {
        let found = OriginPattern::parse(pattern).unwrap().matches(origin);
        assert_eq!(found, *expected, "{pattern} {origin}");
    }
}

#[test]
fn patterns_match_the_origins_they_name_and_no_others() {
    // pattern, origin, matches
    assert_all(&[
        ("*", "null", true),
        ("*", "https://any.example", true),
        ("*", "no origin", true),
        ("example.com", "https://example.com", true),
        ("example.com", "http://EXAMPLE.com:8080", true),
        ("example.com", "https://example.com.evil.test", false),
        ("example.com", "https://a.example.com", false),
        ("*.example.com", "https://a.example.com", true),
        ("*.example.com", "https://a.b.example.com", true),
        ("*.example.com", "https://example.com", false),
        ("*.example.com", "https://evilexample.com", false),
        ("localhost:3000", "http://localhost:3000", true),
        ("localhost:3000", "http://localhost:3001", false),
        ("localhost:*", "http://localhost:3001", true),
        ("localhost:*", "http://localhost", true),
        ("localhost:30*", "http://localhost:3001", true),
        ("localhost:30*", "http://localhost:4001", false),
        ("https://*.example.com", "https://a.example.com", true),
        ("https://*.example.com", "http://a.example.com", false),
        ("http*://example.com", "http://example.com", true),
        ("a*b*c", "http://aXbYbZc", true),
        ("example.com", "", false),
        ("example.com", "example.com", false),
    ]);
}

#[test]
fn a_missing_port_is_that_of_the_scheme() {
    assert_all(&[
        ("https://laravel.com:443", "https://laravel.com", true),
        ("laravel.com:443", "https://laravel.com", true),
        ("laravel.com:443", "https://laravel.com:443", true),
        ("laravel.com:443", "http://laravel.com", false),
        ("laravel.com:80", "http://laravel.com", true),
        ("laravel.com:0443", "https://laravel.com", true),
        ("https://laravel.com", "https://laravel.com:443", true),
        ("https://laravel.com", "https://laravel.com:8443", false),
        ("https://example.com:8443", "https://example.com", false),
        ("https://example.com:8443", "https://example.com:8443", true),
        ("https://*:*", "https://example.com:8443", true),
        ("laravel.com:80", "capacitor://laravel.com", false),
    ]);
}

#[test]
fn origins_of_mobile_apps_files_and_opaque_pages_can_be_allowed() {
    assert_all(&[
        ("file://", "file://", true),
        ("file://", "FILE://", true),
        ("file://", "https://file", false),
        ("null", "null", true),
        ("null", "https://null", false),
        ("localhost", "null", false),
        ("capacitor://localhost", "capacitor://localhost", true),
        ("capacitor://localhost", "ionic://localhost", false),
        ("ionic://localhost", "ionic://localhost", true),
        ("tauri://localhost", "tauri://localhost", true),
        ("localhost", "capacitor://localhost", true),
        ("chrome-extension://*", "chrome-extension://abcdefgh", true),
        ("capacitor://localhost:*", "capacitor://localhost", true),
    ]);
}

#[test]
fn addresses_and_host_names_are_normalised() {
    assert_all(&[
        ("[::1]", "http://[::1]:3000", true),
        ("::1", "http://[::1]:3000", true),
        ("[0:0:0:0:0:0:0:1]", "http://[::1]", true),
        ("http://[::1]:3000", "http://[0::1]:3000", true),
        ("[::1]:3000", "http://[::1]:3001", false),
        ("[2001:DB8::1]", "https://[2001:db8::1]", true),
        ("127.0.0.1", "http://127.0.0.1:5173", true),
        ("müller.example", "https://xn--mller-kva.example", true),
        ("MÜLLER.example", "https://xn--mller-kva.example", true),
        ("*.müller.example", "https://shop.xn--mller-kva.example", true),
        ("xn--mller-kva.example", "https://XN--mller-kva.example", true),
        ("Example.COM", "https://example.com", true),
    ]);
}

#[test]
fn a_text_that_only_looks_like_the_host_does_not_match() {
    for origin in [
        "https://evil.com?.foo.test",
        "https://evil.com#.foo.test",
        "https://evil.com/.foo.test",
        "https://evil.com\\.foo.test",
        "https://evil.com:1@a.foo.test",
        "https://a@b.foo.test",
        "https://evil.com .foo.test",
        "https://evil.com:.foo.test",
        "https://a.foo.test:",
        "https://a.foo.test:65536",
        "https://a.foo.test:x",
        "https://[a.foo.test]",
        "https://",
        "://a.foo.test",
        "a.foo.test",
    ] {
        for pattern in ["*.foo.test", "https://*.foo.test", "*foo.test", "*://*.foo.test"] {
            assert!(!OriginPattern::parse(pattern).unwrap().matches(origin), "{pattern} {origin}");
        }
    }
}

#[test]
fn a_text_that_is_no_origin_is_rejected_as_a_pattern() {
    let table = [
        "https://a.test/path",
        "https://a.test/",
        "a b",
        "https://",
        "http://",
        "a/b",
        "a?b",
        "a#b",
        "u@a.test",
        "a.test:x",
        "a.test:",
        "a.test:65536",
        "a.test:0",
        "[::1",
        "[x]",
        "[::1]x",
        "ü*.test",
        "sch eme://a",
        "file://:1",
        "*://",
        "://a",
        "a\u{7f}",
    ];
    for text in table {
        assert_eq!(OriginPattern::parse(text), Err(OriginPatternError::NotAnOrigin), "{text}");
    }
    assert_eq!(OriginPattern::parse(""), Err(OriginPatternError::Empty));
}

proptest! {
    #[test]
    fn any_text_is_matched_without_a_panic(pattern in "\\PC{0,20}", origin in "\\PC{0,20}") {
        if let Ok(pattern) = OriginPattern::parse(&pattern) {
            prop_assert!(pattern.matches(&origin) || pattern.as_str() != "*");
        }
    }

    #[test]
    fn an_origin_matches_itself_and_no_other_port(host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", port in 1..65_535_u16) {
        let origin = format!("https://{host}:{port}");
        let pattern = OriginPattern::parse(&origin).unwrap();
        prop_assert!(pattern.matches(&origin));
        let other = format!("https://{host}:{}", port + 1);
        prop_assert!(!pattern.matches(&other));
    }
}
