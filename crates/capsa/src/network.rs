//! What a VM's network is like, what it lets through, and what it tells.
//!
//! ```
//! use capsa::network::{NetworkPolicy, PortForward, Protocol, Rule, UserNetwork};
//!
//! # fn example() -> Result<UserNetwork, Box<dyn std::error::Error>> {
//! let network = UserNetwork {
//!     policy: NetworkPolicy::deny_all()
//!         .rule(Rule::allow("*.github.com")?)
//!         .rule(Rule::allow("10.1.2.3:5432")?),
//!     forwards: vec![PortForward {
//!         protocol: Protocol::Tcp,
//!         listen: "127.0.0.1:8080".parse()?,
//!         guest_port: 80,
//!     }],
//!     ..UserNetwork::default()
//! };
//! # Ok(network) }
//! # assert_eq!(example().unwrap().problems(), []);
//! ```
//!
//! What a policy does not stop is in SECURITY.md.

pub use capsa_net::policy::{
    Action, Block, Check, Decision, DomainName, DomainPattern, NameError, NetworkPolicy,
    PolicyProblem, Ports, Protocol, Reason, Rule, RuleError, Target,
};
pub use capsa_net::{
    ConfigProblem, Event, HOST_NAME, HostService, Limit, Limits, PortForward, Resolvers,
    UserNetwork,
};

pub use crate::vm::NetworkEvents;
