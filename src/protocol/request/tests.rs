use proptest::prelude::*;

use super::*;

/// Checks a request as the `http` module does, with the clock at the time of the request.
fn check(secret: &str, method: &str, path: &str, query: &str, body: &str) -> Result<(), SignatureError> {
    let query = Query::parse(query).unwrap();
    let auth = query.auth()?;
    auth.check_time(auth.timestamp, 600)?;
    query.verify(&auth, &SigningKey::new(secret), method, [path])?;
    auth.check_body(body.as_bytes())
}

const A: &str = "auth_key=demo-key&auth_timestamp=1700000000&auth_version=1.0";
const B1: &str = r#"{"name":"order.shipped","data":"{\"id\":7}","channels":["orders"]}"#;
const B8: &str = r#"{"batch":[{"channel":"a","name":"e1","data":"1"},{"channel":"presence-b","name":"e2","data":"{}","info":"user_count"}]}"#;
const B12: &str = "{\"name\":\"e\",\"data\":\"hé \\u20ac 😀\",\"channel\":\"c\"}";
const H1: &str = "body_md5=c33fd8def59d170cd8b3757ae2dab6ae&auth_signature=72680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6";

#[test]
fn http_vectors_h1_to_h13_hold() {
    let channels = "/apps/1001/channels";
    let md5 = "body_md5=c33fd8def59d170cd8b3757ae2dab6ae";
    let empty = "body_md5=99914b932bd37a50b983c5e7c90ae93b";
    // name, method, path as signed, further query, body, signature
    let table: &[(&str, &str, &str, &str, &str, &str)] = &[
        (
            "H1",
            "POST",
            "/apps/1001/events",
            md5,
            B1,
            "72680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6",
        ),
        (
            "H2",
            "GET",
            channels,
            "info=user_count&filter_by_prefix=presence-",
            "",
            "d02df96026971211d49f80cb7705a3e06906f82290faf3916b3d3006a3a1ffa0",
        ),
        (
            "H3a",
            "GET",
            channels,
            "info%5B0%5D=user_count&info%5B1%5D=subscription_count&filter_by_prefix=presence-",
            "",
            "9a070b9d3cf4f638285e93080811e0230cf828648b07bc537398fe76edbbf233",
        ),
        (
            "H3b",
            "GET",
            channels,
            "info=user_count%2Csubscription_count&filter_by_prefix=presence-",
            "",
            "9a070b9d3cf4f638285e93080811e0230cf828648b07bc537398fe76edbbf233",
        ),
        (
            "H4",
            "GET",
            channels,
            "body_md5=d41d8cd98f00b204e9800998ecf8427e&info=user_count&filter_by_prefix=presence-",
            "",
            "7d826f9eb1fdbffec4c2d26f73f003ef8eaa8795030b6c0f8521d307a9363847",
        ),
        (
            "H5",
            "GET",
            channels,
            "filter_by_prefix=a%20b%2Bc%26d%3D%C3%A9",
            "",
            "3f4c6308ed26d93107a77f5d2d1b41125e086f140908348b9312e2dbda97964a",
        ),
        (
            "H6",
            "POST",
            "/apps/1001/users/u-42/terminate_connections",
            empty,
            "{}",
            "80eb46ec4a57f48ad21aacd5e1be3a7e3da47f22ab4950d155fd3e91b487f27f",
        ),
        (
            "H7",
            "POST",
            "/apps/1001/events",
            "name=greet&channels%5B%5D=a&channels%5B%5D=b&data=hi+there",
            "",
            "6cb72ccbfe52da120bca5dd9d354904ea7047eeb4833fbd0cdf9f575e075eab7",
        ),
        (
            "H8",
            "POST",
            "/apps/1001/batch_events",
            "body_md5=2d53529d59c783d6d84d0346bb843bce",
            B8,
            "e918a085fae34ceed776f4cc65f01e7c77542d2738725ca9ef0d1e579d718776",
        ),
        (
            "H10",
            "POST",
            "/rt/apps/1001/events",
            md5,
            B1,
            "ee8634cdbeeaa49fb98f2767eef44f5e10ed1915912ecd24853fd646cf022633",
        ),
        (
            "H11",
            "POST",
            "/apps/1001/users/user id/terminate_connections",
            empty,
            "{}",
            "dfd3c758f01372ca8f1590b0601a82c8725bfd3639a4efc5909bfec49037ddc7",
        ),
        (
            "H12",
            "POST",
            "/apps/1001/events",
            "body_md5=7f12742193240d24fa86c01c2567869f",
            B12,
            "cbd096376a5cbd791e38b6f3cd3bb256d3d395e057833627bb556eb141ba7c75",
        ),
        (
            "H13",
            "POST",
            "/users/u-42/terminate_connections",
            empty,
            "{}",
            "dd899b843841d3bcf4e5dab71e399eece1cd969a762eb7482aa7e08f7a0bbd1d",
        ),
    ];
    for (name, method, path, more, body, signature) in table {
        // Parameters may be in any order, including the signature.
        for query in [
            format!("{A}&{more}&auth_signature={signature}"),
            format!("auth_signature={signature}&{more}&{A}"),
        ] {
            assert_eq!(check("demo-secret", method, path, &query, body), Ok(()), "{name}");
        }
    }
    let h9 = "Auth_Key=demo-key&auth_timestamp=1700000000&auth_version=1.0&INFO=subscription_count&auth_signature=089a8f0b20dfa44e80a2e8b3ef81125fbf4ff308d631b6787943a84847304eb0";
    assert_eq!(check("demo-secret", "GET", "/apps/1001/channels/private-x", h9, ""), Ok(()));
}

#[test]
fn published_http_vectors_hold() {
    let vendor = "7ad3773142a6692b25b8";
    let go = "4bf35003e819bb138249";
    // secret, method, path, query, body
    let table = [
        (
            vendor,
            "POST",
            "/apps/3/events",
            "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
            r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#,
        ),
        (
            go,
            "GET",
            "/apps/102015/channels",
            "auth_key=d41a439c438a100756f5&auth_timestamp=1427034994&auth_version=1.0&filter_by_prefix=presence-&info=user_count&auth_signature=4d8a02edcc8a758b0162cd6da690a9a45fb8ae326a276dca1e06a0bc42796c11",
            "",
        ),
        (
            go,
            "GET",
            "/apps/102015/channels",
            "auth_key=d41a439c438a100756f5&auth_timestamp=1427036787&auth_version=1.0&auth_signature=df89248f87f6e6d028925e0b04d60f316527a865992ace6936afa91281d8bef0",
            "",
        ),
        (
            "tofu",
            "GET",
            "/event",
            "auth_key=f00d&auth_timestamp=1234567890&auth_version=1.0&body_md5=165d5e6d7ca8f73b3853ce45addf42fc&auth_signature=a650196dc427ebe837226f8565ca9232198c6d1b9455eaa72374a9dc0b620e7b",
            "example body",
        ),
        (
            "tofu",
            "GET",
            "/event",
            "auth_key=f00d&auth_timestamp=1234567890&auth_version=1.0&foo=bar&baz=123454321&auth_signature=d8bdbd31911fb7400a14fbd36fd7de053494725b64400ae5856deafe304b34a9",
            "",
        ),
        (
            "secret",
            "GET",
            "/some/obscure/api",
            "auth_key=key&auth_timestamp=1000&auth_version=1.0&body_md5=d41d8cd98f00b204e9800998ecf8427e&foo=bar&auth_signature=5c49f04a95eedc9028b1e0e8de7c2c7ad63504a0e3b5c145d2accaef6c14dbac",
            "",
        ),
        (
            "secret",
            "POST",
            "/some/path",
            "auth_key=key&auth_timestamp=1234&auth_version=1.0&query=params&go=here&auth_signature=3b237953a5ba6619875cbb2a2d43e8da9ef5824e8a2c689f6284ac85bc1ea0db",
            "",
        ),
        (
            "secret",
            "POST",
            "/some/path",
            "auth_key=key&auth_timestamp=1234&auth_version=1.0&Query=params&go=here&auth_signature=3b237953a5ba6619875cbb2a2d43e8da9ef5824e8a2c689f6284ac85bc1ea0db",
            "",
        ),
    ];
    for (secret, method, path, query, body) in table {
        assert_eq!(check(secret, method, path, query, body), Ok(()), "{path}?{query}");
    }
}

#[test]
fn a_request_that_differs_from_the_signed_one_is_rejected() {
    use SignatureError::{Body, Mismatch, Missing, Repeated, TimestampFormat, Version};
    let events = "/apps/1001/events";
    let good = format!("{A}&{H1}");
    let check =
        |method: &str, path: &str, query: &str, body: &str| check("demo-secret", method, path, query, body);
    assert_eq!(check("POST", events, &good, B1), Ok(()));
    assert_eq!(
        check("POST", events, &good.replace("72680f7a", "72680F7A"), B1),
        Ok(()),
        "upper case decodes equal"
    );

    for name in ["auth_key", "auth_timestamp", "auth_version", "auth_signature"] {
        let without = good.split('&').filter(|pair| !pair.starts_with(name)).collect::<Vec<_>>().join("&");
        assert_eq!(check("POST", events, &without, B1), Err(Missing(name)));
        assert_eq!(check("POST", events, &format!("{good}&{name}=1.0"), B1), Err(Repeated(name)));
    }
    assert_eq!(check("POST", events, &format!("{good}&body_md5=x"), B1), Err(Repeated("body_md5")));
    assert_eq!(check("POST", events, &good.replace("version=1.0", "version=2.0"), B1), Err(Version));
    assert_eq!(check("POST", events, &good.replace("1700000000", "17e8"), B1), Err(TimestampFormat));
    assert_eq!(check("POST", events, &good, &B1.replace('7', "8")), Err(Body));
    assert_eq!(check("POST", events, &good, ""), Err(Body));
    assert_eq!(check("POST", events, &good.replace("c33fd8", "c33fd9"), B1), Err(Mismatch));
    assert_eq!(check("POST", events, &format!("{good}&extra=1"), B1), Err(Mismatch));
    assert_eq!(check("GET", events, &good, B1), Err(Mismatch));
    assert_eq!(check("POST", "/apps/1002/events", &good, B1), Err(Mismatch));
    for signature in ["", "726", "z2680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6"] {
        let (start, _) = good.split_once("auth_signature=").unwrap();
        assert_eq!(check("POST", events, &format!("{start}auth_signature={signature}"), B1), Err(Mismatch));
    }
}

#[test]
fn a_body_needs_its_md5() {
    let key = SigningKey::new("demo-secret");
    let signature = key.sign(&["POST\n/apps/1001/events\n", A]);
    let query = format!("{A}&auth_signature={signature}");
    assert_eq!(check("demo-secret", "POST", "/apps/1001/events", &query, ""), Ok(()));
    assert_eq!(
        check("demo-secret", "POST", "/apps/1001/events", &query, B1),
        Err(SignatureError::Missing("body_md5"))
    );
}

#[test]
fn a_request_is_valid_for_less_than_600_seconds_either_way() {
    let raw = format!("{A}&auth_signature=x");
    let query = Query::parse(&raw).unwrap();
    let auth = query.auth().unwrap();
    for skew in [-599, 0, 599] {
        assert_eq!(auth.check_time(1_700_000_000 + skew, 600), Ok(()));
    }
    for skew in [-600, 600, 1_000_000] {
        assert!(auth.check_time(1_700_000_000 + skew, 600).is_err());
    }
    let raw = raw.replace("1700000000", &i64::MIN.to_string());
    let far = Query::parse(&raw).unwrap();
    assert!(far.auth().unwrap().check_time(1_700_000_000, 600).is_err());
}

#[test]
fn a_query_that_is_not_utf8_is_an_error_of_its_own() {
    assert_eq!(Query::parse("a=%ff").unwrap_err(), QueryError::NotUtf8);
    assert!(Query::parse("a=%zz&%=&&=").is_ok());
}

#[test]
fn lists_are_read_in_the_forms_of_php_and_ruby() {
    let query = Query::parse("c[]=a&c[]=b&i[0]=x&i[1]=y&v=1&p[q]=z").unwrap();
    assert_eq!(query.list("c"), ["a", "b"]);
    assert_eq!(query.value("i").as_deref(), Some("x,y"));
    assert_eq!(query.value("v").as_deref(), Some("1"));
    assert_eq!(query.value("w"), None);
    assert_eq!(query.canonical(), "c[]=a&c[]=b&i=x,y&p[q]=z&v=1");
}

proptest! {
    #[test]
    fn only_the_signed_request_verifies(
        secret in "\\PC{1,20}", path in "/[a-z/]{0,20}", value in "\\PC{0,20}", other in "\\PC{0,20}",
    ) {
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let signature = SigningKey::new(&secret).sign(&["GET\n", &path, "\n", A, "&value=", &value]);
        let query = |value: &str| format!("value={}&{A}&auth_signature={signature}", encode(value));
        prop_assert_eq!(check(&secret, "GET", &path, &query(&value), ""), Ok(()));
        if other != value {
            prop_assert_eq!(check(&secret, "GET", &path, &query(&other), ""), Err(SignatureError::Mismatch));
        }
    }

    #[test]
    fn no_query_makes_the_parser_panic(raw in "\\PC{0,80}") {
        if let Ok(query) = Query::parse(&raw) {
            let _ = query.auth();
            query.canonical();
        }
    }
}
