"""The demonstration behind `make demo`: a small classifier learns from images that come through the cache."""
