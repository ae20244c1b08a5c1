"""What the operator tells Prometheus: its own work, and the fallbacks of the nodes, added up by pool.

A registry of its own, without the process and platform collectors that a pod's metrics have anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shoal_core import view
from shoal_operator.model import NodeReport

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """All of them, by name."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.reconciles = Counter(
            "shoal_operator_reconciles", "Looks at an object", ["kind", "result"], registry=registry
        )
        self.reconcile_seconds = Histogram(
            "shoal_operator_reconcile_seconds", "How long a look took", ["kind"], buckets=_SECONDS, registry=registry
        )
        self.status_patches = Counter("shoal_operator_status_patches", "Statuses written", ["kind"], registry=registry)
        self.api_errors = Counter(
            "shoal_operator_api_errors", "Reconciles that the API server refused", ["reason"], registry=registry
        )
        self.polls = Counter(
            "shoal_operator_polls", "Nodes asked for their status", ["pool", "result"], registry=registry
        )
        self.injections = Counter(
            "shoal_operator_injections", "Pods seen by the webhook", ["result"], registry=registry
        )
        self.view_epoch = Gauge("shoal_operator_view_epoch", "Epoch of the published view", ["pool"], registry=registry)
        self.pool_nodes = Gauge(
            "shoal_operator_pool_nodes", "Nodes of the published view", ["pool", "status"], registry=registry
        )
        self.fallbacks = Gauge(
            "shoal_operator_node_fallbacks",
            "Fallbacks that the nodes counted since they started",
            ["pool", "kind"],
            registry=registry,
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """One that is asked for when somebody scrapes."""
        Gauge(f"shoal_operator_{name}", text, registry=self._registry).set_function(value)

    def of_pool(self, pool: str, seen: view.View | None, reports: Iterable[NodeReport]) -> None:
        if seen is not None:
            self.view_epoch.labels(pool).set(seen.epoch)
            for status in ("ready", "draining", "gone"):
                self.pool_nodes.labels(pool, status).set(sum(node.status == status for node in seen.nodes))
        totals: dict[str, int] = {}
        for report in reports:
            for kind, count in report.fallbacks.items():
                totals[kind] = totals.get(kind, 0) + count
        for kind, count in totals.items():
            self.fallbacks.labels(pool, kind).set(count)

    def forget_pool(self, pool: str) -> None:
        for metric in (self.view_epoch, self.pool_nodes, self.fallbacks, self.polls):
            metric.remove_by_labels({"pool": pool})

    def render(self) -> bytes:
        return generate_latest(self._registry)
