//! The PCI transport (4.1): configuration space, the register machine in a BAR, MSI-X.
