"""On a GPU, training with recorded, compiled and read-ahead steps learns what plain steps learn."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.machine.device import full_float32
from tests.core.training.small_runs import (
    CONVNET,
    CUDA,
    MLP,
    NO_AUGMENTATION,
    NO_REGULARIZATION,
    OTHERS,
    SGD,
    make_examples,
    make_machine,
    make_recipe,
    run_training,
    weights_of,
)
from tests.core.training.test_batches import map_examples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
EAGER, REPLAYED = make_machine(device="cuda", cuda_graph=False), make_machine(device="cuda", cuda_graph=True)


@pytest.mark.parametrize("model", [MLP, CONVNET, *OTHERS], ids=lambda model: model["name"])
def test_replayed_it_learns_as_step_by_step(model: dict[str, Any]) -> None:
    """From the second step on, with new images, rates and random numbers at each."""
    amounts = {"shift": 2, "rotation": 10.0, "elastic": 0.5, "flip": 0.5, "crop": 0.5, "color": 0.2, "erase": 0.1}
    settings = {
        "augmentation": NO_AUGMENTATION | amounts | {"mixup": 0.4, "cutmix": 1.0},
        "regularization": NO_REGULARIZATION | {"l1": 1e-5, "ema": 0.9},
        "optimizer": SGD | {"lr": 0.02, "momentum": 0.9},
        "schedule": {"name": "one_cycle", "warmup": 0.25},
    }
    recipe = make_recipe(model, **settings, batch_size=10, epochs=4)
    with full_float32(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        (eager_rows, eager), (rows, replayed) = (
            run_training(recipe, device=CUDA, machine=machine) for machine in (EAGER, REPLAYED)
        )
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for row, eager_row in zip(rows, eager_rows, strict=True):
        assert row == pytest.approx(eager_row, rel=1e-3)
    for weights, eager_weights in zip(weights_of(replayed).values(), weights_of(eager).values(), strict=True):
        torch.testing.assert_close(weights, eager_weights, rtol=1e-2, atol=1e-3)


def test_compiled_and_replayed_it_learns_the_same() -> None:
    recipe = make_recipe(CONVNET, batch_size=10, epochs=3, optimizer=SGD | {"lr": 0.02})
    compiled = make_machine(device="cuda", compile="default")
    (eager_rows, _), (rows, _) = (
        run_training(recipe, device=CUDA, machine=machine) for machine in (REPLAYED, compiled)
    )
    for row, eager_row in zip(rows, eager_rows, strict=True):
        assert row == pytest.approx(eager_row, rel=1e-2)


def test_replayed_dropout_drops_others_at_each_step() -> None:
    """With a rate that changes nothing and the same images, the loss changes only by what is dropped."""
    recipe = make_recipe(MLP | {"dropout": 0.5}, batch_size=10, epochs=8, optimizer=SGD | {"lr": 1e-30})
    rows, eager_rows = (run_training(recipe, device=CUDA, machine=machine)[0] for machine in (REPLAYED, EAGER))
    losses, eager_losses = ([row["train_loss"] for row in each] for each in (rows, eager_rows))
    assert len(set(losses)) == 8
    assert losses == pytest.approx(eager_losses, rel=1e-4)


@pytest.mark.parametrize("where", ["as tensors", "memory-mapped"])
def test_examples_that_do_not_fit_on_the_gpu_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    recipe = make_recipe(CONVNET, epochs=3, batch_size=10, augmentation=NO_AUGMENTATION | {"shift": 1})
    rows, _ = run_training(recipe, device=CUDA, machine=REPLAYED)
    examples = map_examples(tmp_path) if where == "memory-mapped" else make_examples(50)
    pin_memory = Tensor.pin_memory

    def pin_slowly(tensor: Tensor) -> Tensor:
        time.sleep(0.02)  # A step is recorded meanwhile.
        return pin_memory(tensor)

    monkeypatch.setattr(Tensor, "pin_memory", pin_slowly)
    rows_ahead, _ = run_training(recipe, device=CUDA, machine=REPLAYED, train=examples)
    for row, ahead in zip(rows, rows_ahead, strict=True):
        assert ahead == pytest.approx(row, rel=1e-3)
