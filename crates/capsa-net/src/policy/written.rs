//! Rules as files have them.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::rule::{Action, Check, Ports, Protocol, Rule, RuleError, Scope, Target};

/// A rule as a file has it, unless it is a text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny: Option<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Ports>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RuleVisitor)
    }
}

/// Reads a rule so that an error is told where the rule is, which `try_from` would tell of all rules.
struct RuleVisitor;

impl<'de> Visitor<'de> for RuleVisitor {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rule like \"crates.io:443\" or { deny = \"10.0.0.0/8\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rule, E> {
        Rule::allow(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rule, A::Error> {
        let written = Written::deserialize(MapAccessDeserializer::new(map))?;
        written.try_into().map_err(de::Error::custom)
    }
}

impl TryFrom<Written> for Rule {
    type Error = RuleError;

    fn try_from(written: Written) -> Result<Self, RuleError> {
        let (action, mut scope) = match (written.allow, written.deny) {
            (Some(scope), None) => (Action::Allow, scope),
            (None, Some(scope)) => (Action::Deny, scope),
            _ => return Err(RuleError::Action),
        };
        scope.ports = match (scope.ports, written.ports) {
            (Some(behind), Some(alone)) => return Err(RuleError::PortsTwice(behind, alone)),
            (behind, alone) => behind.or(alone),
        };
        if written.check.is_some() && matches!(scope.target, Target::Network(_)) {
            return Err(RuleError::CheckOfNetwork(scope.target));
        }
        Ok(Self {
            id: written.id.unwrap_or_else(|| scope.to_string()),
            action,
            target: scope.target,
            ports: scope.ports,
            protocol: written.protocol,
            check: written.check.unwrap_or_default(),
        })
    }
}

impl From<Rule> for Written {
    fn from(rule: Rule) -> Self {
        let scope = Scope {
            target: rule.target,
            ports: rule.ports,
        };
        let names = matches!(scope.target, Target::Domain(_));
        let id = (rule.id != scope.to_string()).then_some(rule.id);
        let (allow, deny) = match rule.action {
            Action::Allow => (Some(scope), None),
            Action::Deny => (None, Some(scope)),
        };
        Self {
            id,
            allow,
            deny,
            ports: None,
            protocol: rule.protocol,
            check: Some(rule.check).filter(|check| names && *check != Check::default()),
        }
    }
}

/// What a file may have in the place of ports.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a port like 443, or ports like \"8000-8100\""
)]
pub(super) enum NumberOrText {
    Number(i64),
    Text(String),
}

impl TryFrom<NumberOrText> for Ports {
    type Error = RuleError;

    fn try_from(ports: NumberOrText) -> Result<Self, RuleError> {
        match ports {
            NumberOrText::Number(port) => port.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::NetworkPolicy;

    #[test]
    fn a_policy_is_data() {
        let text = r#"{"default":"deny","rules":[{"id":"db","allow":"10.0.0.0/8:5432","protocol":"tcp"},
            {"allow":"*.github.com"},{"deny":"[2001:db8::/32]:80-90"},
            {"allow":"github.com:22","check":"address"}]}"#;
        let policy: NetworkPolicy = serde_json::from_str(text).unwrap();
        let again = serde_json::to_string(&policy).unwrap();
        assert_eq!(
            again,
            text.split_whitespace().collect::<String>(),
            "what is left out is not written either"
        );
        let ids: Vec<_> = policy.rules.iter().map(|rule| rule.id.as_str()).collect();
        let expected = [
            "db",
            "*.github.com",
            "[2001:db8::/32]:80-90",
            "github.com:22",
        ];
        assert_eq!(ids, expected);
        assert_eq!(policy.rules[0].ports, Some(5432.into()));
        assert_eq!(policy.rules[3].check, Check::Address);
        let text = r#"{"default":"deny","rules":["*.github.com",{"allow":"*.github.com"}]}"#;
        let policy: NetworkPolicy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.rules[0], policy.rules[1]);
        let unknown = text.replace("\"default\"", "\"extra\":1,\"default\"");
        assert!(serde_json::from_str::<NetworkPolicy>(&unknown).is_err());
    }

    #[test]
    fn ports_stand_behind_the_target_or_alone() {
        let read = |text: &str| serde_json::from_str::<Rule>(text).map_err(|e| e.to_string());
        let rule = read(r#"{"allow":"10.1.2.3","ports":22}"#).unwrap();
        assert_eq!((&*rule.id, rule.ports), ("10.1.2.3:22", Some(22.into())));
        let rule = read(r#"{"deny":"a.com","ports":"80-90"}"#).unwrap();
        assert_eq!((&*rule.id, rule.action), ("a.com:80-90", Action::Deny));
        for (text, message) in [
            (r#"{"allow":"a.com:1","ports":2}"#, "twice: `1` and `2`"),
            (r#"{"allow":"a.com","ports":0}"#, "`0` is no port"),
            (r#"{"allow":"a.com","ports":-1}"#, "`-1` is no port"),
            (r#"{"allow":"a.com","ports":true}"#, "a port like 443"),
            (r#"{"allow":"a.com","deny":"b.com"}"#, "either"),
            (r#"{"id":"a"}"#, "either"),
            (
                r#"{"allow":"::1","check":"web"}"#,
                "a name, and `::1` is none",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
