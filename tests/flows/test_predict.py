"""Test predictions for a folder the way a user runs them, in separate processes."""

import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.predict import describe_result
from serving.folder.results import predict_folder
from stages.core.data.idx import write_idx
from tests.conftest import PROJECT, Clone, wait_for
from tests.serving.conftest import DIGITS
from tests.serving.folder.conftest import IMAGES, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "my images")


def start(given: Path, output: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.predict", str(given), f"--output={output}", f"--model={DIGITS}", *arguments]
    return subprocess.Popen(
        command, cwd=PROJECT, env=Clone.environment(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_killed_and_started_again(folder: Path, tmp_path: Path) -> None:
    for turn in range(20):
        write_idx(folder / f"more-{turn:03}-idx3-ubyte", IMAGES)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(folder, killed, "--batch-size=1")
    wait_for(lambda: [*killed.glob("parts-*/*.parquet")], 60, "parts")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "predictions.parquet").exists()
    assert "by an earlier run" in finish(start(folder, killed, "--batch-size=1"))
    finish(start(folder, alone, "--batch-size=1"))
    for name in ("predictions.parquet", "predictions.csv"):
        assert (killed / name).read_bytes() == (alone / name).read_bytes()
    assert not [*killed.glob("parts-*")]


def test_flow(folder: Path, tmp_path: Path, prefect_env: dict[str, str], client: SyncPrefectClient) -> None:
    code = f"from flows.predict import predict; predict({str(folder)!r}, {str(tmp_path / 'out')!r}, {str(DIGITS)!r})"
    environment = Clone.environment(prefect_env)
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, check=True, capture_output=True)
    keys = ArtifactFilter(key=ArtifactFilterKey(any_=["predictions", "predict-progress"]))
    found = {item.key: item.data for item in client.read_artifacts(artifact_filter=keys)}
    assert found["predict-progress"] == 100.0
    assert "unsure among them" in str(found["predictions"])
    assert len(pl.read_parquet(tmp_path / "out/predictions.parquet")) == 200


def test_the_last_line_of_the_output(folder: Path, tmp_path: Path) -> None:
    result = predict_folder(folder, tmp_path / "out", DIGITS, 16, lambda *_: None)
    assert describe_result(result) == (
        f"200 images; {result.unsure:,} unsure, 0 errors, 2 other files skipped (labels-idx1-ubyte, notes.txt),"
        f" 0 hidden files or folders; see {tmp_path}/out/predictions.parquet; the model is not verified to match the"
        " evaluated one; `make run` compares them"
    )
    again = predict_folder(folder, tmp_path / "out", DIGITS, 16, lambda *_: None)
    assert describe_result(again).startswith("200 images, 200 of them by an earlier run; ")
