"""Batches hold the examples that were asked for, wherever these are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.data.splits import Split
from stages.core.files.arrays import map_array, write_array
from stages.core.training import batches as module
from stages.core.training.batches import Examples, as_tensors, batches, place
from tests.core.training.small_runs import (
    CONVNET,
    CPU,
    NO_AUGMENTATION,
    make_examples,
    make_recipe,
    run_training,
    same_weights,
    weights_of,
)

ORDER_SN = torch.tensor([[3, 1], [49, 0], [7, 7]])


def map_examples(folder: Path, count: int = 50) -> Examples:
    """Write examples to `folder` as stage `normalize` does, and map them."""
    examples = make_examples(count)
    inputs = examples.inputs.numpy()
    write_array(folder / "train.npy", inputs.shape, inputs.dtype, [inputs])
    mapped = map_array(folder / "train.npy", inputs.shape, inputs.dtype)
    return as_tensors(Split(mapped, examples.labels.numpy()))


def test_a_mapped_split_shares_its_memory_with_the_tensors(tmp_path: Path) -> None:
    examples = map_examples(tmp_path)
    assert examples.mapped is not None
    assert np.shares_memory(examples.mapped, examples.inputs.numpy())
    assert (examples.size, examples.inputs.dtype, examples.labels.dtype) == (50, torch.uint8, torch.int64)


def test_a_split_in_memory_is_not_mapped() -> None:
    examples = make_examples(50)
    assert as_tensors(Split(examples.inputs.numpy(), examples.labels.numpy())).mapped is None


def test_examples_that_fit_are_copied_into_memory(tmp_path: Path) -> None:
    examples = map_examples(tmp_path)
    placed = place(examples, CPU)
    assert placed.mapped is None
    assert torch.equal(placed.inputs, examples.inputs)
    assert torch.equal(placed.labels, examples.labels)
    assert not np.shares_memory(placed.inputs.numpy(), examples.inputs.numpy())


def test_examples_that_do_not_fit_stay_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fits", lambda *_: False)
    examples = map_examples(tmp_path)
    assert place(examples, CPU) is examples


def test_every_process_on_a_cpu_needs_room_for_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = map_examples(tmp_path)
    room = 2 * examples.inputs.nbytes
    monkeypatch.setattr(module, "fits", lambda size, _device: size <= room)
    for processes, fit in ((2, True), (3, False)):
        monkeypatch.setattr(module, "rank_and_world_size", lambda processes=processes: (0, processes))
        assert (place(examples, CPU) is not examples) == fit


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "mapped"])
def test_each_batch_holds_the_examples_of_its_row(tmp_path: Path, mapped: bool) -> None:
    expected = make_examples(50)
    found = [*batches(map_examples(tmp_path) if mapped else expected, ORDER_SN, CPU)]
    assert len(found) == len(ORDER_SN)
    for rows_N, (inputs, labels_N) in zip(ORDER_SN, found, strict=True):
        assert torch.equal(inputs, expected.inputs[rows_N])
        assert torch.equal(labels_N, expected.labels[rows_N])


def test_the_bytes_of_a_batch_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[bytes] = []

    def note(descriptor: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        announced.append(os.pread(descriptor, size, offset))

    monkeypatch.setattr(os, "posix_fadvise", note)
    examples = map_examples(tmp_path)
    for _ in batches(examples, ORDER_SN, CPU):
        pass
    assert announced == [examples.inputs[row].numpy().tobytes() for row in ORDER_SN.flatten().tolist()]


def test_mapped_examples_train_as_those_in_memory(tmp_path: Path) -> None:
    recipe = make_recipe(CONVNET, epochs=2, augmentation=NO_AUGMENTATION | {"shift": 1})
    rows, state = run_training(recipe)
    mapped_rows, mapped_state = run_training(recipe, train=map_examples(tmp_path))
    assert mapped_rows == rows
    assert same_weights(weights_of(mapped_state), weights_of(state))


def test_an_error_while_reading_ahead_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "read_ahead", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(batches(map_examples(tmp_path), ORDER_SN, CPU))
