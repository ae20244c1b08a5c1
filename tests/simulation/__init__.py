"""A whole cluster on simulated time, network and disks: `make sim SEED=n`. Begin with `simulation`, then `world`."""
