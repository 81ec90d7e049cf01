//! How a guest reaches a network: as it is typed, as the file has it, and what is told of it.
//!
//! ```text
//! publish   --publish [ADDRESS:]PORT:PORT[/udp]
//! log       --net-log FILE: an event of the network on each line
//! watch     takes the events while the VM runs, for the log and for whoever learns from them
//! ```

use std::path::{Path, PathBuf};
use std::str::FromStr;

use capsa::network::{NetworkPolicy, PortForward, UserNetwork};
use capsa::{NetworkMode, VmHandle};
use clap::Args;

use crate::exit::Failure;
use crate::{messages, policy};

mod log;
pub(crate) mod publish;
mod watch;

pub(crate) use self::log::NetworkLog;
pub(crate) use self::watch::Watch;

/// What a guest may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NetworkSetting {
    /// Nothing: there is no network.
    None,
    /// Public addresses.
    Nat,
    /// What a policy says.
    Policy(NetworkPolicy),
}

impl FromStr for NetworkSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "nat" => Ok(Self::Nat),
            Some(("allow", list)) => policy::allowing(list).map(Self::Policy),
            Some(("policy", file)) => policy::read(Path::new(file)).map(Self::Policy),
            _ => Err("a network is none, nat, allow=WHAT,... or policy=FILE".to_owned()),
        }
    }
}

/// What may be typed about the network.
#[derive(Debug, Default, Args)]
pub(crate) struct NetworkArgs {
    // Doc comments would make links of the brackets.
    #[arg(
        long = "net",
        alias = "network",
        value_name = "MODE",
        help = "What the guest reaches: none; nat: public addresses; allow=crates.io,*.x.org:443,\
                10.0.0.0/8:5432; policy=FILE [default: nat for run, none for exec]"
    )]
    setting: Option<NetworkSetting>,

    #[arg(
        long,
        value_name = "PORTS",
        value_parser = publish::parse,
        help = "Lead a port of this machine to one of the guest: [ADDRESS:]PORT:PORT[/udp], \
                at 127.0.0.1 by default; port 0 takes a free one"
    )]
    publish: Vec<PortForward>,

    /// Write every decision about the network to this file, as a line of JSON each
    #[arg(long = "net-log", value_name = "FILE")]
    log: Option<PathBuf>,
}

impl From<NetworkArgs> for NetworkSettings {
    fn from(args: NetworkArgs) -> Self {
        Self {
            setting: args.setting,
            publish: args.publish,
            log: args.log,
        }
    }
}

/// What has been said about the network. What is `None` or empty has not been said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkSettings {
    pub(crate) setting: Option<NetworkSetting>,
    pub(crate) publish: Vec<PortForward>,
    pub(crate) log: Option<PathBuf>,
}

impl NetworkSettings {
    /// What these say, over what `file` says. Ports are published by both.
    pub(crate) fn over(mut self, file: Self) -> Self {
        self.publish.splice(0..0, file.publish);
        Self {
            setting: self.setting.or(file.setting),
            log: self.log.or(file.log),
            ..self
        }
    }

    /// The network for a builder, unless nothing was said that differs from its own, which is `default`.
    pub(crate) fn mode(&self, default: NetworkSetting) -> Result<Option<NetworkMode>, Failure> {
        let without = match (self.publish.as_slice(), &self.log) {
            ([], None) => None,
            ([], Some(_)) => Some("--net-log: the guest has no network to tell of"),
            _ => Some("--publish: the guest has no network for the port to lead to"),
        };
        let forwarding = |policy| {
            Some(NetworkMode::User(UserNetwork {
                policy,
                forwards: self.publish.clone(),
                ..UserNetwork::default()
            }))
        };
        match (self.setting.as_ref().unwrap_or(&default), without) {
            (NetworkSetting::None, Some(reason)) => Err(Failure::Usage(format!(
                "{reason}; add --net nat, or --net allow=... for less"
            ))),
            (NetworkSetting::None, None) => Ok(self.setting.as_ref().map(|_| NetworkMode::None)),
            (NetworkSetting::Nat, _) if self.publish.is_empty() => {
                Ok(self.setting.as_ref().map(|_| NetworkMode::Nat))
            }
            (NetworkSetting::Nat, _) => Ok(forwarding(NetworkPolicy::public())),
            (NetworkSetting::Policy(policy), _) => Ok(forwarding(policy.clone())),
        }
    }

    /// The log, empty, if there is to be one.
    pub(crate) fn open_log(&self) -> Result<Option<NetworkLog>, Failure> {
        self.log.as_deref().map(NetworkLog::create).transpose()
    }

    /// Says which ports were taken where any was to be.
    pub(crate) fn announce(&self, vm: &VmHandle) {
        for (wish, taken) in self.publish.iter().zip(vm.forwards()) {
            if wish.listen.port() == 0 {
                let (protocol, port) = (wish.protocol, wish.guest_port);
                messages::note(&format!(
                    "{protocol} {taken} leads to port {port} of the guest"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_network_is_refused_without_one() {
        let publish = vec![publish::parse("8080:80").unwrap()];
        let log = Some(PathBuf::from("log"));
        let settings = |setting, publish, log| NetworkSettings {
            setting,
            publish,
            log,
        };
        let (none, nat) = (NetworkSetting::None, NetworkSetting::Nat);
        for (settings, default, refused) in [
            (settings(None, publish.clone(), None), &none, "--publish: "),
            (settings(None, vec![], log.clone()), &none, "--net-log: "),
            (
                settings(Some(none.clone()), publish.clone(), log.clone()),
                &nat,
                "--publish: ",
            ),
        ] {
            let refusal = settings.mode(default.clone()).unwrap_err().to_string();
            assert!(
                refusal.starts_with(refused) && refusal.contains("add --net nat"),
                "{refusal}"
            );
        }
        let mode = |settings: NetworkSettings| settings.mode(nat.clone()).unwrap();
        assert_eq!(mode(settings(None, vec![], log)), None);
        assert_eq!(
            mode(settings(Some(none), vec![], None)),
            Some(NetworkMode::None)
        );
        assert_eq!(
            mode(settings(Some(nat.clone()), vec![], None)),
            Some(NetworkMode::Nat)
        );
        let Some(NetworkMode::User(network)) = mode(settings(None, publish.clone(), None)) else {
            panic!("a published port needs a network of its own");
        };
        assert_eq!(
            (network.policy, network.forwards),
            (NetworkPolicy::public(), publish)
        );
    }

    #[test]
    fn options_add_ports_to_those_of_the_file() {
        let [a, b] = ["1:1", "2:2"].map(|text| publish::parse(text).unwrap());
        let settings = |setting, publish| NetworkSettings {
            setting,
            publish: vec![publish],
            log: None,
        };
        let typed = settings(None, b);
        let file = settings(Some(NetworkSetting::Nat), a);
        let both = typed.over(file);
        assert_eq!(both.setting, Some(NetworkSetting::Nat));
        assert_eq!(both.publish, [a, b]);
    }
}
