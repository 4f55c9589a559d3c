"""Test that a program reports an error in one message, without a traceback, and suggests names."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.files.errors import TemporaryError, UserError, did_you_mean, redact, report_errors
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("the reason"), 1, "the reason"),
        (TemporaryError("the network"), os.EX_TEMPFAIL, "the network"),
        (FileNotFoundError(2, "No such file", "a.yaml"), 1, "[Errno 2] No such file: 'a.yaml'"),
        (RuntimeError("CUDA out of memory."), 1, "out of memory, try a smaller batch_size: CUDA out of memory."),
    ],
)
def test_an_error_is_one_message(error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, report_errors("stage"):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"stage: error: {message}\n"


@pytest.mark.parametrize("bug", [RuntimeError("shapes do not match"), KeyError("x"), ValueError("x")])
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug)), report_errors("stage"):
        raise bug


def test_only_a_near_name_is_suggested() -> None:
    assert did_you_mean("convnte", ["mlp", "convnet"]) == ", did you mean 'convnet'?"
    assert did_you_mean("zzz", ["mlp", "convnet"]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at https://user:secret@host/a failed", "at https://***@host/a failed"),
        ("'s3://b/k?token=secret&x=(1)', retry", "'s3://b/k?***', retry"),
        ("https://host/a#secret", "https://host/a?***"),
        ("http://host/a?x=1 and http://host/b?y=2.", "http://host/a?*** and http://host/b?***."),
        ("is this a question? no", "is this a question? no"),
    ],
)
def test_urls_lose_their_secrets(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.slow
def test_a_stage_interrupted_at_work_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys; sys.argv[0] = '-m'\n"  # This is its value while Python locates a module to run.
        "from pathlib import Path\n"
        "from stages.core.files.errors import report_errors\n"
        "with report_errors('stage'):\n"
        "    Path('pipe').read_bytes()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with (tmp_path / "pipe").open("wb"):  # Opening it waits for the reader.
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "stage: interrupted\n"
    assert process.returncode == 130
