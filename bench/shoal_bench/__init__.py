"""Benchmarks: one module per question, each figure beside its reference, measured in the same run."""
