"""Both ends of every door between a client and a node: memory, Unix socket, TCP."""
