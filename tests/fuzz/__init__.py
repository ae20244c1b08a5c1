"""Fuzzers: programs that run for a bounded time, started by test_fuzz.py."""
