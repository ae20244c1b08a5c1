"""Configuration: what is accepted, and that a refusal names the field and what is allowed."""

import contextlib
import copy
import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core import config, limits, structure
from shoal_core.errors import ConfigError

FULL = """
node_name = "node-1"
state_directory = "/var/lib/shoal"
linger_s = 600
[doors]
unix = "/run/shoal/node.sock"
tcp = "[::1]:7000"
control = "unix:/run/shoal/control.sock"
[dram]
budget_bytes = "8GiB"
huge_pages = "never"
[[nvme]]
directory = "/mnt/nvme0/shoal"
budget_bytes = "1.5TiB"
[fill]
block_size_bytes = "192Ki"
concurrency = 8
timeout_s = 30
range_bytes_max = "4MiB"
retries = 0
[leases]
client_bytes_max = "1 GiB"
[origins."s3://bucket"]
endpoint = "http://127.0.0.1:9000"
bytes_option = "8GiB"
[datasets.images]
url = "s3://bucket/images"
eviction = "epoch"
quota_bytes = "2GiB"
ttl_s = 3600
"""

LEAST: dict[str, Any] = {"node_name": "n", "dram": {"budget_bytes": "64MiB"}, "doors": {"unix": "/s"}}


def changed(path: str, value: object) -> dict[str, Any]:
    """LEAST with one field set."""
    data = copy.deepcopy(LEAST)
    place = data
    *tables, last = path.split(".")
    for table in tables:
        place = place.setdefault(table, {})
    place[last] = value
    return data


def refusal(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(data)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_full_configuration():
    node = config.parse(tomllib.loads(FULL))
    assert node.node_name == "node-1"
    assert node.linger_s == 600
    assert node.doors.tcp == "[::1]:7000"
    assert node.dram == config.Dram(budget_bytes=8 << 30, huge_pages="never")
    assert node.nvme == (config.Nvme(directory="/mnt/nvme0/shoal", budget_bytes=3 << 39),)
    assert node.fill.block_size_bytes == 192 << 10
    assert node.fill.timeout_s == 30
    assert node.lease_bytes_max == 1 << 30
    assert node.origins == {"s3://bucket": {"endpoint": "http://127.0.0.1:9000", "bytes_option": "8GiB"}}
    images = config.Dataset(url="s3://bucket/images", eviction="epoch", quota_bytes=2 << 30, ttl_s=3600)
    assert node.datasets == {"images": images}
    assert node.slab_bytes == 16 << 20


def test_the_least_configuration():
    node = config.parse(LEAST)
    assert node.nvme == ()
    assert node.linger_s is None
    assert node.fill == config.Fill()
    assert node.slab_bytes == limits.BLOCK_BYTES_DEFAULT
    assert node.lease_bytes_max == 48 << 20


def test_a_configuration_survives_json():
    node = config.parse(tomllib.loads(FULL))
    assert config.parse(msgspec.json.decode(msgspec.json.encode(node))) == node


def test_a_config_is_frozen():
    with pytest.raises(AttributeError):
        config.parse(LEAST).node_name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("nodename", "x", "nodename: unknown field; did you mean node_name?"),
        ("dram.budget", "1GiB", "did you mean budget_bytes? (allowed: budget_bytes, huge_pages)"),
        ("doors.http", "x", "doors.http: unknown field (allowed: unix, tcp, control)"),
        ("dram", 5, "dram: expected a table, got 5"),
        ("dram.budget_bytes", "8 gigs", 'a number of bytes or text like "512MiB" or "8GiB", got \'8 gigs\''),
        ("dram.budget_bytes", -1, "dram.budget_bytes: expected a number of bytes"),
        ("dram.budget_bytes", True, "dram.budget_bytes: expected a number of bytes"),
        ("dram.budget_bytes", 1 << 20, "1048576 is too small for blocks of 4194304 bytes: at least 4718592"),
        ("dram.huge_pages", "yes", "dram.huge_pages: 'yes' is not allowed (allowed: auto, never, require)"),
        ("dram.huge_pages", [], "dram.huge_pages: [] is not allowed"),
        ("fill.concurrency", "many", "fill.concurrency: expected int, got str (it is 'many')"),
        ("fill.concurrency", 0, "fill.concurrency: expected int >= 1 (it is 0)"),
        ("fill.concurrency", 257, "fill.concurrency: expected int <= 256"),
        ("fill.timeout_s", float("inf"), "fill.timeout_s: expected float <= 3600"),
        ("fill.block_size_bytes", "5MB", "fill.block_size_bytes: expected a number of bytes"),
        ("fill.block_size_bytes", 100_000, "fill.block_size_bytes: 100000 is neither a power of two"),
        ("fill.block_size_bytes", 256, "fill.block_size_bytes: 256 is neither"),
        ("fill.block_size_bytes", "32MiB", "of at most 16 MiB"),
        ("leases.client_bytes_max", "65MiB", "leases.client_bytes_max: 68157440 is more than the DRAM budget"),
        ("linger_s", -1, "linger_s: expected float >= 0"),
        ("node_name", "", "node_name: expected str of length >= 1"),
        ("state_directory", "here", "state_directory: 'here' is not an absolute path"),
        ("doors.unix", "node.sock", "doors.unix: 'node.sock' is not an absolute path"),
        ("doors.unix", "/" + "é" * 54, "doors.unix: a socket's path has at most 107 bytes, this one 109"),
        ("doors.tcp", "7000", "doors.tcp: '7000' is not host:port"),
        ("doors.tcp", "host:70000", "doors.tcp: 'host:70000' is not host:port"),
        ("doors.tcp", "::1:7000", "doors.tcp: '::1:7000' is not host:port (IPv6 as [::1]:port)"),
        ("doors.control", "unix:relative", "doors.control: 'relative' is not an absolute path"),
        ("doors.control", "here", "doors.control: 'here' is not host:port"),
        ("nvme", "/mnt", "nvme: expected a list, got '/mnt'"),
        ("nvme", [{"directory": "/mnt"}], "nvme[0].budget_bytes: this field is required"),
        ("nvme", [{"directory": "mnt", "budget_bytes": "1GiB"}], "nvme[0].directory: 'mnt' is not an absolute path"),
        ("nvme", [{"directory": "/mnt", "budget_bytes": 4096}], "4096 is less than one slab, 4194304 bytes"),
        ("nvme", [{"directory": "/a", "budget_bytes": "1GiB"}] * 2, "nvme[1]: at present there can be one directory"),
        ("origins", [], "origins: expected a table, got []"),
        ("origins", {"s3://b": {"retries": 3}}, 'origins."s3://b".retries: expected str, got int (it is 3)'),
        ("origins", {"bucket": {}}, "origins.bucket: the name is a URL prefix"),
        ("datasets.Images", {"url": "s3://b"}, "datasets.Images: a name is a DNS label"),
        ("datasets", {"a.b.c": {"url": "s3://b"}}, 'datasets."a.b.c": a name is a DNS label'),
        ("access.key", "/k", "access.key: unknown field (allowed: key_file, pool, volumes_directory, share_memory_"),
        ("access.key_file", "key", "access.key_file: 'key' is not an absolute path"),
        ("access.volumes_directory", "v", "access.volumes_directory: 'v' is not an absolute path"),
        ("access.share_memory_with", ["a", "B"], "access.share_memory_with[1]: 'B' is neither a namespace nor"),
        ("access.share_memory_with", "*", "access.share_memory_with: expected a list, got '*'"),
        ("tenant", "", "tenant: expected str of length >= 1"),
        ("datasets.a", {"url": "s3://b", "endpoint": "minio:9000"}, "datasets.a.endpoint: 'minio:9000' is not an http"),
        ("datasets.a", {"url": "s3://b", "include": ["/x"]}, "datasets.a.include[0]: '/x' is not relative"),
        ("datasets.a", {"url": "s3://b", "exclude": [""]}, "datasets.a.exclude[0]: a pattern has 1 to 256"),
        ("datasets.a", {"url": "s3://b", "refresh_s": 0}, "datasets.a.refresh_s: expected"),
        ("cluster.view", "kubernetes:shoal-system", "nor kubernetes:NAMESPACE/NAME"),
        ("datasets.-a", {"url": "s3://b"}, "datasets.-a: a name is a DNS label"),
        ("datasets.a", {"url": "/data"}, "datasets.a.url: '/data' is not a URL"),
        ("datasets.a", {"url": "s3://b", "eviction": "lru"}, "'lru' is not allowed (allowed: s3fifo, epoch, pin)"),
        ("datasets.a", {"url": "s3://b", "eviction": "epochs"}, "'epochs' is not allowed; did you mean epoch?"),
        ("datasets.a", {"url": "s3://b", "quota_bytes": "1GiB"}, "a.quota_bytes: 1073741824 is not between one block"),
        ("datasets.a", {"url": "s3://b", "quota_bytes": "1MiB"}, "a.quota_bytes: 1048576 is not between one block"),
        ("datasets.a", {"url": "s3://b", "ttl_s": 0}, "datasets.a.ttl_s: expected int >= 1"),
        ("datasets.a", {"url": "s3://b", "ttl_s": "x" * 200}, "xxx..."),
    ],
)  # fmt: skip
def test_refusals_name_the_field_and_what_is_allowed(path: str, value: object, message: str):
    assert message in refusal(changed(path, value))


def test_what_is_missing_is_named():
    assert refusal({}) == "node_name: this field is required"
    assert refusal([]) == "the configuration: expected a table, got []"
    assert refusal({**LEAST, "doors": {}}) == "doors: at least one of unix and tcp is needed"
    assert refusal({**LEAST, 3: 4}).startswith("3: unknown field")


def test_a_quota_may_be_as_large_as_the_largest_tier():
    data = changed("datasets.a", {"url": "s3://b", "quota_bytes": "1GiB"})
    data["nvme"] = [{"directory": "/mnt", "budget_bytes": "1GiB"}]
    assert config.parse(data).datasets["a"].quota_bytes == 1 << 30


def test_a_node_may_have_tcp_alone_and_a_data_set_no_quota():
    data = {**changed("datasets.a", {"url": "s3://b"}), "doors": {"tcp": "0.0.0.0:0"}}
    assert config.parse(data).datasets == {"a": config.Dataset(url="s3://b")}


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0), (5, 5), ("5", 5), ("5B", 5), ("4KiB", 4096), ("4Ki", 4096), ("1.5 MiB", 3 << 19), (" 2TiB ", 2 << 40),
        ("3G", None), ("3GB", None), ("", None), ("GiB", None), ("1e3", None), (-1, None), (1.5, None), (None, None),
        (False, None), ("٣KiB", None),
    ],
)  # fmt: skip
def test_sizes(value: object, size: int | None):
    assert structure.parse_size(value) == size


@given(budget=st.integers(0, 1 << 42), block_log=st.integers(9, 24))
def test_slab_size_is_a_power_of_two_of_about_a_64th(budget: int, block_log: int):
    slab = config.slab_bytes(budget, 1 << block_log)
    assert slab.bit_count() == 1
    assert max(1 << block_log, limits.PAGE_BYTES) <= slab <= limits.SLAB_BYTES_MAX
    if slab not in (1 << block_log, limits.PAGE_BYTES, limits.SLAB_BYTES_MAX):
        assert slab <= budget / 64 < 2 * slab


def test_a_block_that_is_no_power_of_two_fits_its_slab():
    assert config.slab_bytes(1 << 20, 3 << 20) == 4 << 20


def test_who_is_served():
    given = {
        "key_file": "/key", "pool": "p", "volumes_directory": "/v", "share_memory_with": ["team-a"],
    }  # fmt: skip
    node = config.parse({**LEAST, "access": given, "tenant": "shoal"})
    assert node.access == config.Access("/key", "p", "/v", ("team-a",)) and node.tenant == "shoal"
    assert node.access.shares_memory_with("team-a") and not node.access.shares_memory_with("team-b")
    everybody = config.parse({**LEAST, "access": {"share_memory_with": ["*"]}}).access
    assert everybody.shares_memory_with("team-b")
    assert config.parse(LEAST).access == config.Access() and config.parse(LEAST).tenant is None
    assert not config.Access().shares_memory_with("*")


def test_a_data_set_may_be_named_by_namespace_and_name():
    node = config.parse(changed("datasets", {"team-a.images": {"url": "s3://b"}}))
    assert node.datasets == {"team-a.images": config.Dataset(url="s3://b")}
    client = config.parse_client({"addresses": ["unix:/x"], "datasets": {"team-a.images": "s3://b"}})
    assert client.datasets == {"team-a.images": "s3://b"} and client.token_file is None


def test_a_view_may_be_in_kubernetes():
    node = config.parse({**LEAST, "cluster": {"view": "kubernetes:shoal-system/shoal-fast"}})
    assert node.cluster is not None
    assert config.in_kubernetes(node.cluster.view) == ("shoal-system", "shoal-fast")
    assert config.in_kubernetes("/etc/view.json") is None


def test_a_client_configuration():
    data = {"addresses": ["unix:/run/shoal/node.sock", "tcp:host:7000"], "datasets": {"a": "s3://b/c"}}
    client = config.parse_client(data)
    assert client.addresses == ("unix:/run/shoal/node.sock", "tcp:host:7000")
    assert client.datasets == {"a": "s3://b/c"}
    assert config.parse_client({"addresses": ["tcp:[::1]:1"]}).datasets == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"addresses": []}, "addresses: at least one is needed"),
        ({"addresses": ["/run/x"]}, "addresses[0]: '/run/x' begins with neither unix: nor tcp:"),
        ({"addresses": ["unix:x"]}, "addresses[0]: 'x' is not an absolute path"),
        ({"addresses": ["tcp:x"]}, "addresses[0]: 'x' is not host:port"),
        ({"addresses": [3]}, "addresses[0]: expected str, got int"),
        ({"adresses": []}, "adresses: unknown field; did you mean addresses?"),
        ({"addresses": ["unix:/x"], "datasets": {"a b": "s3://b"}}, 'datasets."a b": a name is a DNS label'),
        ({"addresses": ["unix:/x"], "datasets": {"a": "b"}}, "datasets.a: 'b' is not a URL"),
        ({"addresses": ["unix:/x"], "token_file": "token"}, "token_file: 'token' is not an absolute path"),
    ],
)
def test_client_refusals(data: dict[str, object], message: str):
    with pytest.raises(ConfigError) as caught:
        config.parse_client(data)
    assert message in str(caught.value)


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@given(
    st.sampled_from(["dram", "doors", "nvme", "fill", "leases", "origins", "datasets", "linger_s", "node_name"]), trees
)
def test_any_data_gives_a_configuration_or_a_config_error(field: str, value: object):
    with contextlib.suppress(ConfigError):
        assert isinstance(config.parse({**LEAST, field: value}), config.NodeConfig)
