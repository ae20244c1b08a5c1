"""A status of each kind with every field filled, as the operator would write it in the middle of its work."""

from __future__ import annotations

from typing import Any

READY: dict[str, Any] = {
    "type": "Ready",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-02T03:04:05Z",
    "reason": "AllNodesReady",
    "message": "3 of 3 nodes are ready",
}

STATUSES: dict[str, dict[str, Any]] = {
    "CachePool": {
        "nodesReady": 3,
        "nodesTotal": 3,
        "nodes": "3/3",
        "updatedNodes": 3,
        "capacityBytes": 6597069766656,
        "capacity": "6Ti",
        "usedBytes": 1319413953331,
        "used": "1.2Ti",
        "hitRatio": "97.3%",
        "viewEpoch": 7,
        "image": "shoal:0.1.0",
        "version": "0.1.0",
        "observedGeneration": 1,
        "conditions": [READY],
    },
    "Dataset": {
        "objects": 1281167,
        "bytes": 147897477120,
        "size": "137.7Gi",
        "cachedBytes": 66553864704,
        "cachedPercent": "45%",
        "hitRatio": "97.3%",
        "manifest": "0123456789abcdef0123456789abcdef",
        "lastScanTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 1,
        "conditions": [READY],
    },
    "Preload": {
        "phase": "Filling",
        "run": "k3x9",
        "objectsScanned": 1281167,
        "objectsDone": 781512,
        "objectsFailed": 2,
        "bytesScanned": 147897477120,
        "bytesDone": 90217461043,
        "bytesVerified": 90217461000,
        "bytesTotal": 147897477120,
        "progress": "61%",
        "rate": "1.1Gi/s",
        "eta": "3m",
        "startTime": "2026-01-02T03:04:05Z",
        "completionTime": "2026-01-02T03:14:05Z",
        "nextScheduleTime": "2026-01-03T02:30:00Z",
        "errors": ["train/0001.tar: NotFound"],
        "observedGeneration": 1,
        "conditions": [READY],
    },
}
