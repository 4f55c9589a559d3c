"""Processes share each batch equally, and only as many start as the machine has devices."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.files.errors import UserError
from stages.core.training import distributed, loop
from stages.core.training.batches import Examples, batches
from tests.core.training.small_runs import MLP, make_machine, make_recipe, run_training


def orders_of(rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the rows of the training split that this process of so many takes, for each of two epochs."""
    orders: list[Tensor] = []

    def spy(examples: Examples, order_SN: Tensor, device: torch.device) -> Any:
        orders.append(order_SN)
        return batches(examples, order_SN, device)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rank_and_world_size", lambda: (rank, world_size))
        patch.setattr(loop, "DistributedDataParallel", lambda model: model)  # The others are not there.
        patch.setattr(loop, "batches", spy)
        run_training(make_recipe(MLP, batch_size=20, epochs=2))
    return orders


def test_processes_share_each_batch_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = orders_of(0, 1, monkeypatch)
    shares = [orders_of(rank, 4, monkeypatch) for rank in range(4)]
    for epoch, order_SN in enumerate(whole):
        parts = [share[epoch] for share in shares]
        assert [part.shape for part in parts] == [(2, 5)] * 4
        assert torch.equal(torch.cat(parts, dim=1), order_SN)


@pytest.mark.parametrize(("world_size", "batch_size", "found"), [(3, 20, 20), (4, 100, 50)])
def test_a_batch_must_be_divisible_by_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, world_size: int, batch_size: int, found: int
) -> None:
    """If there are fewer examples than a batch, all 50 of them are one."""
    monkeypatch.setattr(loop, "rank_and_world_size", lambda: (0, world_size))
    with pytest.raises(UserError, match=f"^{world_size} processes cannot share batches of {found} examples equally$"):
        run_training(make_recipe(MLP, batch_size=batch_size))


def test_one_process_is_not_launched() -> None:
    assert distributed.launch("stages.train", make_machine()) is False


def test_there_must_be_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    machine = make_machine(device="cuda", processes=25)
    expected = r"^params\.yaml: machine\.processes: found 25, this machine has 2 cuda device"
    with pytest.raises(UserError, match=expected):
        distributed.launch("stages.train", machine)


def test_a_single_process_sums_only_its_own_values() -> None:
    assert distributed.rank_and_world_size() == (0, 1)
    assert distributed.sum_over_processes(torch.tensor(1.5), torch.tensor(2.0)) == [1.5, 2.0]
