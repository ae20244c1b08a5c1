"""The fixtures of the tests on a real Kubernetes; see tests/support/kubernetes.py."""

from tests.cluster.release import bucket, release
from tests.support.kubernetes import cluster, control_plane, kwok_control_plane

__all__ = ["bucket", "cluster", "control_plane", "kwok_control_plane", "release"]
