"""A training run that goes wrong or dies leaves nothing wrong behind, and is resumed to the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch

from stages import download, evaluate, export, normalize, parity, train
from stages.core.data.splits import read_dataset
from stages.core.evaluation.inference import infer
from stages.core.evaluation.metrics import measure
from stages.core.files import layout
from stages.core.files.errors import UserError
from stages.core.files.schemas import history as history_schema
from stages.core.files.tables import read_table
from stages.core.machine.device import autocast_dtype
from stages.core.nets.checkpoint import load_model
from stages.core.training.batches import Examples, as_tensors
from stages.core.training.loop import evaluate_loss
from stages.core.training.progress import Row, TrainingProgress
from tests.conftest import CLASSES, PROJECT, Clone, write_params
from tests.core.training.small_runs import CONVNET, CPU, CUDA, MLP, SGD, same_weights
from tests.core.training.small_runs import NO_AUGMENTATION as OFF
from tests.core.training.small_runs import NO_REGULARIZATION as NONE

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Undo what a stage's `main` changes for the whole process: how a GPU computes."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def normalized(workspace: Path) -> Path:
    download.main()
    normalize.main()
    return workspace


@on_cuda
@pytest.mark.parametrize("recipe", ["convnet", "accurate", "lstm", "transformer"])
def test_trained_on_cuda_it_is_exported_and_proven(normalized: Path, params: dict[str, Any], recipe: str) -> None:
    params["recipe"], params["machine"]["device"] = recipe, "cuda"
    write_params(params, normalized)
    for stage in (train, evaluate, export, parity):
        stage.main()
    dtype = str(autocast_dtype("auto", CUDA)).removeprefix("torch.")
    assert f", {dtype}, " in load_model()[1].environment
    assert json.loads(layout.PARITY_DETAILS.read_text())["max_abs_diff"] < 1e-4


@on_cuda
def test_torchrun_trains_over_nccl(normalized: Path, params: dict[str, Any]) -> None:
    """Each GPU has a process, whether there is one or more."""
    params["machine"]["device"] = "cuda"
    choose(normalized, params, epochs=3, model=CONVNET, augmentation=OFF | {"shift": 2}, optimizer=SGD)
    train.main()
    alone = read_history()
    processes = torch.cuda.device_count()
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "stages.train"]
    with start(sys.executable, *launcher) as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert f"on {processes} x cuda" in Path("train.log").read_text()
    together = read_history()
    for name in ("train_loss", "validation_loss"):
        assert together[name].to_list() == pytest.approx(alone[name].to_list(), abs=1e-3)


@on_cuda
def test_on_cuda_it_is_resumed_after_a_kill(normalized: Path, params: dict[str, Any]) -> None:
    params["machine"]["device"] = "cuda"
    slow = SGD | {"lr": 0.001}  # The losses stay large.
    choose(normalized, params, epochs=60, batch_size=10, optimizer=slow, augmentation=OFF | {"shift": 2})
    train.main()
    undisturbed = read_history()
    with start() as process:
        wait_for_line("train: epoch 5/", process)
        process.kill()
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "resumed after epoch" in Path("train.log").read_text()
    history = read_history()
    assert history["train_loss"].to_list() == pytest.approx(undisturbed["train_loss"].to_list(), rel=1e-3)


def read_history() -> pl.DataFrame:
    return read_table(layout.HISTORY, history_schema())


def read_validation() -> Examples:
    return as_tensors(read_dataset().read("validation"))


def test_main_writes_model_history_and_metrics(
    normalized: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params["recipe"] = "convnet"
    params["recipes"]["convnet"]["precision"] = "float32"
    write_params(params, normalized)
    monkeypatch.setenv("RANK", "1")  # Without torchrun, it means nothing.
    train.main()

    history = read_history()
    assert history["epoch"].to_list() == [1, 2]
    calibrated, manifest = load_model()
    assert (manifest.recipe, manifest.dataset) == ("convnet", "tiny")
    assert manifest.spec == read_dataset().spec
    assert (manifest.spec.classes, manifest.spec.shape) == (CLASSES, (1, 28, 28))
    assert manifest.data_sha256 == layout.NORMALIZE.digest(layout.NORMALIZED)
    assert manifest.weights == sum(weight.numel() for weight in calibrated.parameters())
    layout.TRAIN.verify(layout.MODEL, layout.MANIFEST, layout.HISTORY, layout.VALIDATION_METRICS)

    # The epoch of the lowest validation loss is kept, the first one of equals, as it was then.
    assert manifest.epoch == 1 + int(history["validation_loss"].arg_min() or 0)
    validation = read_validation()
    kept = history.row(manifest.epoch - 1, named=True)
    loss, accuracy = evaluate_loss(calibrated.model, validation, manifest.settings.loss, CPU)
    assert accuracy == kept["validation_accuracy"]
    assert loss == pytest.approx(kept["validation_loss"], rel=1e-4)
    scores, _ = measure(infer(calibrated, validation.inputs, CPU, 1000), validation.labels)
    assert json.loads(layout.VALIDATION_METRICS.read_text()) == {
        "validation_accuracy": kept["validation_accuracy"],
        "validation_f1": pytest.approx(scores["f1"]),
        "validation_loss": pytest.approx(scores["loss"]),
    }

    live = json.loads((layout.LIVE / "metrics.json").read_text())
    assert live["step"] == 1
    assert live["train_loss"] == pytest.approx(history["train_loss"][-1])
    curve = pl.read_csv(layout.LIVE / "plots/metrics/validation_loss.tsv", separator="\t")
    assert curve["validation_loss"].to_list() == pytest.approx(history["validation_loss"].to_list())


@pytest.mark.parametrize("recipe", ["article", "convnet"])
def test_same_seed_same_files(normalized: Path, params: dict[str, Any], recipe: str) -> None:
    files, weights = [], []
    for seed in (1, 1, 2):
        params["recipe"], params["seed"] = recipe, seed
        write_params(params, normalized)
        train.main()
        files.append((layout.MODEL.read_bytes(), layout.MANIFEST.read_bytes()))
        weights.append(load_model()[0].state_dict())
    assert files[0] == files[1]
    assert not same_weights(weights[0], weights[2])


def test_a_loss_that_is_not_finite_ends_the_run_without_outputs(normalized: Path, params: dict[str, Any]) -> None:
    params["recipe"] = "article"
    params["recipes"]["article"]["optimizer"].update(lr=1000.0, weight_decay=1000.0)
    write_params(params, normalized)
    expected = (
        r"^epoch 1 ended with a loss of (nan|inf) .*; lower recipes\.article\.optimizer\.lr in params\.yaml, now 1"
    )
    with pytest.raises(UserError, match=expected):
        train.main()
    assert not list(normalized.glob("artifacts/model/*"))
    assert not list(normalized.glob("artifacts/plots/*"))


@pytest.mark.parametrize("batch_size", [126, 250, 100_000])
def test_a_batch_that_makes_an_epoch_one_step_is_reported(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    capsys.readouterr()
    choose(normalized, params, batch_size=batch_size, epochs=1)
    train.main()
    count = len(read_dataset().read("train").labels)
    images = min(batch_size, count)
    line = f"train: batch_size {batch_size:,} makes each epoch a single step of {images} images\n"
    assert capsys.readouterr().out.startswith(line)
    choose(normalized, params, batch_size=count // 2, epochs=1)
    train.main()
    assert "single step" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_an_error(workspace: Path, params: dict[str, Any]) -> None:
    params["machine"]["device"] = "cuda"
    write_params(params, workspace)
    with pytest.raises(
        UserError, match=r"^params\.yaml: machine\.device: found 'cuda', but this machine has only: .*cpu"
    ):
        train.main()


def choose(folder: Path, params: dict[str, Any], **settings: Any) -> None:
    """Choose recipe `article` with these settings in params.yaml."""
    params["recipe"] = "article"
    params["recipes"]["article"].update(settings)
    write_params(params, folder)


def outputs(folder: Path) -> list[bytes]:
    return [
        (folder / path).read_bytes()
        for path in (layout.MODEL, layout.MANIFEST, layout.HISTORY, layout.VALIDATION_METRICS)
    ]


def interrupt_after(epochs: int) -> None:
    """Train until this epoch ends, and interrupt it then."""
    report = TrainingProgress.report

    def report_and_stop(self: TrainingProgress, row: Row) -> None:
        report(self, row)
        if row["epoch"] == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "report", report_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train.main()


FULL = {
    "epochs": 5,
    "model": MLP | {"dropout": 0.2},
    "augmentation": OFF | {"shift": 2, "elastic": 1.0},
    "regularization": NONE | {"ema": 0.9, "patience": 4},
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.01},
}


@pytest.mark.parametrize("schedule", ["constant", "one_cycle", "cosine"])
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    warmup = {} if schedule == "constant" else {"warmup": 0.25}
    patience = {} if schedule == "constant" else {"regularization": NONE | {"ema": 0.9}}
    choose(normalized, params, **FULL | {"schedule": {"name": schedule, **warmup}} | patience)
    train.main()
    undisturbed = outputs(normalized)
    assert list(layout.CHECKPOINTS.iterdir()) == []
    layout.MODEL.unlink()

    for epochs in (1, 3):
        interrupt_after(epochs)
        assert not layout.MODEL.exists()
        assert "the next run resumes after the last finished epoch" in capsys.readouterr().out
    train.main()
    assert "resumed after epoch 3" in capsys.readouterr().out
    assert outputs(normalized) == undisturbed
    assert list(layout.CHECKPOINTS.iterdir()) == []


def test_a_checkpoint_of_other_params_is_left_alone(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    choose(normalized, params, epochs=3)
    interrupt_after(2)
    for change in ({"seed": 7}, {"recipes": params["recipes"]}):
        params.update(change)
        params["recipes"]["article"]["optimizer"]["lr"] *= 2
        write_params(params, normalized)
        train.main()
        assert "resumed" not in capsys.readouterr().out
    assert len(list(layout.CHECKPOINTS.glob("*.pt"))) == 1


def test_a_damaged_checkpoint_is_reported_and_ignored(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    choose(normalized, params, epochs=3)
    train.main()
    undisturbed = outputs(normalized)
    interrupt_after(2)
    [checkpoint] = layout.CHECKPOINTS.glob("*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    train.main()
    assert "is damaged and ignored" in capsys.readouterr().out
    assert outputs(normalized) == undisturbed


def test_early_stopping_keeps_the_best(normalized: Path, params: dict[str, Any]) -> None:
    choose(normalized, params, epochs=30, regularization=NONE | {"patience": 2}, optimizer=SGD | {"lr": 0.3})
    train.main()
    history = read_history()
    best = 1 + int(history["validation_loss"].arg_min() or 0)
    assert len(history) == best + 2 < 30
    assert load_model()[1].epoch == best


def start(*command: str) -> subprocess.Popen[str]:
    """Start the stage as a process of its own in the current folder, with its output in train.log."""
    environment = Clone.environment({"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"})
    with Path("train.log").open("w") as log:
        words = command or (sys.executable, "-m", "stages.train")
        return subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)


def wait_for_line(text: str, process: subprocess.Popen[str]) -> None:
    while text not in Path("train.log").read_text():
        assert process.poll() is None, Path("train.log").read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bytes(normalized: Path, params: dict[str, Any]) -> None:
    """It is killed (-9) at random moments, and at last left alone."""
    choose(normalized, params, **FULL | {"epochs": 150, "regularization": NONE | {"ema": 0.9}})
    with start() as process:  # Not in this process: the bytes depend on the number of threads.
        assert process.wait() == 0
    undisturbed = outputs(normalized)
    layout.MODEL.unlink()
    moments = random.Random(1)
    for _ in range(3):
        with start() as process:
            wait_for_line("train: epoch", process)
            time.sleep(moments.uniform(0, 0.7))
            process.kill()
    with start() as process:
        assert process.wait() == 0
    assert "resumed after epoch" in Path("train.log").read_text()
    assert outputs(normalized) == undisturbed
    assert not list(normalized.rglob("*.partial"))
    assert list(layout.CHECKPOINTS.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_a_word_on_how_to_resume(normalized: Path, params: dict[str, Any], processes: int) -> None:
    params["machine"]["processes"] = processes
    choose(normalized, params, epochs=100_000, batch_size=50)
    with start("sh", "-c", f"trap - INT; exec {sys.executable} -m stages.train") as process:
        wait_for_line("train: epoch 2/", process)
        os.killpg(process.pid, signal.SIGINT)  # A terminal does the same.
        assert process.wait(timeout=30) == 130
    output = Path("train.log").read_text()
    assert "the next run resumes after the last finished epoch" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs a C++ compiler and Python's headers",
)
def test_compiled_it_learns_the_same(normalized: Path, params: dict[str, Any]) -> None:
    choose(normalized, params, epochs=3, optimizer=SGD)
    train.main()
    eager = read_history()
    params["machine"]["compile"] = "default"
    write_params(params, normalized)
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    compiled = read_history()
    for name in ("train_loss", "validation_loss"):
        assert compiled[name].to_list() == pytest.approx(eager[name].to_list(), abs=1e-4)
    assert ", compiled (default), " in load_model()[1].environment


@pytest.mark.slow
def test_compile_without_a_compiler_is_a_clear_error(
    normalized: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params["machine"]["compile"] = "default"
    choose(normalized, params, epochs=1)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with start() as process:
        assert process.wait() == 1
    output = Path("train.log").read_text()
    assert "train: error: machine.compile needs g++, Python's headers and, on a GPU, Triton" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["params", "torchrun"])
def test_two_processes_match_one(normalized: Path, params: dict[str, Any], launcher: str) -> None:
    choose(normalized, params, epochs=3, batch_size=50, augmentation=OFF | {"shift": 2}, optimizer=SGD)
    train.main()
    alone = read_history()
    if launcher == "params":
        params["machine"]["processes"] = 2
        write_params(params, normalized)
        process = start()
    else:
        process = start(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "stages.train")
    with process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "on 2 x cpu" in Path("train.log").read_text()
    together = read_history()
    for name in ("train_loss", "validation_loss"):
        assert together[name].to_list() == pytest.approx(alone[name].to_list(), abs=1e-5)


@pytest.mark.slow
def test_two_processes_that_were_killed_are_resumed_to_the_same_bytes(normalized: Path, params: dict[str, Any]) -> None:
    """The model has batch norm, whose statistics differ by process, and a moving average."""
    params["machine"]["processes"] = 2
    settings = {"epochs": 30, "batch_size": 50, "model": CONVNET, "augmentation": OFF, "regularization": NONE}
    choose(normalized, params, **settings | {"regularization": NONE | {"ema": 0.9}})
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    undisturbed = outputs(normalized)
    calibrated, manifest = load_model()
    kept = read_history().row(manifest.epoch - 1, named=True)
    loss, accuracy = evaluate_loss(calibrated.model, read_validation(), manifest.settings.loss, CPU)
    assert (loss, accuracy) == pytest.approx((kept["validation_loss"], kept["validation_accuracy"]), abs=1e-5)

    with start() as process:
        wait_for_line("train: epoch 3/", process)
        started = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in started:
            each.kill()
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "resumed after epoch" in Path("train.log").read_text()
    assert outputs(normalized) == undisturbed


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others(normalized: Path, params: dict[str, Any]) -> None:
    params["machine"]["processes"] = 2
    choose(normalized, params, epochs=100_000, batch_size=50)
    with start() as process:
        wait_for_line("train: epoch 2/", process)
        ranks = [child for child in psutil.Process(process.pid).children() if "stages.train" in child.cmdline()]
        assert len(ranks) == 2
        ranks[1].kill()
        assert process.wait(timeout=30) != 0
    output = Path("train.log").read_text()
    assert "train: error: process 1 was killed by SIGKILL, all 2 were stopped" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert alive == []
    assert not layout.MODEL.exists()
    assert not layout.HISTORY.exists()
