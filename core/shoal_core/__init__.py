"""The pure heart of Shoal: keys, wire format, placement, eviction, limits. No I/O, no clock, no chance of its own."""
