//! What every error promises.

use super::*;

#[test]
fn an_error_is_small_and_crosses_threads() {
    fn assert_send_sync<T: Send + Sync + 'static>() {}
    assert_send_sync::<Error>();
    assert!(size_of::<Error>() <= 72, "{}", size_of::<Error>());
}

#[test]
fn a_single_unsupported_feature_keeps_its_name_and_a_list_stays_complete() {
    let nat = || ConfigProblem::unsupported("network", "no NAT").hint("use none");
    let error = Error::from_problems(vec![nat()]);
    assert_eq!(error.code(), "E0201");
    assert_eq!(error.hint().as_deref(), Some("use none"));

    let error = Error::from_problems(vec![nat(), ConfigProblem::value("cpus", "0 vCPUs")]);
    assert_eq!(error.code(), "E0202");
    let text = error.to_string();
    assert!(
        text.contains("network: no NAT") && text.contains("cpus: 0 vCPUs"),
        "{text}"
    );
}

#[test]
fn display_does_not_repeat_the_source() {
    let error = Error::io(
        "read",
        "/boot/vmlinuz",
        std::io::Error::from(std::io::ErrorKind::NotFound),
    );
    assert_eq!(error.to_string(), "cannot read /boot/vmlinuz");
    assert!(std::error::Error::source(&error).is_some());
}
