"""The networks learn, the same way each time, and a training that goes wrong or dies leaves nothing wrong behind."""

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
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from stages.core.datasets import normalize_pixels  # FIXME
from stages.core.models import mlp  # FIXME
from stages.core.tensors import read_tensors  # FIXME
from tensordict import TensorDict
from torch import Tensor, nn

from stages import download, evaluate, export, normalize, parity, train
from stages.core import augmentation, params, resume, schemas
from stages.core.files.errors import UserError
from stages.core.files.tables import read_table, validate
from stages.core.machine.device import autocast_dtype, full_float32
from stages.core.nets.checkpoint import load_model
from stages.core.nets.registry import build_model
from stages.core.training.config import CrossEntropy, Recipe
from stages.core.training.optimization import l1_norm
from tests.conftest import PROJECT, Clone, make_images, write_params
from tests.core.test_models import DENSENET, GRU, LSTM, RESNET, TRANSFORMER, VGG_
from tests.core.test_models import WAVENET as SHORT_WAVENET

SHAPE = (1, 28, 28)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
LOSS = CrossEntropy(name="cross_entropy", label_smoothing=0.0)
MLP = {"name": "mlp", "hidden": [64], "dropout": 0.0}
CONVNET = {"name": "convnet", "channels": [[8], [16]], "stem": "pool", "head": "flatten", "dropout": 0.0}
WAVENET = SHORT_WAVENET.model_copy(update={"stride": 7, "layers": 7, "channels": 16})  # its last steps see all
OTHERS = [config.model_dump() for config in (VGG_, RESNET, DENSENET, LSTM, GRU, TRANSFORMER, WAVENET)]
OFF = {"shift": 0, "rotation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0}
NONE = {"l1": 0.0, "ema": 0.0, "patience": 0}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def make_recipe(model: dict[str, Any], **settings: Any) -> Recipe:
    """A plain recipe: no augmentation, no schedule, float32."""
    plain = {
        "model": model,
        "loss": {"name": "cross_entropy", "label_smoothing": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.005, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "augmentation": OFF,
        "regularization": NONE,
        "precision": "float32",
        "batch_size": 20,
        "epochs": 1,
    }
    return TypeAdapter(Recipe).validate_python(plain | settings)


def make_model(config: params.Model, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config, SHAPE, 10)


def make_data(count: int, seed: int = 1) -> TensorDict:
    images, labels = make_images(count, seed)
    normalized = normalize_pixels(images.unsqueeze(1), 0.5, 0.5)
    return TensorDict({"image": normalized, "label": labels.long()}, batch_size=[count])


def run_fit(
    recipe: Recipe, seed: int = 1, data: TensorDict | None = None, device: torch.device = CPU, **options: Any
) -> tuple[list[dict[str, float]], train.Training]:
    """The history and what was trained; `seed` is of the order and the augmentation, the first weights are the same."""
    data = make_data(50).to(device) if data is None else data
    training = train.start_training(recipe, make_model(recipe.model).to(device), len(data))
    rows = list(train.fit(training, recipe, data, make_data(30, seed=2).to(device), seed, **options))
    return rows, training


def weights_of(training: train.Training) -> dict[str, Tensor]:
    return training.result.state_dict()


def same_weights(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A stage's `main` changes how a GPU computes in the whole process."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def normalized(workspace: Path) -> Path:
    download.main()
    normalize.main()
    return workspace


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_loss_starts_at_that_of_guessing(model: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = 2 * torch.rand((500, *SHAPE), generator=generator) - 1
    labels = torch.randint(10, (500,), generator=generator)
    data = TensorDict({"image": images, "label": labels}, batch_size=[500])
    loss, _ = train.assess(make_model(make_recipe(model).model), data, LOSS, CPU)
    assert loss == pytest.approx(log(10), abs=0.1)


@pytest.mark.parametrize("model", [MLP, CONVNET, *OTHERS], ids=lambda model: model["name"])
def test_one_batch_can_be_learned_by_heart(model: dict[str, Any]) -> None:
    recipe = make_recipe(
        model,
        epochs=300,
        optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.0},
        batch_size=10,
    )
    # noise, so that there is nothing to learn but the images themselves
    images = torch.randn((10, *SHAPE), generator=torch.Generator().manual_seed(1))
    batch = TensorDict({"image": images, "label": torch.arange(10)}, batch_size=[10])
    training = train.start_training(recipe, make_model(recipe.model), 10)
    epochs = train.fit(training, recipe, batch, batch, 1)
    learned = next((row for row in epochs if row["train_loss"] < 0.05), None)
    assert learned, "not within 300 epochs"
    assert learned["train_accuracy"] == 1


def test_assess_is_the_mean_over_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ASSESSED", 7)
    data = make_data(50)
    model = make_model(make_recipe(CONVNET).model)
    loss, accuracy = train.assess(model, data, LOSS, CPU)
    logits = model.eval()(data["image"])
    assert loss == pytest.approx(F.cross_entropy(logits, data["label"]).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data["label"]).double().mean().item())


def test_gradient_of_a_linear_layer_is_the_closed_form() -> None:
    """For the loss 1/2 |y - t|^2 per image, meaned over N images, dL/dW = (1/N) sum (y - t) x.

    torch's MSE is (1/NK) sum (y - t)^2 over K outputs: twice that, divided by K.
    """
    N, D, K = 16, 12, 5
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn((N, D), generator=generator).double(), torch.randn((N, K), generator=generator).double()
    model = mlp([D, K]).double()
    y = model(x)
    F.mse_loss(y, t).backward()
    weight, bias = model.parameters()
    errors = (y - t).detach()
    closed_form = torch.stack([torch.outer(error, image) for error, image in zip(errors, x, strict=True)]).sum(0) / N
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(weight.grad, 2 / K * closed_form)
    torch.testing.assert_close(bias.grad, 2 / K * errors.sum(0) / N)


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_same_seed_same_weights(model: dict[str, Any]) -> None:
    recipe = make_recipe(model | {"dropout": 0.2}, augmentation=OFF | {"shift": 2, "elastic": 1.0}, epochs=2)
    first, again, other = (weights_of(run_fit(recipe, seed)[1]) for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_random_streams_have_nothing_in_common() -> None:
    runs = [(seed, epoch) for seed in (1, 4097) for epoch in (1, 2)]
    names: list[tuple[object, ...]] = [(use, *run) for use in ("order", "augmentation") for run in runs]
    names += [("dropout", *run, rank) for run in runs for rank in (0, 1)]
    generators = (torch.Generator().manual_seed(train.random_stream(*name)) for name in names)
    assert len({tuple(torch.rand(2, generator=generator).tolist()) for generator in generators}) == len(names)


def test_augmentation_is_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the places in an image would be wrong by parts of a pixel."""
    precise = []

    def augment(*arguments: Any) -> Tensor:
        precise.append(not torch.is_autocast_enabled("cpu"))
        return augmentation.augment(*arguments)

    monkeypatch.setattr(train, "augment", augment)
    run_fit(make_recipe(CONVNET, precision="bfloat16", augmentation=OFF | {"shift": 2}))
    assert precise
    assert all(precise)


@pytest.mark.parametrize(
    "model",
    # A processor without bfloat16 takes long to compute a large network in it.
    [pytest.param(model, marks=pytest.mark.slow) if model["name"] == "resnet" else model for model in OTHERS],
    ids=lambda model: model["name"],
)
def test_bfloat16_computes_nearly_the_same(model: dict[str, Any]) -> None:
    if model["name"] == "lstm" and autocast_dtype("auto", torch.device("cpu")) != torch.bfloat16:
        pytest.skip("an LSTM takes bfloat16 on processors alone that have it")
    slow = SGD | {"lr": 0.001}
    rows = {
        dtype: run_fit(make_recipe(model, precision=dtype, optimizer=slow))[0][0] for dtype in ("float32", "bfloat16")
    }
    for name in ("train_loss", "validation_loss"):
        assert rows["bfloat16"][name] != rows["float32"][name]
        assert rows["bfloat16"][name] == pytest.approx(rows["float32"][name], rel=0.05)


def test_processes_share_a_batch_equally() -> None:
    recipe = make_recipe(MLP, batch_size=20)
    assert train.share_of_batch(recipe, 50, 4) == 5
    with pytest.raises(UserError, match="3 processes cannot share batches of 20 images"):
        train.share_of_batch(recipe, 50, 3)
    with pytest.raises(UserError, match="4 processes cannot share batches of 10 images"):
        train.share_of_batch(recipe, 10, 4)


def test_history_of_a_fit() -> None:
    cycle = {"name": "one_cycle", "warmup": 0.25}
    recipe = make_recipe(CONVNET, batch_size=20, epochs=3, schedule=cycle, augmentation=OFF | {"shift": 1})
    steps: list[None] = []
    rows, _ = run_fit(recipe, stepped=lambda: steps.append(None))
    validate(pl.DataFrame(rows), schemas.history(), Path("history"))
    assert len(rows) == 3
    assert len(steps) == 3 * (50 // 20)
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert len({row["lr"] for row in rows}) == 3


def test_training_metrics_count_every_image_once() -> None:
    """With a rate that changes nothing, they are those of the whole split."""
    recipe = make_recipe(MLP, batch_size=10, optimizer=SGD | {"lr": 1e-30})
    [row], _ = run_fit(recipe)
    model = make_model(recipe.model)
    on_train, on_validation = (train.assess(model, data, LOSS, CPU) for data in (make_data(50), make_data(30, seed=2)))
    assert (row["train_loss"], row["train_accuracy"]) == pytest.approx(on_train, rel=1e-5)
    assert (row["validation_loss"], row["validation_accuracy"]) == pytest.approx(on_validation, rel=1e-5)


def test_what_an_epoch_leaves_over_is_not_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    batches = train.batches

    def spy(data: TensorDict, order_SN: Tensor, device: torch.device) -> Any:
        seen.append(set(order_SN.flatten().tolist()))
        return batches(data, order_SN, device)

    monkeypatch.setattr(train, "batches", spy)
    run_fit(make_recipe(MLP, batch_size=20, epochs=4))
    assert [len(epoch) for epoch in seen] == [40] * 4
    assert len({frozenset(epoch) for epoch in seen}) == 4


@pytest.mark.parametrize("loss", [{"name": "mse"}, {"name": "cross_entropy", "label_smoothing": 0.1}])
@pytest.mark.parametrize(
    "optimizer", [SGD | {"momentum": 0.9, "nesterov": True}, {"name": "adam", "lr": 0.003, "weight_decay": 0.0}],
    ids=lambda optimizer: optimizer["name"],
)  # fmt: skip
def test_losses_and_optimizers_learn(loss: dict[str, Any], optimizer: dict[str, Any]) -> None:
    cosine = {"name": "cosine", "warmup": 0.1}
    rows, _ = run_fit(make_recipe(MLP, loss=loss, optimizer=optimizer, schedule=cosine, epochs=15))
    assert rows[-1]["validation_accuracy"] > 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def noisy_data() -> TensorDict:
    """Images of which a third have a wrong label: to fit them all is to overfit."""
    data = make_data(90)
    data["label"][::3] = (data["label"][::3] + 1) % 10
    return data


def overfit(**settings: Any) -> tuple[list[dict[str, float]], train.Training]:
    model = settings.pop("model", MLP)
    return run_fit(
        make_recipe(model, epochs=40, optimizer=settings.pop("optimizer", SGD), **settings), data=noisy_data()
    )


def test_l1_makes_the_weights_small() -> None:
    (plain_rows, plain), (rows, small) = overfit(), overfit(regularization=NONE | {"l1": 0.002})
    assert l1_norm(small.model) < 0.7 * l1_norm(plain.model)
    assert rows[-1]["train_accuracy"] < plain_rows[-1]["train_accuracy"]


def test_l2_makes_the_weights_small() -> None:
    (_, plain), (_, small) = overfit(), overfit(optimizer=SGD | {"weight_decay": 0.03})
    norms = [
        sum(float(weight.detach().square().sum()) for weight in each.model.parameters()) for each in (plain, small)
    ]
    assert norms[1] < 0.7 * norms[0]


@pytest.mark.parametrize(
    "settings", [{"model": MLP | {"dropout": 0.6}}, {"augmentation": OFF | {"shift": 3, "rotation": 15.0}}],
    ids=["dropout", "augmentation"],
)  # fmt: skip
def test_wrong_labels_are_learned_by_heart_less(settings: dict[str, Any]) -> None:
    plain, _ = overfit()
    rows, _ = overfit(**settings)
    assert rows[-1]["train_accuracy"] < plain[-1]["train_accuracy"] - 0.05
    gap, plain_gap = (each[-1]["train_accuracy"] - each[-1]["validation_accuracy"] for each in (rows, plain))
    assert gap < plain_gap


def test_the_moving_average_is_calmer_than_the_weights() -> None:
    recipe = make_recipe(MLP, epochs=1, optimizer=SGD | {"lr": 0.3}, batch_size=5, regularization=NONE | {"ema": 0.9})
    training = train.start_training(recipe, make_model(recipe.model), 50)
    raw, averaged = [], []

    def note() -> None:
        assert training.average
        raw.append(torch.cat([weight.detach().flatten() for weight in training.model.parameters()]))
        averaged.append(torch.cat([weight.detach().flatten() for weight in training.average.parameters()]))

    list(train.fit(training, recipe, noisy_data()[:50], make_data(30, seed=2), 1, stepped=note))
    for before, now, weights in zip(averaged, averaged[1:], raw[1:], strict=False):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * weights)
    moves = [sum(float((b - a).norm()) for a, b in pairwise(each)) for each in (raw, averaged)]
    assert moves[1] < moves[0]
    assert training.result is training.average


@pytest.mark.parametrize("where", ["as tensors", "memory-mapped"])
def test_data_that_do_not_fit_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    recipe = make_recipe(CONVNET, epochs=2, augmentation=OFF | {"shift": 1})
    rows, training = run_fit(recipe)
    data = make_data(50)
    if where == "memory-mapped":
        data.memmap(str(tmp_path / "data"))
        data = TensorDict.load_memmap(str(tmp_path / "data"))
    monkeypatch.setattr(train, "fits", lambda *_: False)
    rows_ahead, ahead = run_fit(recipe, data=data)
    assert rows_ahead == rows
    assert same_weights(weights_of(ahead), weights_of(training))


@on_cuda
@pytest.mark.parametrize("model", [MLP, CONVNET, *OTHERS], ids=lambda model: model["name"])
def test_replayed_it_learns_as_step_by_step(model: dict[str, Any]) -> None:
    """From the second step on, with new images, rates and random numbers at each."""
    settings = {
        "augmentation": OFF | {"shift": 2, "rotation": 10.0, "elastic": 0.5},
        "regularization": NONE | {"l1": 1e-5, "ema": 0.9},
        "optimizer": SGD | {"lr": 0.02, "momentum": 0.9},
        "schedule": {"name": "one_cycle", "warmup": 0.25},
    }
    recipe = make_recipe(model, **settings, batch_size=10, epochs=4)
    with full_float32(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        (eager_rows, eager), (rows, replayed) = (run_fit(recipe, device=CUDA, cuda_graph=on) for on in (False, True))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row, eager_row in zip(rows, eager_rows, strict=True):
        assert row == pytest.approx(eager_row, rel=1e-3)
    for weights, eager_weights in zip(weights_of(replayed).values(), weights_of(eager).values(), strict=True):
        torch.testing.assert_close(weights, eager_weights, rtol=1e-2, atol=1e-3)


@on_cuda
def test_compiled_and_replayed_it_learns_the_same() -> None:
    recipe = make_recipe(CONVNET, batch_size=10, epochs=3, optimizer=SGD | {"lr": 0.02})
    (eager_rows, _), (rows, _) = run_fit(recipe, device=CUDA), run_fit(recipe, device=CUDA, compile_mode="default")
    for row, eager_row in zip(rows, eager_rows, strict=True):
        assert row == pytest.approx(eager_row, rel=1e-2)


@on_cuda
def test_replayed_dropout_drops_others_at_each_step() -> None:
    """With a rate that changes nothing and the same images, the loss changes by what is dropped alone."""
    recipe = make_recipe(MLP | {"dropout": 0.5}, batch_size=10, epochs=8, optimizer=SGD | {"lr": 1e-30})
    rows, eager_rows = (run_fit(recipe, device=CUDA, cuda_graph=on)[0] for on in (True, False))
    losses, eager_losses = ([row["train_loss"] for row in each] for each in (rows, eager_rows))
    assert len(set(losses)) == 8
    assert losses == pytest.approx(eager_losses, rel=1e-4)


@on_cuda
@pytest.mark.parametrize("where", ["as tensors", "memory-mapped"])
def test_data_that_do_not_fit_on_the_gpu_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    recipe = make_recipe(CONVNET, epochs=3, batch_size=10, augmentation=OFF | {"shift": 1})
    rows, _ = run_fit(recipe, device=CUDA)
    data = make_data(50)
    if where == "memory-mapped":
        data.memmap(str(tmp_path / "data"))
        data = TensorDict.load_memmap(str(tmp_path / "data"))
    monkeypatch.setattr(train, "fits", lambda *_: False)
    pin_memory = Tensor.pin_memory

    def pin_slowly(tensor: Tensor) -> Tensor:
        time.sleep(0.02)  # a step is recorded meanwhile
        return pin_memory(tensor)

    monkeypatch.setattr(Tensor, "pin_memory", pin_slowly)
    rows_ahead, _ = run_fit(recipe, device=CUDA, data=data)
    for row, ahead in zip(rows, rows_ahead, strict=True):
        assert ahead == pytest.approx(row, rel=1e-3)


@on_cuda
@pytest.mark.parametrize("recipe", ["convnet", "accurate", "lstm", "transformer"])
def test_trained_on_cuda_it_is_exported_and_proven(normalized: Path, params: dict[str, Any], recipe: str) -> None:
    params["recipe"], params["device"] = recipe, "cuda"
    write_params(params, normalized)
    for stage in (train, evaluate, export, parity):
        stage.main()
    dtype = str(autocast_dtype("auto", CUDA)).removeprefix("torch.")
    assert f", {dtype}, " in load_model(normalized / train.MODEL)[1].trained_on
    assert json.loads((normalized / "artifacts/details/parity.json").read_text())["max_abs_diff"] < 1e-4


@on_cuda
def test_torchrun_trains_over_nccl(normalized: Path, params: dict[str, Any]) -> None:
    """A process for each GPU, be there one or more."""
    params["device"] = "cuda"
    choose(normalized, params, epochs=3, model=CONVNET, augmentation=OFF | {"shift": 2}, optimizer=SGD)
    train.main()
    alone = read_table(normalized / train.HISTORY, schemas.history())
    processes = torch.cuda.device_count()
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "stages.train"]
    with start(sys.executable, *launcher) as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert f"on {processes} x cuda" in Path("train.log").read_text()
    together = read_table(normalized / train.HISTORY, schemas.history())
    for name in ("train_loss", "validation_loss"):
        assert together[name].to_list() == pytest.approx(alone[name].to_list(), abs=1e-3)


@on_cuda
def test_on_cuda_it_goes_on_after_a_kill(normalized: Path, params: dict[str, Any]) -> None:
    params["device"] = "cuda"
    slow = SGD | {"lr": 0.001}  # so that the losses stay large
    choose(normalized, params, epochs=60, batch_size=10, optimizer=slow, augmentation=OFF | {"shift": 2})
    train.main()
    undisturbed = read_table(normalized / train.HISTORY, schemas.history())
    with start() as process:
        wait_for_line("train: epoch 5/", process)
        process.kill()
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "goes on after epoch" in Path("train.log").read_text()
    history = read_table(normalized / train.HISTORY, schemas.history())
    assert history["train_loss"].to_list() == pytest.approx(undisturbed["train_loss"].to_list(), rel=1e-3)


@on_cuda
def test_more_processes_than_gpus_are_refused(normalized: Path, params: dict[str, Any]) -> None:
    params["device"], params["train"]["processes"] = "cuda", 25
    choose(normalized, params, batch_size=25)
    with start() as process:
        assert process.wait() == 1
    found = f"train.processes: found 25, this machine has {torch.cuda.device_count()} cuda device"
    assert found in Path("train.log").read_text()


def test_main_writes_model_history_and_live_metrics(normalized: Path, params: dict[str, Any]) -> None:
    params["recipe"] = "convnet"
    params["recipes"]["convnet"]["precision"] = "float32"
    write_params(params, normalized)
    train.main()

    history = read_table(normalized / train.HISTORY, schemas.history())
    assert history["epoch"].to_list() == [1, 2]
    model, manifest = load_model(normalized / train.MODEL)
    assert (manifest.recipe, manifest.dataset, manifest.image_shape) == ("convnet", "tiny", SHAPE)
    assert (manifest.mean, manifest.std) == (0.5, 0.5)
    assert manifest.classes == params["datasets"]["tiny"]["classes"]
    # what is kept is the epoch that did best, the first of equals, as it was then
    assert manifest.epoch == 1 + int(history["validation_loss"].arg_min() or 0)
    validation = read_tensors(normalized / "artifacts/normalized/validation", schemas.normalized(10, 0.5, 0.5))
    kept = history.row(manifest.epoch - 1, named=True)
    loss, accuracy = train.assess(model.network, validation, manifest.settings.loss, CPU)
    assert accuracy == kept["validation_accuracy"]
    assert loss == pytest.approx(kept["validation_loss"], rel=1e-4)

    live = json.loads((normalized / train.LIVE / "metrics.json").read_text())
    assert live["step"] == 1
    assert live["train_loss"] == pytest.approx(history["train_loss"][-1])
    curve = pl.read_csv(normalized / train.LIVE / "plots/metrics/validation_loss.tsv", separator="\t")
    assert curve["validation_loss"].to_list() == pytest.approx(history["validation_loss"].to_list())


@pytest.mark.parametrize("recipe", ["article", "convnet"])
def test_same_seed_same_file(normalized: Path, params: dict[str, Any], recipe: str) -> None:
    files, weights = [], []
    for seed in (1, 1, 2):
        params["recipe"], params["seed"] = recipe, seed
        write_params(params, normalized)
        train.main()
        files.append((normalized / train.MODEL).read_bytes())
        weights.append(load_model(normalized / train.MODEL)[0].state_dict())
    assert files[0] == files[1]
    assert not same_weights(weights[0], weights[2])


def test_loss_that_is_not_finite_is_refused(normalized: Path, params: dict[str, Any]) -> None:
    params["recipe"] = "article"
    params["recipes"]["article"]["optimizer"].update(lr=1000.0, weight_decay=1000.0)
    write_params(params, normalized)
    expected = r"^epoch 1 ended with a loss of (nan|inf) .*; params\.yaml: recipes\.article\.optimizer\.lr is 1000\.0, "
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
    images = min(batch_size, 250)
    line = f"train: batch_size {batch_size:,} makes each epoch a single step of {images} images\n"
    assert capsys.readouterr().out.startswith(line)
    choose(normalized, params, batch_size=125, epochs=1)
    train.main()
    assert "single step" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device_is_refused(workspace: Path, params: dict[str, Any]) -> None:
    params["device"] = "cuda"
    write_params(params, workspace)
    with pytest.raises(UserError, match=r"^params\.yaml: device: found 'cuda', but this machine has only: .*cpu"):
        train.main()


def choose(folder: Path, params: dict[str, Any], **settings: Any) -> None:
    """Recipe `article` with these settings, in params.yaml."""
    params["recipe"] = "article"
    params["recipes"]["article"].update(settings)
    write_params(params, folder)


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (train.MODEL, train.HISTORY)]


def interrupt_after(epochs: int) -> None:
    """Train until then."""
    tell = train.Watch.tell

    def tell_and_stop(self: train.Watch, row: dict[str, float]) -> None:
        tell(self, row)
        if row["epoch"] == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Watch, "tell", tell_and_stop)
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
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    warmup = {} if schedule == "constant" else {"warmup": 0.25}
    patience = {} if schedule == "constant" else {"regularization": NONE | {"ema": 0.9}}
    choose(normalized, params, **FULL | {"schedule": {"name": schedule, **warmup}} | patience)
    train.main()
    undisturbed = outputs(normalized)
    assert list((normalized / resume.FOLDER).iterdir()) == []
    (normalized / train.MODEL).unlink()

    for epochs in (1, 3):
        interrupt_after(epochs)
        assert not (normalized / train.MODEL).exists()
        assert "the next run goes on after the last finished epoch" in capsys.readouterr().out
    train.main()
    assert "goes on after epoch 3" in capsys.readouterr().out
    assert outputs(normalized) == undisturbed
    assert list((normalized / resume.FOLDER).iterdir()) == []


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
        assert "goes on" not in capsys.readouterr().out.split("goes on after the last")[-1]
    assert len(list((normalized / resume.FOLDER).glob("*.pt"))) == 1


def test_a_damaged_checkpoint_is_told_and_ignored(
    normalized: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    choose(normalized, params, epochs=3)
    train.main()
    undisturbed = outputs(normalized)
    interrupt_after(2)
    [checkpoint] = (normalized / resume.FOLDER).glob("*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    train.main()
    assert "is damaged and ignored" in capsys.readouterr().out
    assert outputs(normalized) == undisturbed


def test_early_stopping_keeps_the_best(normalized: Path, params: dict[str, Any]) -> None:
    choose(normalized, params, epochs=30, regularization=NONE | {"patience": 2}, optimizer=SGD | {"lr": 0.3})
    train.main()
    history = read_table(normalized / train.HISTORY, schemas.history())
    best = 1 + int(history["validation_loss"].arg_min() or 0)
    assert len(history) == best + 2 < 30
    assert load_model(normalized / train.MODEL)[1].epoch == best


def start(*command: str) -> subprocess.Popen[str]:
    """The stage as a process of its own in the current folder; its output goes to train.log."""
    environment = Clone.environment({"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"})
    with Path("train.log").open("w") as log:
        words = command or (sys.executable, "-m", "stages.train")
        return subprocess.Popen(words, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)


def wait_for_line(text: str, process: subprocess.Popen[str]) -> None:
    while text not in Path("train.log").read_text():
        assert process.poll() is None, Path("train.log").read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bytes(normalized: Path, params: dict[str, Any]) -> None:
    """Kill -9 at random moments of the training; then left alone."""
    choose(normalized, params, **FULL | {"epochs": 150, "regularization": NONE | {"ema": 0.9}})
    with start() as process:  # not in this process: the number of threads is part of what makes equal bytes
        assert process.wait() == 0
    undisturbed = outputs(normalized)
    (normalized / train.MODEL).unlink()
    moments = random.Random(1)
    for _ in range(3):
        with start() as process:
            wait_for_line("train: epoch", process)
            time.sleep(moments.uniform(0, 0.7))
            process.kill()
    with start() as process:
        assert process.wait() == 0
    assert "goes on after epoch" in Path("train.log").read_text()
    assert outputs(normalized) == undisturbed
    assert not list(normalized.rglob("*.partial"))
    assert list((normalized / resume.FOLDER).iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_a_word_on_how_to_go_on(normalized: Path, params: dict[str, Any], processes: int) -> None:
    params["train"]["processes"] = processes
    choose(normalized, params, epochs=100_000, batch_size=50)
    with start("sh", "-c", f"trap - INT; exec {sys.executable} -m stages.train") as process:
        wait_for_line("train: epoch 2/", process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) == 130
    told = Path("train.log").read_text()
    assert "the next run goes on after the last finished epoch" in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs a C++ compiler and Python's headers",
)
def test_compiled_it_learns_the_same(normalized: Path, params: dict[str, Any]) -> None:
    choose(normalized, params, epochs=3, optimizer=SGD)
    train.main()
    eager = read_table(normalized / train.HISTORY, schemas.history())
    params["train"]["compile"] = "default"
    write_params(params, normalized)
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    compiled = read_table(normalized / train.HISTORY, schemas.history())
    for name in ("train_loss", "validation_loss"):
        assert compiled[name].to_list() == pytest.approx(eager[name].to_list(), abs=1e-4)
    assert ", compiled (default), " in load_model(normalized / train.MODEL)[1].trained_on


@pytest.mark.slow
def test_compile_without_a_compiler_is_refused(
    normalized: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params["train"]["compile"] = "default"
    choose(normalized, params, epochs=1)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with start() as process:
        assert process.wait() == 1
    told = Path("train.log").read_text()
    assert "train: error: machine.compile needs g++, Python's headers and, on a GPU, Triton" in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["params", "torchrun"])
def test_two_processes_match_one(normalized: Path, params: dict[str, Any], launcher: str) -> None:
    choose(normalized, params, epochs=3, batch_size=50, augmentation=OFF | {"shift": 2}, optimizer=SGD)
    train.main()
    alone = read_table(normalized / train.HISTORY, schemas.history())
    if launcher == "params":
        params["train"]["processes"] = 2
        write_params(params, normalized)
        process = start()
    else:
        process = start(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "stages.train")
    with process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "on 2 x cpu" in Path("train.log").read_text()
    together = read_table(normalized / train.HISTORY, schemas.history())
    for name in ("train_loss", "validation_loss"):
        assert together[name].to_list() == pytest.approx(alone[name].to_list(), abs=1e-5)


@pytest.mark.slow
def test_two_processes_killed_go_on_to_the_same_bytes(normalized: Path, params: dict[str, Any]) -> None:
    """With batch norm, whose statistics each process has of its own, and their moving average."""
    params["train"]["processes"] = 2
    settings = {"epochs": 30, "batch_size": 50, "model": CONVNET, "augmentation": OFF, "regularization": NONE}
    choose(normalized, params, **settings | {"regularization": NONE | {"ema": 0.9}})
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    undisturbed = outputs(normalized)
    model, manifest = load_model(normalized / train.MODEL)
    validation = read_tensors(normalized / train.NORMALIZED / "validation", schemas.normalized(10, 0.5, 0.5))
    kept = read_table(normalized / train.HISTORY, schemas.history()).row(manifest.epoch - 1, named=True)
    loss, accuracy = train.assess(model.network, validation, manifest.settings.loss, torch.device("cpu"))
    assert (loss, accuracy) == pytest.approx((kept["validation_loss"], kept["validation_accuracy"]), abs=1e-5)

    with start() as process:
        wait_for_line("train: epoch 3/", process)
        started = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in started:
            each.kill()
    with start() as process:
        assert process.wait() == 0, Path("train.log").read_text()
    assert "goes on after epoch" in Path("train.log").read_text()
    assert outputs(normalized) == undisturbed


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others(normalized: Path, params: dict[str, Any]) -> None:
    params["train"]["processes"] = 2
    choose(normalized, params, epochs=100_000, batch_size=50)
    with start() as process:
        wait_for_line("train: epoch 2/", process)
        ranks = [child for child in psutil.Process(process.pid).children() if "stages.train" in child.cmdline()]
        assert len(ranks) == 2
        ranks[1].kill()
        assert process.wait(timeout=30) != 0
    told = Path("train.log").read_text()
    assert "train: error: process 1 was killed by SIGKILL, all 2 have been ended" in told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert alive == []
    assert not (normalized / train.MODEL).exists()
    assert not (normalized / train.HISTORY).exists()
