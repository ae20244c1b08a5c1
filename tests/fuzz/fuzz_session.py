"""atheris on a node's session: whatever arrives on a connection, the node answers or hangs up, and forgets it.

`python -m tests.fuzz.fuzz_session [libFuzzer options]`, for instance -max_total_time=600, or a file that crashed.

Each input is one connection's life, run in this thread over the memory door against a real node: some inputs are raw
bytes, others begin with a proper hello and go on with frames whose bodies are mutated requests. Afterwards no client
and no lease may be left, the state must check out, and now and then a proper client must read proper bytes.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false
from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shoal_core", "shoal_node", "shoal_transport"]):
    import shoal
    from shoal import derived
    from shoal_core import frame, verbs
    from shoal_core.config import parse
    from shoal_core.verbs import (
        complain,
        dataset,
        evict,
        get,
        hello,
        inspect,
        listing,
        map,
        release,
        resolve,
        stat,
        store,
    )
    from shoal_node import assembly
    from shoal_node.session import Session
    from shoal_transport.memory import MemoryListener

CONTENT = bytes(range(256)) * 1024
CHECK_EVERY = 200


class Target:
    """A node on a loop in a thread, and one input's way through it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "file"
        self.file.write_bytes(CONTENT)
        self.url = f"file://{self.file}"
        self._count = 0
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True).start()
        if not started.wait(60):
            raise RuntimeError("the node did not start")
        self.client = shoal.connect(self.running.memory)
        assert self.client.read(self.url) == CONTENT
        self.fingerprint = self.client.info(self.url).fingerprint
        self.requests = self._requests()

    async def _serve(self, started: threading.Event) -> None:
        config = parse({
            "node_name": "fuzzed",
            "dram": {"budget_bytes": "16MiB", "huge_pages": "never"},
            "doors": {"unix": str(self.file.parent / "node.sock")},
            "fill": {"block_size_bytes": "64KiB", "timeout_s": 0.2, "retries": 0},
        })  # fmt: skip
        async with assembly.running(config) as self.running:
            started.set()
            await asyncio.get_running_loop().create_future()

    def _requests(self) -> list[tuple[int, bytes]]:
        """One proper request of each verb: what mutations start from."""
        claim = resolve.Wanted("derived:fuzz", 10, "1")
        (made_here,) = derived.claims(self.client, [claim])
        made = [
            (hello.KIND, hello.Request(bytes(16), hello.EVENTS, "fuzz")),
            (hello.KIND, hello.Request(bytes(16), hello.REQUESTS, "fuzz")),
            (resolve.KIND, resolve.Request([resolve.Wanted(self.url)], 50)),
            (get.KIND, get.Request([self.fingerprint], [get.Item(0, 0, 0, 10)], [get.Ahead(0, 1, 2)], 50, True)),
            (get.KIND, get.Request([self.fingerprint], [get.Item(0, 1, 0, 10)], [], 50, False)),
            (release.KIND, release.Request([(0, 1)], [(0, 0, 1)])),
            (map.KIND, map.Request(0)),
            (listing.KIND, listing.Request(f"file://{self.file.parent}", 0, 50)),
            (inspect.KIND, inspect.Request([self.fingerprint])),
            (evict.KIND, evict.Request([bytes(16)])),
            (complain.KIND, complain.Request(0, 0)),
            (dataset.KIND, dataset.Request("d", self.url, "epoch", None, None)),
            (stat.KIND, stat.Request()),
            (resolve.KIND, resolve.Request([claim], 50)),
            (store.KIND, store.Request(made_here.fingerprint, 0, bytes(10), 50)),
        ]
        return [(kind, verbs.encode(request)) for kind, request in made]

    def one_input(self, data: bytes) -> None:
        """Called by the fuzzer."""
        provider = atheris.FuzzedDataProvider(data)
        stream = self._conversation(provider) if provider.ConsumeBool() else provider.ConsumeBytes(len(data))
        listener = MemoryListener()
        channel = listener.connect()
        connection = listener.accept()
        assert connection is not None
        channel.answer(stream)
        channel.close()
        Session(self.running.server, connection).run()
        node = self.running.node
        with node.step() as state:
            others = [
                client for client in state.leases.clients.values() if not client.process.startswith("fuzz_session")
            ]
            assert not others, "a client outlived its connection"
        self._count += 1
        if self._count % CHECK_EVERY == 0:
            with node.step() as state:
                state.check()
                if not node.arrivals._flights:  # a fill holds what it reads from disk
                    held = Counter(entry for client in state.leases.clients.values() for entry in client.entries)
                    leaked = {entry: count for entry, count in enumerate(state.index.leases) if count != held[entry]}
                    assert not leaked, f"blocks held by nobody: {leaked}"
            offset = self._count % len(CONTENT)
            assert self.client.read(self.url, offset, 1000) == CONTENT[offset : offset + 1000]

    def _conversation(self, provider: atheris.FuzzedDataProvider) -> bytes:
        kind, body = self.requests[provider.ConsumeIntInRange(0, 1)]
        frames = [frame.encode(kind, 1, body)]
        for number in range(provider.ConsumeIntInRange(0, 6)):
            kind, body = self.requests[provider.ConsumeIntInRange(0, len(self.requests) - 1)]
            if provider.ConsumeBool():
                mutable = bytearray(body)
                for _ in range(provider.ConsumeIntInRange(1, 4)):
                    mutable[provider.ConsumeIntInRange(0, len(mutable) - 1)] = provider.ConsumeIntInRange(0, 255)
                body = bytes(mutable)
            if provider.ConsumeIntInRange(0, 9) == 0:
                kind = provider.ConsumeIntInRange(0, 255)
            frames.append(frame.encode(kind, number, body))
        return b"".join(frames) + provider.ConsumeBytes(20)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        target = Target(Path(directory))
        atheris.Setup(sys.argv, target.one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("SHOAL_RUNTIME_DIR", tempfile.gettempdir())
    main()
