//! The network card (5.1), over Ethernet frames on a descriptor.
