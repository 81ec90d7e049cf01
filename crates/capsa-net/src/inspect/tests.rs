use super::*;

/// Feeds `data` in parts of `size`, as it would come from a flow's buffer. Returns the names that were asked
/// for, how much went on, and why it ended if it did.
fn feed(needed: Needed, data: &[u8], size: usize) -> (Vec<String>, usize, Option<Reason>) {
    let mut inspector = Inspector::new(needed);
    let (mut names, mut passed, mut present) = (Vec::new(), 0, 0);
    loop {
        let step = match data.get(passed..present) {
            None | Some([]) => Step::More,
            Some(front) => inspector.step(&front[..front.len().min(MAX_HEAD)], false),
        };
        let mut pass = |length| {
            let length = usize::try_from(length).unwrap();
            passed = passed.saturating_add(length).min(data.len());
        };
        match step {
            Step::Pass(length) | Step::Ask(Said::Nothing, length) => pass(length),
            Step::Ask(Said::Name(name), length) => {
                names.push(name.to_string());
                pass(length);
            }
            Step::Ask(Said::Address(address), length) => {
                names.push(address.to_string());
                pass(length);
            }
            Step::More | Step::Unclear if present == data.len() => return (names, passed, None),
            Step::More | Step::Unclear => present = data.len().min(present + size),
            Step::Refuse(reason) => return (names, passed, Some(reason)),
        }
    }
}

/// The same for every way to cut it.
fn inspect(needed: Needed, data: &[u8]) -> (Vec<String>, usize, Option<Reason>) {
    let whole = feed(needed, data, data.len().max(1));
    for size in [1, 2, 3, 7, 64] {
        let (names, _, reason) = feed(needed, data, size);
        assert_eq!((&names, reason), (&whole.0, whole.2), "in parts of {size}");
    }
    whole
}

fn refused(data: &[u8]) -> Reason {
    let (names, passed, reason) = inspect(Needed::Name, data);
    assert_eq!((names.len(), passed), (0, 0), "something went on");
    reason.unwrap()
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    [&[22, 3, 1], &length.to_be_bytes()[..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), content].concat()
}

fn server_names(names: &[&str]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.push(0);
        list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        list.extend(name.as_bytes());
    }
    let length = u16::try_from(list.len()).unwrap();
    extension(0, &[&length.to_be_bytes()[..], &list].concat())
}

fn hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// Something a browser sends: unknown extensions, and one for ECH filled with noise.
fn usual_hello(name: &str) -> Vec<u8> {
    let parts = [
        extension(0x0a0a, &[]),
        server_names(&[name]),
        extension(0xfe0d, &[9; 100]),
        extension(21, &[0; 40]),
    ];
    hello(&parts.concat())
}

#[test]
fn the_name_of_tls_is_found_in_one_record_and_in_many() {
    let message = usual_hello("www.Example.com");
    let many: Vec<u8> = message.chunks(5).flat_map(record).collect();
    for records in [record(&message), many] {
        let data = [&records[..], b"\x17\x03\x03\x00\x01x"].concat();
        let expected = (vec!["www.example.com".to_owned()], data.len(), None);
        assert_eq!(inspect(Needed::Name, &data), expected);
    }
}

#[test]
fn what_common_clients_send_is_understood() {
    macro_rules! hellos {
        ($($client:literal)*) => {
            [$(($client, &include_bytes!(concat!("../../tests/hellos/", $client, ".bin"))[..])),*]
        };
    }
    for (client, data) in hellos!(
        "openssl" "openssl-tls12" "curl" "wget" "git" "python" "node" "java" "rustup" "cargo"
    ) {
        let expected = (vec!["www.example.com".to_owned()], data.len(), None);
        assert_eq!(inspect(Needed::Name, data), expected, "{client}");
        assert_eq!(inspect(Needed::Nothing, data), expected, "{client}");
        // Cut short, it is not understood for anything else.
        for length in 1..data.len() {
            let (names, passed, reason) = feed(Needed::Name, &data[..length], length);
            assert_eq!(
                (names.len(), passed, reason),
                (0, 0, None),
                "{client} {length}"
            );
        }
    }
}

#[test]
fn tls_without_a_certain_name_is_refused() {
    let two = [server_names(&["a.com"]), server_names(&["b.com"])].concat();
    let mut long = server_names(&["a.com"]);
    long.extend(extension(21, &[0; 17 << 10]));
    for (message, reason) in [
        (hello(&[]), Reason::NoName),
        (hello(&extension(43, &[2, 3, 4])), Reason::NoName),
        (hello(&server_names(&[])), Reason::Malformed),
        (hello(&server_names(&["a.com", "b.com"])), Reason::Malformed),
        (hello(&two), Reason::Malformed),
        (hello(&server_names(&["a.com."])), Reason::Malformed),
        (hello(&server_names(&["127.0.0.1"])), Reason::NoName),
        (hello(&server_names(&["a\0.com"])), Reason::Malformed),
        (
            hello(&extension(0, &[0, 9, 0, 0, 1, b'a'])),
            Reason::Malformed,
        ),
        (hello(&[0, 0, 0, 99]), Reason::Malformed),
        ([usual_hello("a.com"), vec![1]].concat(), Reason::Malformed),
        // A ServerHello.
        (vec![2, 0, 0, 2, 3, 3], Reason::Malformed),
    ] {
        assert_eq!(refused(&record(&message)), reason, "{message:?}");
    }
    let records: Vec<u8> = hello(&long).chunks(8192).flat_map(record).collect();
    assert_eq!(refused(&records), Reason::Malformed);
    // An alert, and a record of no bytes, which could be repeated for ever.
    assert_eq!(refused(b"\x16\x03\x01\x00\x00"), Reason::Malformed);
    assert_eq!(
        refused(b"\x15\x03\x01\x00\x02\x02\x28"),
        Reason::NoWebProtocol
    );
}

#[test]
fn every_request_says_its_name() {
    let requests = b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n\
        POST /x HTTP/1.1\r\nHOST: B.com:8080\r\nContent-Length: 11\r\n\r\nGET / HTTP/\
        PUT /y HTTP/1.1\r\nHost: c.com\r\nTransfer-Encoding: chunked\r\n\r\n\
        5;x=y\r\nHello\r\n1\r\n\r\r\n0\r\nDigest: z\r\n\r\n\
        OPTIONS * HTTP/1.1\r\nhost:d.com\r\n\r\n\
        GET http://e.com:80/?x HTTP/1.1\r\nHost: e.com\r\n\r\n";
    let names = ["a.com", "b.com", "c.com", "d.com", "e.com"].map(str::to_owned);
    assert_eq!(
        inspect(Needed::Name, requests),
        (names.to_vec(), requests.len(), None)
    );
}

#[test]
fn bodies_pass_without_a_look() {
    let mut inspector = Inspector::new(Needed::Name);
    let head = b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 104857600\r\n\r\n";
    let name = Said::Name("a.com".parse().unwrap());
    assert_eq!(
        inspector.step(head, false),
        Step::Ask(name, head.len() as u64 + (100 << 20))
    );
    let endless = "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 18446744073709551615\r\n\r\n";
    assert_eq!(refused(endless.as_bytes()), Reason::Malformed);
}

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused() {
    for (request, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", Reason::NoName),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", Reason::NoName),
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", Reason::NoName),
        ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", Reason::Malformed),
        (
            "GET / HTTP/1.1\r\nHost: [1.1.1.1]\r\n\r\n",
            Reason::Malformed,
        ),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", Reason::NoName),
        ("GET / HTTP/1.1\r\nHost: a.com.\r\n\r\n", Reason::Malformed),
        ("GET http://a.com/ HTTP/1.0\r\n\r\n", Reason::NoName),
        (
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.com, b.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET http://b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET http://a.com@b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET https://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET a.com HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Reason::Malformed),
        ("GET /\r\n", Reason::Malformed),
        ("GET / HTTP/1.1\nHost: a.com\n\n", Reason::Malformed),
        (
            "GET / HTTP/1.1\r\nHost: a.com\r\nX: y\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.com\r\n X: y\r\n\r\n",
            Reason::Malformed,
        ),
        ("GET / HTTP/1.1\r\nHost : a.com\r\n\r\n", Reason::Malformed),
        (
            "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: +1\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: \r\n\r\n",
            Reason::Malformed,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "POST / HTTP/1.0\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason::Malformed,
        ),
        ("SSH-2.0-OpenSSH_9.2\r\n", Reason::Malformed),
        ("\0\0\0\x01", Reason::NoWebProtocol),
    ] {
        assert_eq!(refused(request.as_bytes()), reason, "{request:?}");
    }
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "x".repeat(MAX_HEAD)
    );
    assert_eq!(
        feed(Needed::Name, long.as_bytes(), 4096).2,
        Some(Reason::Malformed)
    );
}

#[test]
fn chunks_that_can_be_read_in_two_ways_are_refused() {
    let head = "POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "\r\n",
        "-1\r\n",
        "0x5\r\nHello\r\n",
        "5\nHello\r\n",
        "5;x\nHello\r\n",
        "5\r\nHello0\r\n",
        "11111111111111111\r\n",
        "0\r\nX: y\n\r\n",
    ] {
        let (names, _, reason) = inspect(Needed::Name, [head, chunks].concat().as_bytes());
        assert_eq!(
            (names.len(), reason),
            (1, Some(Reason::Malformed)),
            "{chunks:?}"
        );
    }
}

#[test]
fn what_follows_an_upgrade_is_refused() {
    for upgrade in ["websocket", "h2c"] {
        let head = format!("GET / HTTP/1.1\r\nHost: a.com\r\nUpgrade: {upgrade}\r\n\r\n");
        for behind in [
            &b"\x82\x80\0\0\0\0"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let (names, passed, reason) =
                inspect(Needed::Name, &[head.as_bytes(), behind].concat());
            assert_eq!((names.len(), passed), (1, head.len()));
            assert_eq!(reason, Some(Reason::Malformed));
        }
    }
}

#[test]
fn what_needs_no_name_goes_on_unless_it_says_one() {
    for (data, waits) in [
        (&b"SSH-2.0-x\r\n"[..], false),
        (b"P", true),
        (b"PING\r\n", false),
        (b"PING / \r", true),
        (b"\x16\x03\x01\x00\x04\x02\0\0\0", false),
        (b"\x16\x03\x01\x00\x04", true),
        (b"\x17\x02", false),
        (b"\0", false),
        (b"\r\n\r\n", false),
        (b"\r\n\r\n\0\r\n", true),
        (b"\r\n\r\n\0\r\nX", false),
    ] {
        let (names, passed, reason) = inspect(Needed::Nothing, data);
        assert_eq!((names.len(), reason), (0, None), "{data:?}");
        assert_eq!(passed == data.len(), !waits, "{data:?}");
    }
    let data = record(&usual_hello("a.com"));
    assert_eq!(inspect(Needed::Nothing, &data).0, ["a.com"]);
    for request in [
        "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a.com.\r\n\r\n",
        "REPORT http://a.com:80 HTTP/1.0\r\n\r\n",
        "CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\n\r\n\0",
    ] {
        let expected = (vec!["a.com".to_owned()], request.len(), None);
        assert_eq!(inspect(Needed::Nothing, request.as_bytes()), expected);
    }
    let addresses =
        b"GET / HTTP/1.1\r\nHost: 1.1.1.1:80\r\n\r\nGET / HTTP/1.1\r\nHost: [::1]\r\n\r\n";
    assert_eq!(inspect(Needed::Nothing, addresses).0, ["1.1.1.1", "::1"]);
}

#[test]
fn what_a_rule_for_a_name_would_end_says_nothing_before_it_says_a_name() {
    let head = "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n";
    let dotted = head.replace("a.com", "a.com.");
    let name = Some("a.com");
    let expected = [
        (head.to_owned(), vec![name]),
        (format!("{head}{head}"), vec![name; 2]),
        (dotted.clone(), vec![None, name]),
        (
            format!("{head}{dotted}{dotted}"),
            vec![name, None, name, name],
        ),
        (
            "GET http://a.com/ HTTP/1.0\r\n\r\n".into(),
            vec![None, name],
        ),
        (format!("\r\n\n{head}"), vec![None, name]),
        ("\r\n".into(), vec![None]),
        (
            "CONNECT a.com:443 HTTP/1.1\r\n\r\n".into(),
            vec![None, name],
        ),
        ("SSH-2.0-x\r\n".into(), vec![None]),
    ];
    let tls = |name: &str| record(&hello(&server_names(&[name])));
    let expected = expected.map(|(text, said)| (text.into_bytes(), said));
    let hellos = [
        (tls("a.com"), vec![name]),
        (tls("a.com."), vec![None, name]),
    ];
    for (data, expected) in expected.into_iter().chain(hellos) {
        let mut inspector = Inspector::new(Needed::Nothing);
        let (mut rest, mut said) = (&data[..], Vec::new());
        while !rest.is_empty() {
            let length = match inspector.step(rest, true) {
                Step::Pass(length) => length,
                Step::Ask(Said::Name(name), length) => {
                    said.push(Some(name.to_string()));
                    length
                }
                Step::Ask(Said::Nothing, length) => {
                    said.push(None);
                    length
                }
                step => panic!("{step:?}: {}", data.escape_ascii()),
            };
            rest = &rest[rest.len().min(usize::try_from(length).unwrap())..];
        }
        let said: Vec<_> = said.iter().map(Option::as_deref).collect();
        assert_eq!(said, expected, "{}", data.escape_ascii());
    }
}

#[test]
fn another_protocol_follows_a_request_only_where_one_was_asked_for() {
    let head = |field: &str| format!("GET / HTTP/1.1\r\nHost: a.com\r\n{field}\r\n");
    let frame = "\u{1}\u{2}";
    for (field, behind, names, reason) in [
        ("", frame, 1, Some(Reason::Malformed)),
        ("Upgrade: websocket\r\n", frame, 1, None),
        ("Upgrade: x\r\n", &head(""), 2, None),
        (
            "Upgrade: h2c\r\n",
            "PRI * HTTP/2.0\r\n",
            1,
            Some(Reason::Malformed),
        ),
        // Only behind the body.
        (
            "Upgrade: x\r\nContent-Length: 2\r\n",
            &["\u{1}\u{2}", &head("")].concat(),
            2,
            None,
        ),
        (
            "Upgrade: x\r\nTransfer-Encoding: chunked\r\n",
            frame,
            1,
            Some(Reason::Malformed),
        ),
    ] {
        let data = [&head(field), behind].concat();
        let (said, _, ended) = inspect(Needed::Nothing, data.as_bytes());
        assert_eq!((said.len(), ended), (names, reason), "{data:?}");
    }
    let body = b"CONNECT a.com:80 HTTP/1.1\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(inspect(Needed::Nothing, body).2, Some(Reason::Malformed));
}

#[test]
fn an_end_decides_what_could_have_become_something() {
    let other = Step::Ask(Said::Nothing, u64::MAX);
    let malformed = Step::Refuse(Reason::Malformed);
    for (data, before, expected) in [
        (&b"hello"[..], Step::Unclear, &other),
        (b"\x16\x03", Step::Unclear, &other),
        (b"GET /", Step::Unclear, &malformed),
        (b"X / HTTP/1.1\r\nHost: a.com\r\n", Step::More, &malformed),
        (b"\x16\x03\x01\0\x09\x01", Step::More, &malformed),
    ] {
        let mut inspector = Inspector::new(Needed::Nothing);
        assert_eq!(inspector.step(data, false), before, "{data:?}");
        assert_eq!(inspector.step(data, true), *expected, "{data:?}");
    }
}
