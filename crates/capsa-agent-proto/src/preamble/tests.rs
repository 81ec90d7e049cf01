use futures_executor::block_on;
use futures_util::FutureExt;

use super::*;
use crate::script::Script;

const TOKEN: Token = Token([0xa5; 32]);
const CLOCK: Duration = Duration::new(1_700_000_000, 123_456_789);

fn hello(lowest: u16, highest: u16) -> Vec<u8> {
    Hello { lowest, highest }.encode().to_vec()
}

/// What the host makes of `hello`, and what it answers.
fn hosted(hello: &[u8]) -> (Result<u16, PreambleError>, Vec<u8>) {
    let mut script = Script::new(hello);
    let result = block_on(host(&mut script, &TOKEN, CLOCK));
    (result, script.written)
}

fn guested(answer: &[u8], token: &Token) -> Result<Welcome, PreambleError> {
    block_on(guest(&mut Script::new(answer), token))
}

#[test]
fn both_sides_agree_on_the_version_and_the_time() {
    let mut script = Script::new(&[]);
    assert!(guest(&mut script, &TOKEN).now_or_never().unwrap().is_err());
    let (version, answer) = hosted(&script.written);
    assert_eq!(version.unwrap(), HIGHEST_VERSION);
    let welcome = guested(&answer, &TOKEN).unwrap();
    assert_eq!(welcome.version, HIGHEST_VERSION);
    assert_eq!(welcome.clock, CLOCK);
}

#[test]
fn a_newer_peer_that_still_speaks_this_version_is_welcome() {
    let (version, _) = hosted(&hello(LOWEST_VERSION, u16::MAX));
    assert_eq!(version.unwrap(), HIGHEST_VERSION);
}

#[test]
fn versions_that_do_not_fit_are_told_to_both_sides_and_the_token_is_not() {
    let strange = HIGHEST_VERSION + 1;
    for (lowest, highest) in [(strange, strange), (0, 0), (2, 1)] {
        let (version, answer) = hosted(&hello(lowest, highest));
        assert!(matches!(
            version,
            Err(PreambleError::Versions { lowest: l, highest: h }) if (l, h) == (lowest, highest)
        ));
        assert!(!answer.windows(32).any(|part| part == TOKEN.0));
        assert!(matches!(
            guested(&answer, &TOKEN),
            Err(PreambleError::Versions {
                lowest: LOWEST_VERSION,
                highest: HIGHEST_VERSION
            })
        ));
    }
}

#[test]
fn a_peer_without_the_token_is_refused() {
    let (_, answer) = hosted(&hello(1, 1));
    assert!(matches!(
        guested(&answer, &Token([0; 32])),
        Err(PreambleError::Token)
    ));
}

#[test]
fn strangers_are_recognised() {
    let (result, answer) = hosted(b"GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(result, Err(PreambleError::NotCapsa)));
    assert_eq!(answer, []);
    let (_, mut answer) = hosted(&hello(1, 1));
    answer[0] ^= 1;
    assert!(matches!(
        guested(&answer, &TOKEN),
        Err(PreambleError::NotCapsa)
    ));
}

#[test]
fn an_impossible_answer_is_refused() {
    let (_, answer) = hosted(&hello(1, 1));
    let mut version = answer.clone();
    version[8..10].copy_from_slice(&(HIGHEST_VERSION + 1).to_le_bytes());
    let mut time = answer;
    time[54..].copy_from_slice(&1_000_000_000_u32.to_le_bytes());
    for answer in [version, time] {
        assert!(matches!(
            guested(&answer, &TOKEN),
            Err(PreambleError::Malformed)
        ));
    }
}
