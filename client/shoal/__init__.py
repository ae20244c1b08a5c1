"""Shoal, a distributed cache for machine learning."""
