"""The networks learn, the same way each time, and a training that goes wrong leaves nothing behind."""

import json
from collections import Counter
from math import ceil, log
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from tensordict import TensorDict
from torch import Tensor, nn

from stages import download, normalize, train
from stages.core import params, schemas
from stages.core.artifacts import read_table, read_tensors, validate
from stages.core.checkpoint import load_checkpoint
from stages.core.datasets import normalize_pixels
from stages.core.errors import UserError
from stages.core.models import build_model, mlp
from tests.conftest import make_images, write_params

SHAPE = (1, 28, 28)
MLP = {"name": "mlp", "hidden": [64]}
CONVNET = {"name": "convnet", "channels": [8, 16]}


def make_recipe(model: dict[str, Any], **settings: Any) -> params.Recipe:
    """A plain recipe: no augmentation, no schedule, float32."""
    plain = {
        "model": model,
        "loss": {"name": "cross_entropy", "label_smoothing": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.005, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "augmentation": {"shift": 0},
        "precision": "float32",
        "batch_size": 20,
        "epochs": 1,
    }
    return TypeAdapter(params.Recipe).validate_python(plain | settings)


def make_model(config: params.Mlp | params.ConvNet, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return build_model(config, SHAPE, 10)


def make_data(count: int, seed: int = 1) -> TensorDict:
    images, labels = make_images(count, seed)
    normalized = normalize_pixels(images.unsqueeze(1), 0.5, 0.5)
    return TensorDict({"image": normalized, "label": labels.long()}, batch_size=[count])


def run_fit(recipe: params.Recipe, seed: int, **options: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The history and the weights; `seed` is of the order and the augmentation, the first weights are the same."""
    model = make_model(recipe.model)
    generator = torch.Generator().manual_seed(seed)
    rows = list(train.fit(model, recipe, make_data(50), make_data(30, seed=2), generator, **options))
    return rows, model.state_dict()


def same_weights(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


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
    loss, _ = train.assess(make_model(make_recipe(model).model), data)
    assert loss == pytest.approx(log(10), abs=0.1)


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_one_batch_can_be_learned_by_heart(model: dict[str, Any]) -> None:
    recipe = make_recipe(model, epochs=40)
    # noise, so that there is nothing to learn but the images themselves
    images = torch.randn((20, *SHAPE), generator=torch.Generator().manual_seed(1))
    batch = TensorDict({"image": images, "label": torch.arange(20) % 10}, batch_size=[20])
    *_, last = train.fit(make_model(recipe.model), recipe, batch, batch, torch.Generator())
    assert last["train_loss"] < 0.01
    assert last["train_accuracy"] == 1


def test_assess_is_the_mean_over_all_images() -> None:
    data = make_data(50)
    model = make_model(make_recipe(CONVNET).model)
    loss, accuracy = train.assess(model, data, batch_size=7)
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


@pytest.mark.parametrize("pixels", [0, 1, 2])
def test_shift_moves_a_bright_pixel(pixels: int) -> None:
    images = torch.zeros((600, 1, 9, 8))
    images[:, 0, 4, 3] = 1
    moved = train.shift(images, pixels, torch.Generator().manual_seed(1))
    assert moved.shape == images.shape
    places = moved[:, 0].nonzero()
    assert places[:, 0].tolist() == list(range(600))  # one bright pixel in each image
    assert moved.sum() == 600  # and as bright as it was
    offsets = Counter((row - 4, column - 3) for _, row, column in places.tolist())
    allowed = range(-pixels, pixels + 1)
    assert set(offsets) == {(down, right) for down in allowed for right in allowed}
    assert min(offsets.values()) >= 0.4 * 600 / len(offsets)  # no offset is rare


def test_shift_fills_the_gap_with_the_border() -> None:
    images = torch.randn((100, 1, 6, 7), generator=torch.Generator().manual_seed(1))
    moved = train.shift(images, 2, torch.Generator().manual_seed(2))
    offsets = set()
    for before, after in zip(images[:, 0], moved[:, 0], strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(
                after, before[(torch.arange(6) - down).clamp(0, 5)][:, (torch.arange(7) - right).clamp(0, 6)]
            )
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) == 25


def test_shift_is_the_generators() -> None:
    images = make_data(50)["image"]
    before = images.clone()
    first, again, other = (train.shift(images, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_optimizers_take_their_settings() -> None:
    model = mlp([2, 2])
    sgd = train.make_optimizer(model, params.Sgd(name="sgd", lr=0.1, momentum=0.8, weight_decay=0.01))
    assert isinstance(sgd, torch.optim.SGD)
    assert {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}.items() <= sgd.param_groups[0].items()
    adamw = train.make_optimizer(model, params.AdamW(name="adamw", lr=0.2, weight_decay=0.03))
    assert isinstance(adamw, torch.optim.AdamW)
    assert {"lr": 0.2, "weight_decay": 0.03}.items() <= adamw.param_groups[0].items()


def rates(schedule: params.Constant | params.OneCycle, steps: int) -> list[float]:
    """The learning rate of each step."""
    optimizer = torch.optim.SGD(mlp([2, 2]).parameters(), lr=0.1)
    scheduler = train.make_schedule(optimizer, schedule, steps)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0.25, 0.5])
def test_one_cycle_peaks_at_the_rate_and_ends_near_zero(warmup: float) -> None:
    found = rates(params.OneCycle(name="one_cycle", warmup=warmup), steps=100)
    peak = found.index(max(found))
    assert found[peak] == pytest.approx(0.1)
    assert peak == pytest.approx(100 * warmup, abs=1)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[0] < 0.1 / 10
    assert 0 <= found[-1] < 0.1 / 1000


@pytest.mark.parametrize("steps", range(1, 9))
def test_one_cycle_of_few_steps(steps: int) -> None:
    found = rates(params.OneCycle(name="one_cycle", warmup=0.25), steps)
    assert 0 < max(found) <= 0.1 + 1e-9
    assert 0 <= found[-1] < 0.1 / 1000 or steps < 3


def test_constant_rate_stays() -> None:
    assert rates(params.Constant(name="constant"), steps=20) == [0.1] * 20


@pytest.mark.parametrize("model", [MLP, CONVNET], ids=lambda model: model["name"])
def test_same_generator_same_weights(model: dict[str, Any]) -> None:
    recipe = make_recipe(model, augmentation={"shift": 2}, epochs=2)
    (_, first), (_, again), (_, other) = (run_fit(recipe, seed) for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_history_of_a_fit() -> None:
    cycle = {"name": "one_cycle", "warmup": 0.25}
    recipe = make_recipe(CONVNET, batch_size=20, epochs=3, schedule=cycle, augmentation={"shift": 1})
    steps: list[None] = []
    rows, _ = run_fit(recipe, seed=1, stepped=lambda: steps.append(None))
    validate(pl.DataFrame(rows), schemas.history(), Path("history"))
    assert len(rows) == 3
    assert len(steps) == 3 * ceil(50 / 20)
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert len({row["lr"] for row in rows}) == 3


def test_training_metrics_count_every_image_once() -> None:
    """With a rate that changes nothing, they are those of the whole split, though the last batch is smaller."""
    optimizer = {"name": "sgd", "lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0}
    recipe = make_recipe(MLP, batch_size=20, optimizer=optimizer)
    [row], _ = run_fit(recipe, seed=1)
    model = make_model(recipe.model)
    on_train, on_validation = train.assess(model, make_data(50)), train.assess(model, make_data(30, seed=2))
    assert (row["train_loss"], row["train_accuracy"]) == pytest.approx(on_train, rel=1e-5)
    assert (row["validation_loss"], row["validation_accuracy"]) == pytest.approx(on_validation, rel=1e-5)


def test_main_writes_model_history_and_live_metrics(normalized: Path, params: dict[str, Any]) -> None:
    params["recipe"] = "convnet"
    params["recipes"]["convnet"]["precision"] = "float32"
    write_params(params, normalized)
    train.main()

    history = read_table(normalized / train.HISTORY, schemas.history())
    assert history["epoch"].to_list() == [1, 2]
    model, manifest = load_checkpoint(normalized / train.MODEL)
    assert (manifest.recipe, manifest.dataset, manifest.image_shape) == ("convnet", "tiny", SHAPE)
    assert (manifest.mean, manifest.std) == (0.5, 0.5)
    assert manifest.classes == params["datasets"]["tiny"]["classes"]
    # what is kept is the epoch that did best, the first of equals, as it was then
    assert manifest.epoch == 1 + int(history["validation_accuracy"].arg_max() or 0)
    validation = read_tensors(normalized / "artifacts/normalized/validation", schemas.normalized(10, 0.5, 0.5))
    kept = history.row(manifest.epoch - 1, named=True)
    loss, accuracy = train.assess(model, validation)
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
        weights.append(load_checkpoint(normalized / train.MODEL)[0].state_dict())
    assert files[0] == files[1]
    assert not same_weights(weights[0], weights[2])


def test_loss_that_is_not_finite_is_refused(normalized: Path, params: dict[str, Any]) -> None:
    params["recipe"] = "article"
    params["recipes"]["article"]["optimizer"]["lr"] = 1e30
    write_params(params, normalized)
    with pytest.raises(UserError, match=r"^artifacts/plots/history\.csv violates its schema") as caught:
        train.main()
    assert "column 'train_loss': finite and not negative (1 failing; row 0: " in str(caught.value)
    assert not list(normalized.glob("artifacts/model/*"))
    assert not list(normalized.glob("artifacts/plots/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device_is_refused(workspace: Path, params: dict[str, Any]) -> None:
    params["device"] = "cuda"
    write_params(params, workspace)
    with pytest.raises(UserError, match=r"^params\.yaml: device: found 'cuda', but this machine has only: .*cpu"):
        train.main()
