"""The I/O of the tiers: DRAM segments and NVMe segment files. Which slot is used is decided by `NodeState`."""
