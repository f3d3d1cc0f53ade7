use super::*;

fn parse(body: &str) -> Result<String, ApiError> {
    parse_with(body, "")
}

fn parse_with(body: &str, query: &str) -> Result<String, ApiError> {
    let (app, query) = (App::new("1", "k", "s"), Query::parse(query).unwrap());
    let fields = Fields::of_body(body.as_bytes(), Some(&query))?;
    let trigger = Trigger::parse(&app, &fields)?;
    let channels: Vec<_> = trigger.channels.iter().map(ChannelName::as_str).collect();
    let except = trigger.except.map(|socket| socket.to_string()).unwrap_or_default();
    Ok(format!("{} {} {} {except}", trigger.name.as_str(), trigger.data, channels.join("+")))
}

#[test]
fn events_are_read_in_all_forms_that_sdks_send() {
    for (body, expected) in [
        (r#"{"name":"e","data":"x","channels":["a","b"]}"#, r#"e "x" a+b "#),
        (r#"{"name":"e","data":"x","channel":"a","socket_id":null}"#, r#"e "x" a "#),
        (r#"{"name":"e","data":"x","channels":"a","channel":"b"}"#, r#"e "x" a "#),
        (r#"{"name":"e","data":"","channels":["a","a"],"socket_id":"1.2"}"#, r#"e "" a 1.2"#),
        (r#"{"name":"e","data":"x","channel":"a","socket_id":"","info":""}"#, r#"e "x" a "#),
        (
            r#"{"name":"App\\Events\\X","data":"\ud800\u00e9\/","channels":["a"]}"#,
            r#"App\Events\X "\ud800\u00e9\/" a "#,
        ),
        (r#"{"name":"e","data":{"a": 1},"channels":["a"]}"#, r#"e "{\"a\": 1}" a "#),
        (r#"{"name":"e","data":7,"channels":["a"],"info":"typo,user_count"}"#, r#"e "7" a "#),
        (
            r##"{"name":"e","data":"x","channels":["#server-to-user-7"],"socket_id":"99999999999.1"}"##,
            r##"e "x" #server-to-user-7 "##,
        ),
    ] {
        assert_eq!(parse(body).unwrap(), expected, "{body}");
    }
}

#[test]
fn parameters_may_be_in_the_query_and_the_body_takes_precedence() {
    let query = "name=greet&channels[]=a&channels[]=b&data=hi+there&socket_id=1.2";
    assert_eq!(parse_with("", query).unwrap(), r#"greet "hi there" a+b 1.2"#);
    assert_eq!(parse_with(r#"{"data":"x","channel":"c"}"#, query).unwrap(), r#"greet "x" c 1.2"#);
    assert_eq!(parse_with("", "name=e&data=x&channel=a").unwrap(), r#"e "x" a "#);
}

#[test]
fn an_invalid_event_is_rejected_with_a_reason() {
    let many: Vec<_> = (0..101).map(|at| format!("\"c{at}\"")).collect();
    for (body, reason) in [
        ("[]".to_owned(), "not a JSON object"),
        ("{".to_owned(), "not a JSON object"),
        ("{}".to_owned(), "name is missing"),
        (r#"{"name":1,"data":"","channels":["a"]}"#.to_owned(), "name is not a string"),
        (r#"{"name":"","data":"","channels":["a"]}"#.to_owned(), "event name is empty"),
        (format!(r#"{{"name":"{}","data":"","channels":["a"]}}"#, "x".repeat(201)), "more than 200"),
        (r#"{"name":"pusher:x","data":"","channels":["a"]}"#.to_owned(), "reserved"),
        (r#"{"name":"e","channels":["a"]}"#.to_owned(), "data is missing"),
        (r#"{"name":"e","data":""}"#.to_owned(), "channels is missing"),
        (r#"{"name":"e","data":"","channels":[]}"#.to_owned(), "channels is missing"),
        (r#"{"name":"e","data":"","channels":[7]}"#.to_owned(), "not a list of strings"),
        (r#"{"name":"e","data":"","channels":{}}"#.to_owned(), "not a list of strings"),
        (r#"{"name":"e","data":"","channel":["a"]}"#.to_owned(), "channel is not a string"),
        (r#"{"name":"e","data":"","channels":["a","b c"]}"#.to_owned(), "Invalid channel name b c"),
        (format!(r#"{{"name":"e","data":"","channels":[{}]}}"#, many.join(",")), "more than 100 names"),
        (r#"{"name":"e","data":"","channels":["a","private-encrypted-b"]}"#.to_owned(), "encrypted"),
        (r#"{"name":"e","data":"","channel":"a","socket_id":"x"}"#.to_owned(), "Invalid socket_id"),
        (r#"{"name":"e","data":"","channel":"a","socket_id":7}"#.to_owned(), "socket_id is not a string"),
        (
            format!(r#"{{"name":"e","data":{}1{},"channel":"a"}}"#, "[".repeat(129), "]".repeat(129)),
            "data is nested more than 128 levels deep",
        ),
    ] {
        match parse(&body) {
            Err(ApiError::BadRequest(sentence)) => {
                assert!(sentence.contains(reason), "{body}: {sentence}")
            }
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn the_data_limit_is_in_bytes_of_the_decoded_string() {
    let body = |data: &str| format!(r#"{{"name":"e","data":"{data}","channel":"a"}}"#);
    assert!(parse(&body(&"x".repeat(102_400))).is_ok());
    assert!(parse(&body(&"\\u00e9".repeat(51_200))).is_ok());
    let over = parse(&body(&"\\u00e9".repeat(51_201)));
    let Err(ApiError::TooLarge(sentence)) = over else { panic!("{over:?}") };
    assert!(
        sentence.contains("content of this event has 102402")
            && sentence.contains("102400")
            && sentence.contains("event_data_bytes")
    );
}
