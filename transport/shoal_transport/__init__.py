"""Both ends of each wire."""
