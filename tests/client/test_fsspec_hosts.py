"""pandas, pyarrow and Hugging Face datasets read through the cache without a change to them."""

from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pa_dataset = pytest.importorskip("pyarrow.dataset")
pa_parquet = pytest.importorskip("pyarrow.parquet")

import fsspec  # noqa: E402

FRAME = pd.DataFrame({"number": range(5000), "text": [f"row {n}" for n in range(5000)]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parquet").mkdir()
    FRAME[:2000].to_parquet(tmp_path / "parquet" / "0.parquet")
    FRAME[2000:].reset_index(drop=True).to_parquet(tmp_path / "parquet" / "1.parquet")
    FRAME.to_csv(tmp_path / "all.csv", index=False)
    FRAME.to_csv(tmp_path / "all.csv.gz", index=False)
    return tmp_path


def test_pandas(folder: Path, address: str) -> None:
    options = {"address": address}
    assert pd.read_csv(f"shoal+file://{folder}/all.csv", storage_options=options).equals(FRAME)
    assert pd.read_csv(f"shoal+file://{folder}/all.csv.gz", storage_options=options).equals(FRAME)
    chained = {"shoal": options}
    assert pd.read_csv(f"shoal::file://{folder}/all.csv", storage_options=chained).equals(FRAME)
    one = pd.read_parquet(f"shoal+file://{folder}/parquet/0.parquet", storage_options=options)
    assert one.equals(FRAME[:2000])
    both = pd.read_parquet(f"shoal+file://{folder}/parquet", storage_options=options)
    assert both.reset_index(drop=True).equals(FRAME)


def test_pyarrow(folder: Path, address: str) -> None:
    fs = fsspec.filesystem("shoal+file", address=address)
    read = pa_parquet.read_table(f"{folder}/parquet/0.parquet", filesystem=fs, columns=["text"])
    assert read.to_pandas().equals(FRAME[:2000][["text"]])
    dataset = pa_dataset.dataset(f"{folder}/parquet", filesystem=fs, format="parquet")
    assert dataset.count_rows() == 5000
    found = dataset.to_table(filter=pa_dataset.field("number") >= 4998).to_pandas()
    assert found["text"].tolist() == ["row 4998", "row 4999"]


@pytest.mark.slow
def test_hugging_face_datasets(
    folder: Path, config_for_connect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    cache = str(tmp_path / "hf-cache")
    url = f"shoal+file://{folder}"
    csv = datasets.load_dataset("csv", data_files=f"{url}/all.csv", split="train", cache_dir=cache)
    assert csv.to_pandas().equals(FRAME)
    parquet = datasets.load_dataset("parquet", data_files=f"{url}/parquet/*.parquet", split="train", cache_dir=cache)
    assert parquet.to_pandas().equals(FRAME)
    stream = datasets.load_dataset("parquet", data_files=[f"{url}/parquet/1.parquet"], split="train", streaming=True)
    assert next(iter(stream)) == {"number": 2000, "text": "row 2000"}
