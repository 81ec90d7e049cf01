//! How a guest reaches a network: as it is typed, as the file has it, and what is told of it.
//!
//! ```text
//! publish   --publish [ADDRESS:]PORT:PORT[/udp]
//! services  --host-service [NAME=][ADDRESS:]PORT:PORT[/udp]
//! addresses --mac, --dns
//! log       --net-log FILE: an event of the network on each line
//! watch     takes the events while the VM runs, for the log and for whoever learns from them
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use capsa::network::{
    DomainName, HostService, Ipv4Net, Ipv6Net, NetworkPolicy, PortForward, Resolvers, UserNetwork,
};
use capsa::{NetworkMode, VmHandle};
use clap::Args;

use crate::exit::Failure;
use crate::{messages, policy};

pub(crate) mod addresses;
mod log;
pub(crate) mod publish;
pub(crate) mod services;
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

    #[arg(
        long = "host-service",
        value_name = "SERVICE",
        value_parser = services::parse,
        help = "Let the guest reach a port of this machine: [NAME=][ADDRESS:]PORT:PORT[/udp], this \
                machine's and then the guest's; by the name host.capsa.internal and at 127.0.0.1 \
                by default"
    )]
    services: Vec<HostService>,

    /// The guest's IPv4 network, of a /29 at least [default: 10.0.2.0/24]
    #[arg(long, value_name = "NETWORK")]
    subnet: Option<Ipv4Net>,

    /// The guest's IPv6 network, a /64 [default: fd00:ca95:a::/64]
    #[arg(long, value_name = "NETWORK")]
    subnet6: Option<Ipv6Net>,

    /// The guest's address on its link, like 52:54:00:12:34:56
    #[arg(long, value_name = "ADDRESS", value_parser = addresses::mac)]
    mac: Option<[u8; 6]>,

    /// The guest's host name; with `run`, DHCP gives it
    #[arg(long, value_name = "NAME")]
    hostname: Option<DomainName>,

    #[arg(
        long = "dns",
        value_name = "ADDRESS",
        value_parser = addresses::resolver,
        help = "Resolve the guest's names there: ADDRESS[:PORT], up to three in turn [default: \
                those of /etc/resolv.conf]"
    )]
    resolvers: Vec<SocketAddr>,

    /// Write every decision about the network to this file, as a line of JSON each, up to 256 MiB
    #[arg(long = "net-log", value_name = "FILE")]
    log: Option<PathBuf>,
}

impl From<NetworkArgs> for NetworkSettings {
    fn from(args: NetworkArgs) -> Self {
        Self {
            setting: args.setting,
            publish: args.publish,
            services: args.services,
            subnet: args.subnet,
            subnet6: args.subnet6,
            mac: args.mac,
            hostname: args.hostname,
            resolvers: args.resolvers,
            log: args.log,
        }
    }
}

/// What has been said about the network. What is `None` or empty has not been said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NetworkSettings {
    pub(crate) setting: Option<NetworkSetting>,
    pub(crate) publish: Vec<PortForward>,
    pub(crate) services: Vec<HostService>,
    pub(crate) subnet: Option<Ipv4Net>,
    pub(crate) subnet6: Option<Ipv6Net>,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) hostname: Option<DomainName>,
    pub(crate) resolvers: Vec<SocketAddr>,
    pub(crate) log: Option<PathBuf>,
}

impl NetworkSettings {
    /// What these say, over what `file` says. Ports are published, and services reached, of both.
    pub(crate) fn over(mut self, file: Self) -> Self {
        self.publish.splice(0..0, file.publish);
        self.services.splice(0..0, file.services);
        if self.resolvers.is_empty() {
            self.resolvers = file.resolvers;
        }
        Self {
            setting: self.setting.or(file.setting),
            subnet: self.subnet.or(file.subnet),
            subnet6: self.subnet6.or(file.subnet6),
            mac: self.mac.or(file.mac),
            hostname: self.hostname.or(file.hostname),
            log: self.log.or(file.log),
            ..self
        }
    }

    /// The network for a builder, unless nothing was said that differs from its own, which is `default`.
    pub(crate) fn mode(&self, default: NetworkSetting) -> Result<Option<NetworkMode>, Failure> {
        let network = self.network();
        let policy = match self.setting.as_ref().unwrap_or(&default) {
            NetworkSetting::None => {
                return match self.needs_network() {
                    Some(what) => Err(Failure::Usage(format!(
                        "{what}: the guest has no network; add --net nat, or --net allow=... for less"
                    ))),
                    None => Ok(self.setting.as_ref().map(|_| NetworkMode::None)),
                };
            }
            NetworkSetting::Nat if network == UserNetwork::default() => {
                return Ok(self.setting.as_ref().map(|_| NetworkMode::Nat));
            }
            NetworkSetting::Nat => NetworkPolicy::public(),
            NetworkSetting::Policy(policy) => policy.clone(),
        };
        Ok(Some(NetworkMode::User(UserNetwork { policy, ..network })))
    }

    /// The first option that was given and means nothing without a network.
    fn needs_network(&self) -> Option<&'static str> {
        let options = [
            (!self.publish.is_empty(), "--publish"),
            (!self.services.is_empty(), "--host-service"),
            (self.subnet.is_some(), "--subnet"),
            (self.subnet6.is_some(), "--subnet6"),
            (self.mac.is_some(), "--mac"),
            (self.hostname.is_some(), "--hostname"),
            (!self.resolvers.is_empty(), "--dns"),
            (self.log.is_some(), "--net-log"),
        ];
        let mut given = options.into_iter().filter(|(given, _)| *given);
        given.next().map(|(_, option)| option)
    }

    /// All but what the guest may reach.
    fn network(&self) -> UserNetwork {
        let default = UserNetwork::default();
        UserNetwork {
            subnet: self.subnet.unwrap_or(default.subnet),
            subnet6: self.subnet6.or(default.subnet6),
            mac: self.mac.unwrap_or(default.mac),
            host_name: self.hostname.clone(),
            forwards: self.publish.clone(),
            services: self.services.clone(),
            resolvers: match self.resolvers.as_slice() {
                [] => Resolvers::Host,
                servers => Resolvers::Servers(servers.to_vec()),
            },
            ..default
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
            ..NetworkSettings::default()
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

    /// What every option says of the network is in it, and each needs one.
    #[test]
    fn every_option_takes_effect() {
        let all = NetworkSettings {
            setting: Some(NetworkSetting::Nat),
            publish: vec![publish::parse("8080:80").unwrap()],
            services: vec![services::parse("db.internal=15432:5432").unwrap()],
            subnet: Some("10.9.8.0/24".parse().unwrap()),
            subnet6: Some("fd00:9::/64".parse().unwrap()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            hostname: Some("box".parse().unwrap()),
            resolvers: vec![addresses::resolver("10.0.0.53").unwrap()],
            log: None,
        };
        let Some(NetworkMode::User(network)) = all.mode(NetworkSetting::None).unwrap() else {
            panic!("it is no network like others");
        };
        let expected = UserNetwork {
            subnet: "10.9.8.0/24".parse().unwrap(),
            subnet6: Some("fd00:9::/64".parse().unwrap()),
            mac: [2, 0, 0, 0, 0, 1],
            host_name: Some("box".parse().unwrap()),
            forwards: all.publish.clone(),
            services: all.services.clone(),
            resolvers: Resolvers::Servers(vec!["10.0.0.53:53".parse().unwrap()]),
            ..UserNetwork::default()
        };
        assert_eq!(network, expected);
        assert_eq!(NetworkSettings::default().over(all.clone()), all);

        let none = NetworkSettings::default;
        for (settings, option) in [
            (
                NetworkSettings {
                    services: all.services,
                    ..none()
                },
                "--host-service: ",
            ),
            (
                NetworkSettings {
                    subnet: all.subnet,
                    ..none()
                },
                "--subnet: ",
            ),
            (
                NetworkSettings {
                    subnet6: all.subnet6,
                    ..none()
                },
                "--subnet6: ",
            ),
            (
                NetworkSettings {
                    mac: all.mac,
                    ..none()
                },
                "--mac: ",
            ),
            (
                NetworkSettings {
                    hostname: all.hostname,
                    ..none()
                },
                "--hostname: ",
            ),
            (
                NetworkSettings {
                    resolvers: all.resolvers,
                    ..none()
                },
                "--dns: ",
            ),
        ] {
            let refusal = settings.mode(NetworkSetting::None).unwrap_err().to_string();
            assert!(refusal.starts_with(option), "{refusal}");
        }
    }

    #[test]
    fn options_add_ports_to_those_of_the_file() {
        let [a, b] = ["1:1", "2:2"].map(|text| publish::parse(text).unwrap());
        let settings = |setting, publish| NetworkSettings {
            setting,
            publish: vec![publish],
            ..NetworkSettings::default()
        };
        let typed = settings(None, b);
        let file = settings(Some(NetworkSetting::Nat), a);
        let both = typed.over(file);
        assert_eq!(both.setting, Some(NetworkSetting::Nat));
        assert_eq!(both.publish, [a, b]);
    }
}
