//! A policy as it is typed: `crates.io,*.github.com:443,10.0.0.0/8:5432`.

use capsa::network::{NetworkPolicy, PolicyProblem, Rule};

/// The policy that allows what is on the list, and denies everything else.
pub(crate) fn allowing(list: &str) -> Result<NetworkPolicy, String> {
    let mut problems = Vec::new();
    let mut policy = NetworkPolicy::deny_all();
    if list.trim().is_empty() {
        return Err(
            "the list is empty: write what is allowed, or --net none for no network at all"
                .to_owned(),
        );
    }
    for text in list.split(',').map(str::trim) {
        match text {
            "" => problems.push("there is nothing between two commas".to_owned()),
            // The library's own hints are for files.
            "*" => problems.push("`*` is everything: write --net nat instead".to_owned()),
            text if text.starts_with("*:") => problems.push(every_address(text)),
            text => match Rule::allow(text) {
                Ok(rule) => policy = policy.rule(rule),
                Err(error) => problems.push(error.to_string()),
            },
        }
    }
    problems.extend(policy.problems().iter().map(|problem| match problem {
        PolicyProblem::DuplicateId(rule) => format!("`{rule}` is there twice"),
        problem => problem.to_string(),
    }));
    match problems.as_slice() {
        [] => Ok(policy),
        problems => Err(format!(
            "{}; what is allowed is written NAME, *.NAME, ADDRESS or NETWORK/BITS, each with :PORT or \
             :PORT-PORT behind it if that is all, and commas between them",
            problems.join("; ")
        )),
    }
}

/// What to write for `*` with ports, which no list allows for names: one that nobody has written does not resolve.
fn every_address(text: &str) -> String {
    let ports = text.trim_start_matches("*:");
    format!(
        "`{text}` is no rule: 0.0.0.0/0:{ports},[::/0]:{ports} is every public address, and names have to be \
         written too"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_what_it_says_and_nothing_else() {
        let list = "crates.io,*.github.com:443, 10.0.0.0/8:5432,[2001:db8::/32]:80-90,::1";
        let rules = [
            "crates.io",
            "*.github.com:443",
            "10.0.0.0/8:5432",
            "[2001:db8::/32]:80-90",
            "::1",
        ];
        let rules = rules.map(|rule| Rule::allow(rule).unwrap());
        let expected = rules
            .into_iter()
            .fold(NetworkPolicy::deny_all(), NetworkPolicy::rule);
        assert_eq!(allowing(list), Ok(expected));
    }

    #[test]
    fn what_cannot_be_allowed_is_all_told() {
        let refused = allowing("*,*.com,co.uk,10.0.0.1/8,10.0.0.0/33,a.com:0,0177.1,,b.com,b.com");
        let refused = refused.unwrap_err();
        for told in [
            "write --net nat",
            "`*.com`, below which anybody",
            "`co.uk`, below which anybody",
            "the network is `10.0.0.0/8`",
            "`10.0.0.0/33` is no address",
            "`0` is no port",
            "`0177.1` is no address, network or name: an address, not a name",
            "nothing between two commas",
            "`b.com` is there twice",
            "NAME, *.NAME",
        ] {
            assert!(refused.contains(told), "{told}: {refused}");
        }
        let empty = allowing(" ").unwrap_err();
        assert!(
            empty.contains("the list is empty") && empty.contains("--net none"),
            "{empty}"
        );
        let ports = allowing("*:443").unwrap_err();
        assert!(
            ports.contains("0.0.0.0/0:443,[::/0]:443") && !ports.contains("default"),
            "{ports}"
        );
        assert!(allowing("0.0.0.0/0:443,[::/0]:443").is_ok());
    }
}
