//! What the kernel reads back is the measure: a model of its parser re-reads every line.

use proptest::prelude::*;

use super::*;
use crate::problem::ConfigProblem;

/// The kernel's view of a line: its own parameters, then the words for init.
#[derive(Debug, PartialEq, Eq, Default)]
struct Read {
    params: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    init: Vec<Vec<u8>>,
}

/// `parse_args` of Linux's kernel/params.c, called twice as init/main.c does: once for the
/// kernel, once for what follows `--`.
fn kernel_reads(line: &str) -> Read {
    let mut read = Read::default();
    let mut rest = line.as_bytes();
    let mut for_init = false;
    loop {
        rest = &rest[rest.iter().take_while(|byte| is_space(**byte)).count()..];
        if rest.is_empty() {
            return read;
        }
        let (param, value);
        (param, value, rest) = next_arg(rest);
        match (value, for_init) {
            (None, false) if param == b"--" => for_init = true,
            // `parse_args` returns, and nobody looks at the rest.
            (None, true) if param == b"--" => return read,
            (value, false) => read.params.push((param, value)),
            (None, true) => read.init.push(param),
            // `repair_env_string` puts the `=` back.
            (Some(value), true) => read.init.push([&param[..], b"=", &value[..]].concat()),
        }
    }
}

/// `isspace` of Linux's lib/ctype.c.
fn is_space(byte: u8) -> bool {
    (9..=13).contains(&byte) || byte == 32 || byte == 160
}

/// `next_arg` of Linux's lib/cmdline.c, index by index; a byte that it overwrites with NUL ends
/// the string.
fn next_arg(line: &[u8]) -> (Vec<u8>, Option<Vec<u8>>, &[u8]) {
    let quoted = line[0] == b'"';
    let args = &line[usize::from(quoted)..];
    let (mut in_quote, mut equals, mut i) = (quoted, 0, 0);
    while i < args.len() && (in_quote || !is_space(args[i])) {
        if equals == 0 && args[i] == b'=' {
            equals = i;
        }
        if args[i] == b'"' {
            in_quote = !in_quote;
        }
        i += 1;
    }
    let mut word = args[..i].to_vec();
    let mut value_at = (equals != 0).then_some(equals + 1);
    if let Some(at) = &mut value_at
        && word.get(*at) == Some(&b'"')
    {
        *at += 1;
        if word[i - 1] == b'"' {
            word[i - 1] = 0;
        }
    }
    if quoted && i > 0 && word[i - 1] == b'"' {
        word[i - 1] = 0;
    }
    let c_string = |bytes: &[u8]| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
    let value = value_at.map(|at| c_string(word.get(at..).unwrap_or_default()));
    if equals != 0 {
        word[equals] = 0;
    }
    (
        c_string(&word),
        value,
        args.get(i + 1..).unwrap_or_default(),
    )
}

/// What the kernel should read from these arguments.
fn expected(line: &KernelCmdline) -> Read {
    let bytes = |text: &str| text.as_bytes().to_vec();
    Read {
        params: line
            .args
            .iter()
            .map(|arg| (bytes(arg.key()), arg.value().map(bytes)))
            .collect(),
        init: line.init.iter().flatten().map(|word| bytes(word)).collect(),
    }
}

fn built(line: &KernelCmdline) -> String {
    line.build().expect("a line that the kernel reads")
}

fn parsed(line: &str) -> KernelCmdline {
    KernelCmdline::parse_line(line).expect("balanced quotes")
}

#[test]
fn the_last_value_of_a_parameter_wins_whichever_dash_it_is_written_with() {
    let line = KernelCmdline::new()
        .args(["log-buf-len=1M", "quiet", "log_buf_len=2M"])
        .arg(CmdlineArg::kv("panic", "-1"));
    assert_eq!(built(&line), "quiet log_buf_len=2M panic=-1");
    assert_eq!(line.get("log-buf_len"), Some("2M"));
    // A flag and a value are the same parameter.
    assert_eq!(built(&line.arg("panic")), "quiet log_buf_len=2M panic");
}

#[test]
fn repeatable_parameters_keep_every_distinct_value_and_the_last_console_stays_last() {
    let line = KernelCmdline::new()
        .console("ttyS0")
        .console("tty0")
        .args([
            "systemd.mount-extra=a:/a:9p:ro",
            "systemd.mount_extra=b:/b:9p:ro",
        ])
        .console("ttyS0");
    assert_eq!(
        built(&line),
        "console=tty0 systemd.mount-extra=a:/a:9p:ro systemd.mount_extra=b:/b:9p:ro console=ttyS0"
    );
    assert_eq!(line.get("console"), Some("ttyS0"));
}

#[test]
fn pairs_of_huge_page_parameters_stay_whole() {
    let text = "hugepagesz=2M hugepages=8 hugepagesz=1G hugepages=8";
    assert_eq!(built(&parsed(text)), text);
}

#[test]
fn what_follows_the_separator_stays_last_and_as_it_was() {
    let user = parsed(r#"quiet -- sh -c "echo  a=b" single single "" =x"#);
    let line = KernelCmdline::new().arg("panic=-1").merge(user);
    let text = built(&line.root("/dev/vda").console("ttyS0"));
    assert_eq!(
        text,
        r#"panic=-1 quiet root=/dev/vda console=ttyS0 -- sh -c "echo  a=b" single single "" =x"#
    );
    let words: [&[u8]; 7] = [b"sh", b"-c", b"echo  a=b", b"single", b"single", b"", b"=x"];
    assert_eq!(kernel_reads(&text).init, words);
}

#[test]
fn an_override_replaces_everything_to_the_letter() {
    let text = r#"a=1  a=2 dyndbg="file x +p" -- init"#;
    let early = KernelCmdline::new().override_with(text);
    let late = KernelCmdline::new().arg("quiet").root("/dev/vda");
    for line in [early.clone().merge(late.clone()), late.merge(early)] {
        assert_eq!(built(&line), text);
        assert_eq!(line.get("a"), Some("2"));
        assert_eq!(line.get("dyndbg"), Some("file x +p"));
        assert!(!line.contains("root") && !line.contains("quiet") && !line.contains("init"));
    }
}

#[test]
fn a_whole_line_is_split_as_the_kernel_splits_it() {
    let line = parsed("  a=b\tc \"d e=f g\" h=\"i j\"\n k= l=m=n ");
    let expected = [
        CmdlineArg::kv("a", "b"),
        CmdlineArg::flag("c"),
        CmdlineArg::kv("d e", "f g"),
        CmdlineArg::kv("h", "i j"),
        CmdlineArg::kv("k", ""),
        CmdlineArg::kv("l", "m=n"),
    ];
    assert_eq!(line.args, expected);
}

#[test]
fn removed_parameters_are_gone() {
    let line = KernelCmdline::new().args(["console=a", "console=b", "x-y", "z"]);
    let line = line.remove("console").remove("x_y");
    assert!(!line.contains("console") && line.contains("z"));
    assert_eq!(built(&line), "z");
}

#[test]
fn what_the_kernel_would_misread_is_refused_with_its_reason() {
    let line = |arg: CmdlineArg| KernelCmdline::new().arg(arg);
    for (line, expected) in [
        (line("=x".into()), "has no name"),
        (line("".into()), "has no name"),
        (line(CmdlineArg::kv("a", "b\"c")), "contains a double quote"),
        (line(CmdlineArg::kv("a\"", "c")), "contains a double quote"),
        (line(CmdlineArg::kv("a", "b\nc")), "contains a line break"),
        (line(CmdlineArg::flag("b\0c")), "contains a NUL character"),
        (line("quiet splash".into()), "contains white space or a `=`"),
        (
            line(CmdlineArg::kv("a=b", "c")),
            "contains white space or a `=`",
        ),
        (
            line(CmdlineArg::flag("a=b")),
            "contains white space or a `=`",
        ),
        (parsed("-- a -- b"), "second `--`"),
        (parsed("-- a\"b\"c"), "contains a double quote"),
        (
            line("a=1".into()).override_with("b\nc"),
            "contains a line break",
        ),
        (line("a=1".into()).override_with("b=\"c"), "not closed"),
        (
            line("a=1".into()).override_with("x=y\"z\""),
            "contains a double quote",
        ),
    ] {
        let error = line.build().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        assert_eq!(
            ConfigProblem::from(line.problems()[0].clone()).field,
            "cmdline"
        );
    }
    assert!(KernelCmdline::parse_line("a=\"b c").is_err());
}

/// To the kernel one at the beginning is a part of the name, and quotes behind it are not taken off.
#[test]
fn an_equals_sign_at_the_beginning_begins_no_value() {
    for (text, word) in [("-- =", "="), ("-- =a", "=a"), ("-- =a=b", "=a=b")] {
        let line = parsed(text);
        assert_eq!(kernel_reads(text).init, [word.as_bytes()]);
        assert_eq!(kernel_reads(&built(&line)).init, [word.as_bytes()]);
    }
    for text in ["-- =\"\"", "=\"a b\"", "=a", "=a=b"] {
        assert_ne!(parsed(text).problems(), []);
    }
}

#[test]
fn every_problem_is_told() {
    let line = KernelCmdline::new().args(["=x", "a b", "c=\"d\""]);
    assert_eq!(line.problems().len(), 3);
}

/// Arguments, good and bad, that meet each other often.
fn any_arg() -> impl Strategy<Value = CmdlineArg> {
    let key = prop_oneof![
        4 => "[ab][-_]?",
        1 => Just("console".to_owned()),
        1 => Just("hugepages".to_owned()),
        1 => Just("--".to_owned()),
        1 => "[ -~àé\u{a0}\n\0]{0,3}",
    ];
    let value = prop_oneof![2 => "[xy]", 1 => "[ -!#-~\t\r=àé\u{a0}]{0,6}", 1 => ".{0,3}"];
    (key, proptest::option::of(value)).prop_map(|(key, value)| match value {
        Some(value) => CmdlineArg::kv(key, value),
        None => CmdlineArg::flag(key),
    })
}

fn any_line() -> impl Strategy<Value = KernelCmdline> {
    let whole = proptest::option::weighted(0.1, "[ab= \"-]{0,12}");
    (proptest::collection::vec(any_arg(), 0..8), whole).prop_map(|(args, whole)| {
        let line = KernelCmdline::new().args(args);
        match whole {
            Some(text) => line.override_with(text),
            None => line,
        }
    })
}

proptest! {
    #[test]
    fn the_kernel_reads_back_what_was_built(line in any_line()) {
        if let (Ok(text), None) = (line.build(), &line.line) {
            prop_assert_eq!(kernel_reads(&text), expected(&line), "{}", text);
        }
    }

    #[test]
    fn merging_is_associative_and_the_empty_line_changes_nothing(
        a in any_line(), b in any_line(), c in any_line()
    ) {
        let left = a.clone().merge(b.clone()).merge(c.clone());
        let right = a.clone().merge(b.merge(c));
        prop_assert_eq!(left, right);
        prop_assert_eq!(a.clone().merge(KernelCmdline::new()), a.clone());
        prop_assert_eq!(KernelCmdline::new().merge(a.clone()), a);
    }

    #[test]
    fn no_parameter_is_on_the_line_twice_unless_linux_adds_it_up(line in any_line()) {
        for (i, a) in line.args.iter().enumerate() {
            for b in &line.args[i + 1..] {
                let twice = same_key(a.key(), b.key());
                prop_assert!(!twice || Repeat::of(a.key()) != Repeat::LastWins);
                prop_assert!(!twice || Repeat::of(a.key()) == Repeat::Each || a.value() != b.value());
            }
        }
    }

    #[test]
    fn any_text_is_split_like_the_kernel_splits_it(text in "[ab=\" \t-]{0,16}") {
        if let Ok(line) = KernelCmdline::parse_line(&text) && line.problems().is_empty() {
            let read = kernel_reads(&text);
            prop_assert_eq!(&read.init, &expected(&line).init);
            let all = KernelCmdline { args: split(&text).unwrap(), ..KernelCmdline::new() };
            let kernel: Vec<_> = expected(&all).params.into_iter()
                .take(read.params.len()).collect();
            prop_assert_eq!(read.params, kernel);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".*") {
        let line = KernelCmdline::new().override_with(text.clone());
        let _ = (line.build(), line.get("a"), KernelCmdline::parse_line(&text));
    }
}
