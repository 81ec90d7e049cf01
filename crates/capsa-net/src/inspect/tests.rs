use super::*;

/// Feeds `data` in parts of `size`, as it would come from a flow's buffer. Returns the names that were asked
/// for, how much went on, and why it ended if it did.
fn feed(name_needed: bool, data: &[u8], size: usize) -> (Vec<String>, usize, Option<Reason>) {
    let mut inspector = Inspector::new(name_needed);
    let (mut names, mut passed, mut present) = (Vec::new(), 0, 0);
    loop {
        let step = match data.get(passed..present) {
            None | Some([]) => Step::More,
            Some(front) => inspector.step(&front[..front.len().min(MAX_HEAD)]),
        };
        let mut pass = |length| {
            let length = usize::try_from(length).unwrap();
            passed = passed.saturating_add(length).min(data.len());
        };
        match step {
            Step::Pass(length) => pass(length),
            Step::Unnamed => pass(u64::MAX),
            Step::Ask(name, length) => {
                names.push(name.to_string());
                pass(length);
            }
            Step::More if present == data.len() => return (names, passed, None),
            Step::More => present = data.len().min(present + size),
            Step::Refuse(reason) => return (names, passed, Some(reason)),
        }
    }
}

/// The same for every way to cut it.
fn inspect(name_needed: bool, data: &[u8]) -> (Vec<String>, usize, Option<Reason>) {
    let whole = feed(name_needed, data, data.len().max(1));
    for size in [1, 2, 3, 7, 64] {
        let (names, _, reason) = feed(name_needed, data, size);
        assert_eq!((&names, reason), (&whole.0, whole.2), "in parts of {size}");
    }
    whole
}

fn refused(data: &[u8]) -> Reason {
    let (names, passed, reason) = inspect(true, data);
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
        assert_eq!(inspect(true, &data), expected);
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
        assert_eq!(inspect(true, data), expected, "{client}");
        assert_eq!(inspect(false, data), expected, "{client}");
        // Cut short, it is not understood for anything else.
        for length in 1..data.len() {
            let (names, passed, reason) = feed(true, &data[..length], length);
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
        (hello(&server_names(&["127.0.0.1"])), Reason::Malformed),
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
        inspect(true, requests),
        (names.to_vec(), requests.len(), None)
    );
}

#[test]
fn bodies_pass_without_a_look() {
    let mut inspector = Inspector::new(true);
    let head = b"POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 104857600\r\n\r\n";
    let name = "a.com".parse().unwrap();
    assert_eq!(
        inspector.step(head),
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
        ("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", Reason::Malformed),
        (
            "GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.com, b.com\r\n\r\n",
            Reason::NoName,
        ),
        (
            "GET http://b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::Malformed,
        ),
        (
            "GET http://a.com@b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
            Reason::NoName,
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
        ("SSH-2.0-OpenSSH_9.2\r\n", Reason::Malformed),
        ("\0\0\0\x01", Reason::NoWebProtocol),
    ] {
        assert_eq!(refused(request.as_bytes()), reason, "{request:?}");
    }
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "x".repeat(MAX_HEAD)
    );
    assert_eq!(feed(true, long.as_bytes(), 4096).2, Some(Reason::Malformed));
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
        let (names, _, reason) = inspect(true, [head, chunks].concat().as_bytes());
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
            let (names, passed, reason) = inspect(true, &[head.as_bytes(), behind].concat());
            assert_eq!((names.len(), passed), (1, head.len()));
            assert_eq!(reason, Some(Reason::Malformed));
        }
    }
}

#[test]
fn what_needs_no_name_goes_on_unless_it_says_one() {
    for data in [
        &b"SSH-2.0-x\r\n"[..],
        b"P",
        b"PING\r\n",
        b"\x16\x03\x01\x00\x04\x02\0\0\0",
        b"\0",
    ] {
        let (names, passed, reason) = inspect(false, data);
        let waits = data == b"P";
        assert_eq!(
            (names.len(), passed == data.len(), reason),
            (0, !waits, None),
            "{data:?}"
        );
    }
    let data = record(&usual_hello("a.com"));
    assert_eq!(inspect(false, &data).0, ["a.com"]);
    assert_eq!(
        inspect(false, b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").0,
        ["a.com"]
    );
}
