"""What the API server must refuse, with the words it must say, and what lies right beside it and must pass."""

from __future__ import annotations

from typing import NamedTuple

from tests.crds.specs import ABSENT

Changes = dict[str, object]


class Bad(NamedTuple):
    kind: str
    changes: Changes
    says: str
    """Part of the answer: the field and the rule."""


class Good(NamedTuple):
    kind: str
    changes: Changes


P, D, L = "CachePool", "Dataset", "Preload"
NVME = "spec.nvme.0."
SOURCE = "spec.source."
ENDPOINT = "spec.source.endpoint must be an http or https URL"
LABEL_40 = "metadata.name must be a DNS label of at most 40 characters"
LABEL_63 = "metadata.name must be a DNS label of at most 63 characters"

BAD = [
    Bad(P, {"metadata.name": "n" * 41}, LABEL_40),
    Bad(P, {"metadata.name": "nvme.fast"}, LABEL_40),
    Bad(P, {"spec": ABSENT}, "spec: Required value"),
    Bad(P, {"spec.dram": ABSENT}, "spec.dram: Required value"),
    Bad(P, {"spec.dram.budget": ABSENT}, "spec.dram.budget: Required value"),
    *(
        Bad(P, {"spec.dram.budget": value}, "spec.dram.budget must be a quantity of bytes, at least 1Mi")
        for value in ("64 Gi", "64GiB", "lots", "", 0, -1, "-64Gi", "1Ki", "1048576500m")
    ),
    Bad(P, {"spec.dram.budget": 1.5}, "spec.dram.budget"),
    Bad(P, {"spec.dram.budget": "8Mi"}, "spec.dram.budget must hold at least two blocks of spec.blockSize and 512Ki"),
    Bad(P, {"spec.dram.hugePages": "yes"}, 'spec.dram.hugePages: Unsupported value: "yes"'),
    *(
        Bad(P, {NVME + "path": value}, "spec.nvme[].path must be an absolute path, and not '/'")
        for value in ("var/lib/shoal", "./cache", "~/cache", "/")
    ),
    *(
        Bad(P, {NVME + "path": value}, "spec.nvme[].path must be plain")
        for value in ("/var//shoal", "/var/../etc", "/var/lib/..", "/./shoal", "/var/lib/shoal/")
    ),
    *(
        Bad(P, {NVME + "path": value}, "spec.nvme[].path must not lie in /proc, /sys, /dev, /etc, /boot, /run")
        for value in ("/proc", "/etc/shoal", "/dev/shm", "/sys/fs", "/boot", "/run/shoal.dev/nvme", "/var/lib/kubelet")
    ),
    *(
        Bad(P, {NVME + "capacity": value}, "spec.nvme[].capacity must be a quantity of bytes, at least 16Mi")
        for value in ("0", -5, "2TiB", "1Mi", "100000000500m")
    ),
    Bad(P, {NVME + "capacity": ABSENT}, "spec.nvme[0].capacity: Required value"),
    Bad(P, {NVME + "keepFree": "-1Gi"}, "spec.nvme[].keepFree must be a quantity of bytes, not negative"),
    Bad(P, {"spec.nvme": [{"path": f"/disk{number}", "capacity": "1Gi"} for number in (1, 2)]}, "spec.nvme: Too many"),
    Bad(P, {"spec.replicas": 0}, "spec.replicas in body should be greater than or equal to 1"),
    Bad(P, {"spec.replicas": 9}, "spec.replicas in body should be less than or equal to 8"),
    *(
        Bad(P, {"spec.blockSize": value}, "spec.blockSize must be a whole number: a power of two from 512 bytes")
        for value in ("256", "1000", 0, "-4Mi", "100Ki", "17Mi", "32Mi", "4MiB", "65537", "0.5Mi")
    ),
    Bad(P, {"spec.nodeSelector": {"two words": "x"}}, "spec.nodeSelector must have label keys"),
    Bad(P, {"spec.nodeSelector": {"disk": "a/b"}}, "spec.nodeSelector must have label values"),
    Bad(P, {"spec.nodeSelector": {"disk": 1}}, "spec.nodeSelector.disk"),
    Bad(
        P,
        {"spec.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "spec.tolerations[].value must be empty when operator is Exists",
    ),
    Bad(P, {"spec.tolerations": [{"effect": "NoSchedule"}]}, "spec.tolerations[].operator must be Exists when key is"),
    Bad(
        P,
        {"spec.tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}]},
        "spec.tolerations[].effect must be NoExecute when tolerationSeconds is given",
    ),
    Bad(P, {"spec.tolerations": [{"key": "a", "operator": "In"}]}, "spec.tolerations[0].operator: Unsupported value"),
    Bad(P, {"spec.image": "a b"}, "spec.image must be an image reference without blanks"),
    Bad(P, {"spec.image": ""}, "spec.image"),
    Bad(P, {"spec.imagePullPolicy": "Sometimes"}, 'spec.imagePullPolicy: Unsupported value: "Sometimes"'),
    Bad(P, {"spec.imagePullSecrets": [{"name": "a"}, {"name": "a"}]}, "spec.imagePullSecrets[1]: Duplicate value"),
    Bad(P, {"spec.resources": {"requests": {"memory": "lots"}}}, "spec.resources.requests must have quantities"),
    Bad(P, {"spec.resources": {"limits": {"cpu": "two"}}}, "spec.resources.limits must have quantities"),
    Bad(P, {"spec.updateStrategy": {"type": "Recreate"}}, "spec.updateStrategy.type: Unsupported value"),
    Bad(P, {"spec.drainTimeoutSeconds": -1}, "spec.drainTimeoutSeconds in body should be greater than or equal to 0"),
    Bad(P, {"spec.drainTimeoutSeconds": "10m"}, "spec.drainTimeoutSeconds in body must be of type integer"),
    Bad(P, {"spec.drainNodes": ["a", "a"]}, "spec.drainNodes[1]: Duplicate value"),
    *(
        Bad(P, {"spec.sharedMemory": {"namespaces": [value]}}, "spec.sharedMemory.namespaces[] must be the name of a")
        for value in ("team a", "team-*", "Team", "-")
    ),
    Bad(P, {"spec.ports": {"data": 7441}}, "spec.ports.control must differ from spec.ports.data"),
    Bad(P, {"spec.ports": {"data": 80}}, "spec.ports.data in body should be greater than or equal to 1024"),
    Bad(P, {"spec.ports": {"control": 70000}}, "spec.ports.control in body should be less than or equal to 65535"),
    Bad(D, {"metadata.name": "i" * 64}, LABEL_63),
    Bad(D, {"metadata.name": "images.v2"}, LABEL_63),
    Bad(D, {"spec.pool": ABSENT}, "spec.pool: Required value"),
    *(Bad(D, {"spec.pool": value}, "spec.pool must be the name of a CachePool") for value in ("a.b", "NVMe", "-a")),
    Bad(D, {"spec.pool": "n" * 41}, "spec.pool: Too long"),
    Bad(D, {"spec.source": ABSENT}, "spec.source: Required value"),
    Bad(D, {SOURCE + "uri": ABSENT}, "spec.source.uri: Required value"),
    *(
        Bad(D, {SOURCE + "uri": value}, "spec.source.uri must begin with one of s3://, gs://, az://")
        for value in ("bucket/images", "ftp://host/images", "S3://bucket", "hdfs://host/images", "s3:/bucket")
    ),
    *(
        Bad(D, {SOURCE + "uri": value}, "spec.source.uri must name a bucket or host after the scheme, and hold no user")
        for value in ("s3:///images", "https://rita:secret@host/images", "http://?x=1", "gs://@bucket/x")
    ),
    *(
        Bad(D, {SOURCE + "uri": value}, "spec.source.uri must lie below file:///mnt/ when its scheme is file")
        for value in ("file:///", "file:///etc", "file://mnt/images", "file:///var/run/secrets", "file:///mnt")
    ),
    *(
        Bad(D, {SOURCE + "uri": value}, "spec.source.uri must hold no blanks and no segments '.' or '..'")
        for value in ("s3://bucket/my images", "file:///mnt/../etc", "s3://bucket/a/./b", "s3://bucket/..", "s3://b/\n")
    ),
    *(
        Bad(D, {SOURCE + "uri": value}, "spec.source.uri must have no query and no fragment")
        for value in ("https://host/images?token=1", "http://host/images#1")
    ),
    *(
        Bad(D, {SOURCE + "endpoint": value}, ENDPOINT)
        for value in ("minio:9000", "s3://minio", "https://", "http://a:b@minio", "http://minio/?x", "http://mi nio")
    ),
    Bad(
        D,
        {SOURCE + "uri": "https://host/images", SOURCE + "endpoint": "https://minio"},
        "spec.source.endpoint must be absent unless spec.source.uri begins with s3, gs or az",
    ),
    Bad(
        D,
        {SOURCE + "uri": "gs://bucket/images", SOURCE + "region": "eu-central-1"},
        "spec.source.region must be absent unless spec.source.uri begins with s3",
    ),
    Bad(D, {SOURCE + "region": "Frankfurt am Main"}, "spec.source.region must be a region's name"),
    Bad(
        D,
        {SOURCE + "uri": "file:///mnt/images", SOURCE + "secretRef": {"name": "keys"}},
        "spec.source.secretRef must be absent unless spec.source.uri begins with s3, gs or az",
    ),
    Bad(D, {SOURCE + "secretRef": {}}, "spec.source.secretRef.name: Required value"),
    Bad(D, {SOURCE + "secretRef": {"name": "My_Keys"}}, "spec.source.secretRef.name must be a secret's name"),
    *(
        Bad(D, {SOURCE + which: [value]}, f"spec.source.{which}[] must be a relative pattern")
        for which in ("include", "exclude")
        for value in ("/train/*", "../other/*", "train/../../x", "./a", "train//*")
    ),
    Bad(D, {SOURCE + "include": ["a"] * 2}, "spec.source.include[1]: Duplicate value"),
    Bad(D, {SOURCE + "include": [str(number) for number in range(65)]}, "spec.source.include: Too many: 65"),
    Bad(
        D,
        {"spec.version": {"manifest": "0123456789abcdef"}},
        "spec.version.manifest must be absent unless spec.version.policy is Pinned",
    ),
    Bad(
        D,
        {"spec.version": {"policy": "Pinned", "manifest": "the one of May"}},
        "spec.version.manifest must be a digest, as status.manifest shows it",
    ),
    Bad(D, {"spec.version": {"policy": "Latest"}}, "spec.version.policy: Unsupported value"),
    Bad(D, {"spec.version": {"refreshSeconds": 0}}, "spec.version.refreshSeconds in body should be greater than or"),
    Bad(D, {"spec.replicas": 9}, "spec.replicas in body should be less than or equal to 8"),
    Bad(D, {"spec.eviction": "LRU"}, 'spec.eviction: Unsupported value: "LRU"'),
    *(
        Bad(D, {"spec.quota": value}, "spec.quota must be a quantity of bytes, greater than 0")
        for value in ("0", 0, "-1Gi", "1GB", "100m")
    ),
    Bad(D, {"spec.ttlSeconds": 0}, "spec.ttlSeconds in body should be greater than or equal to 1"),
    Bad(L, {"metadata.name": "w" * 64}, LABEL_63),
    Bad(L, {"spec.dataset": ABSENT}, "spec.dataset: Required value"),
    Bad(L, {"spec.dataset": "team-b/images"}, "spec.dataset must be the name of a Dataset of the same namespace"),
    *(
        Bad(L, {"spec.paths": [value]}, "spec.paths[] must be a path relative to the data set")
        for value in ("/train", "..", "train/../../other", "s3://bucket/train", "./train")
    ),
    Bad(L, {"spec.policy": "Daily"}, 'spec.policy: Unsupported value: "Daily"'),
    Bad(L, {"spec.policy": "Cron"}, "spec.schedule must be given when spec.policy is Cron"),
    Bad(L, {"spec.schedule": "@daily"}, "spec.schedule must be absent unless spec.policy is Cron"),
    *(
        Bad(L, {"spec.policy": "Cron", "spec.schedule": value}, "spec.schedule must have five fields")
        for value in ("daily", "30 2 * *", "30 2 * * * *", "@often", "30 2 * * * ; rm", "a b * * *")
    ),
    Bad(
        L,
        {"spec.policy": "OnChange", "spec.ttlSecondsAfterFinished": 60},
        "spec.ttlSecondsAfterFinished must be absent unless spec.policy is Once",
    ),
    Bad(L, {"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished in body should be greater than or"),
    *(
        Bad(L, {"spec.bytesPerSecond": value}, "spec.bytesPerSecond must be a quantity of bytes, greater than 0")
        for value in ("0", "fast", "-1Gi", "1Gi/s")
    ),
    Bad(L, {"spec.verify": "yes"}, "spec.verify in body must be of type boolean"),
]

GOOD = [
    Good(P, {}),
    Good(P, {"metadata.name": "n" * 40}),
    *(Good(P, {"spec.dram.budget": value}) for value in ("9Mi", "64Gi", 68719476736, "1.5Gi", "1e9", "64G")),
    Good(P, {"spec.dram.budget": "1Mi", "spec.blockSize": "256Ki"}),
    *(
        Good(P, {NVME + "path": value})
        for value in ("/a", "/var/lib/shoal", "/mnt/disk.1/..shoal", "/devices", "/procs", "/run/shoal")
    ),
    *(Good(P, {NVME + "capacity": value}) for value in ("16Mi", "1.75Ti", 16777216)),
    *(Good(P, {NVME + "keepFree": value}) for value in (0, "0", "50Gi")),
    Good(P, {"spec.nvme": []}),
    Good(P, {"spec.replicas": 8}),
    *(Good(P, {"spec.blockSize": value}) for value in ("512", 512, "32Ki", "64Ki", "192Ki", "4Mi", "16Mi")),
    Good(P, {"spec.nodeSelector": {"kubernetes.io/hostname": "a-1.b", "disk": "", "a_b.c": "V_1"}}),
    Good(
        P,
        {
            "spec.tolerations": [
                {"operator": "Exists"},
                {"key": "gpu", "operator": "Equal", "value": "h100", "effect": "NoSchedule"},
                {"key": "gpu", "value": "h100"},
                {"key": "gone", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5},
            ]
        },
    ),
    Good(P, {"spec.image": "registry.example:5000/team/shoal@sha256:" + "0" * 64}),
    Good(
        P,
        {"spec.resources": {"requests": {"memory": "70Gi", "cpu": 4, "hugepages-2Mi": "64Gi"}, "limits": {"r/a": 1}}},
    ),
    Good(P, {"spec.drainNodes": ["node-1", "node-2.example"], "spec.drainTimeoutSeconds": 0}),
    Good(P, {"spec.sharedMemory": {"namespaces": ["*"]}}),
    Good(P, {"spec.sharedMemory": {"namespaces": ["team-a", "b2"]}}),
    Good(P, {"spec.ports": {"data": 1024}}),
    Good(P, {"spec.ports": {"data": 9000, "control": 9001}, "spec.hostNetwork": True}),
    Good(D, {"metadata.name": "i" * 63}),
    *(
        Good(D, {SOURCE + "uri": value})
        for value in (
            "s3://bucket",
            "s3://bucket/",
            "s3://bucket/a@b?c#d",
            "gs://bucket/images",
            "az://container/images",
            "http://host:8080/images/",
            "https://host/a/..b/c..",
            "file:///mnt/images",
        )
    ),
    *(
        Good(D, {SOURCE + "endpoint": value})
        for value in ("http://minio:9000", "https://minio.example/s3", "http://[::1]:9000/", "http://10.1.2.3")
    ),
    Good(D, {SOURCE + "region": "eu-central-1", SOURCE + "secretRef": {"name": "keys.v1"}}),
    Good(D, {SOURCE + "uri": "az://container/x", SOURCE + "secretRef": {"name": "keys"}}),
    Good(
        D,
        {SOURCE + "include": ["train/**/*.tar", "*.json", "val/", "[ab]/?"], SOURCE + "exclude": ["**/..tmp", "a..b"]},
    ),
    Good(D, {"spec.version": {"policy": "Pinned"}}),
    Good(D, {"spec.version": {"policy": "Pinned", "manifest": "xxh3:0123456789abcdef"}}),
    Good(D, {"spec.version": {"refreshSeconds": 1}}),
    Good(D, {"spec.replicas": 2, "spec.eviction": "Epoch", "spec.quota": 1, "spec.ttlSeconds": 2147483647}),
    Good(L, {"spec.paths": ["train/", "a/b.tar", "..a"], "spec.bytesPerSecond": "1Gi", "spec.suspend": True}),
    *(
        Good(L, {"spec.policy": "Cron", "spec.schedule": value})
        for value in ("30 2 * * *", "*/5 0-6,22 1 JAN mon-fri", "@daily", "@hourly")
    ),
    Good(L, {"spec.ttlSecondsAfterFinished": 0}),
    Good(L, {"spec.policy": "OnChange", "spec.verify": False}),
]
