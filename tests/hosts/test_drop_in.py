"""The samples of docs/drop-in.md run as they stand, each with the library it is about, on data of a real S3 server."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest

import shoal
from tests.hosts.conftest import REPOSITORY, RunHost
from tests.support.s3_server import S3Server

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")

from torch.distributed import checkpoint as dcp  # noqa: E402

PAGE = (REPOSITORY / "docs" / "drop-in.md").read_text("utf-8")
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
SAMPLES = {title: "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for title, text in SECTIONS.items()}
CHECKS = {
    "torch DataLoader": "assert pictures.shape == (4, 300) and sorted(set(images.classes)) == ['cat', 'dog']",
    "WebDataset": "assert text == 'shard' and label == 7",
    "MosaicML Streaming": "assert sorted(numbers) == list(range(40))",
    "Hugging Face datasets": "assert total == sum(range(500))",
    "pandas and pyarrow": "assert len(table) == 250 and column.column('number')[0].as_py() == 250",
    "PyTorch DCP": "assert state['weight'].sum() == 499500",
}
"""What is true after each sample."""

CACHED = {
    "torch DataLoader": "s3://bucket/images/cat/0",
    "WebDataset": "s3://bucket/shards/003.tar",
    "MosaicML Streaming": "s3://bucket/mds/index.json",
    "Hugging Face datasets": "s3://bucket/tables/0.parquet",
    "pandas and pyarrow": "s3://bucket/tables/1.parquet",
    "PyTorch DCP": "s3://bucket/checkpoints/step-1000/.metadata",
}
"""An object that each sample must have brought into the cache."""

OWN_ENVIRONMENT = {"WebDataset": "webdataset", "MosaicML Streaming": "mosaic"}
RUN_ALL = "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path, run_name='__main__')\nprint('{}')"
WRITE_MDS = """
import streaming
with streaming.MDSWriter(out="s3://bucket/mds", columns={"number": "int"}, size_limit=200) as writer:
    for number in range(40):
        writer.write({"number": number})
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first run makes the environments


def test_each_row_of_the_table_has_a_sample() -> None:
    rows = re.findall(r"^\| \[[^]]+\]\(#([a-z-]+)\) \|", PAGE, re.MULTILINE)
    assert rows == [title.lower().replace(" ", "-") for title in SAMPLES]
    assert list(SAMPLES) == list(CHECKS) == list(CACHED)


@pytest.fixture
def bucket(s3_server: S3Server, tmp_path: Path) -> None:
    for number in range(8):
        s3_server.put("bucket", f"images/{'cat' if number % 2 else 'dog'}/{number // 2}", bytes([number]) * 300)
    for number in range(4):
        s3_server.put("bucket", f"shards/{number:03}.tar", _tar({"a.txt": b"shard", "a.cls": b"7"}))
    for number in range(2):
        out = io.BytesIO()
        pd.DataFrame({"number": range(250 * number, 250 * (number + 1))}).to_parquet(out)
        s3_server.put("bucket", f"tables/{number}.parquet", out.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is no distributed run
        dcp.save({"weight": torch.arange(1000.0)}, checkpoint_id=str(tmp_path / "step"))
    for file in (tmp_path / "step").iterdir():
        s3_server.put("bucket", f"checkpoints/step-1000/{file.name}", file.read_bytes())


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _script(folder: Path, title: str, before: str = "") -> Path:
    path = folder / f"{title.replace(' ', '_')}.py"
    path.write_text(f"{before}\n{SAMPLES[title]}\n{CHECKS[title]}\n")
    return path


def _assert_cached(client: shoal.Client, titles: list[str]) -> None:
    found = client.inspect([CACHED[title] for title in titles])
    assert [title for title, object_ in zip(titles, found, strict=True) if not object_.dram_bytes] == []


def test_samples_for_what_our_own_environment_has(bucket: None, client: shoal.Client, tmp_path: Path) -> None:
    titles = [title for title in SAMPLES if title not in OWN_ENVIRONMENT]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *(_script(tmp_path, title) for title in titles)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    _assert_cached(client, titles)


@pytest.mark.parametrize("title", OWN_ENVIRONMENT)
def test_samples_for_libraries_with_an_environment_of_their_own(
    title: str, bucket: None, client: shoal.Client, run_host: RunHost, s3_server: S3Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_server.endpoint)  # Streaming's own, for its writer
    before = WRITE_MDS if title == "MosaicML Streaming" else ""
    run_host(OWN_ENVIRONMENT[title], "-c", RUN_ALL, str(_script(tmp_path, title, before)))
    _assert_cached(client, [title])
