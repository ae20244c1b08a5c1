"""Tests of the operator: what it decides, and what it does against a real API server."""

from tests.support.kubernetes import control_plane, kwok_control_plane

__all__ = ["control_plane", "kwok_control_plane"]
