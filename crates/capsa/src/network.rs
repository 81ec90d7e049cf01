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
//! VMs of one program reach each other on the switch of a [`Cluster`], and outside what the policy of each says.
//! In both of these `db.shop.internal` is the second:
//!
//! ```no_run
//! use capsa::Capsa;
//! use capsa::network::{Cluster, ClusterMember, NetworkCluster};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let shop = NetworkCluster::new("shop".parse()?)
//!     .member(ClusterMember::new("web".parse()?))
//!     .member(ClusterMember::new("db".parse()?));
//! let shop = Cluster::new(&shop)?;
//! let member = |name| shop.member(name).expect("a member of the configuration");
//! let web = Capsa::sandbox().network(member("web")).start().await?;
//! let db = Capsa::sandbox().network(member("db")).start().await?;
//! # Ok(()) }
//! ```
//!
//! What a policy does not stop is in SECURITY.md.

pub use capsa_net::policy::{
    Action, Admission, Block, Check, Decision, Destination, DomainName, DomainPattern, Filter,
    NameError, NetworkPolicy, PolicyProblem, Ports, Protocol, Reason, Rule, RuleError, Target,
};
pub use capsa_net::{
    Cluster, ClusterError, ClusterMember, ClusterProblem, ConfigProblem, Event, HOST_NAME,
    HostService, Ipv4Net, Ipv6Net, Limit, Limits, MAX_MEMBERS, Member, NetworkCluster, PortForward,
    Resolvers, UserNetwork,
};

pub use crate::vm::NetworkEvents;
