"""Train epoch by epoch.

Shape suffixes: N examples, M = N + 1 examples if each is mixed with the one before it, else N, S steps, K classes.
"""

import hashlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stages.core.examples.augmentation import augment, slots
from stages.core.examples.mixing import draw_mixes, is_mixing, mix
from stages.core.files.errors import UserError
from stages.core.machine.device import autocast_dtype
from stages.core.training.batches import Examples, batches
from stages.core.training.config import Loss, Machine, Recipe
from stages.core.training.cuda_graph import CudaGraph
from stages.core.training.distributed import rank_and_world_size, sum_over_processes
from stages.core.training.optimization import compute_loss, l1_norm, make_class_weights
from stages.core.training.progress import Row
from stages.core.training.state import TrainState, moving_average_step

EVAL_BATCH_SIZE = 1000


def global_batch_size(recipe: Recipe, examples: int) -> int:
    """Return the recipe's batch size, or the number of training examples if there are fewer."""
    return min(recipe.batch_size, examples)


def count_steps(recipe: Recipe, examples: int) -> int:
    """Return the number of full batches in an epoch; the examples that are left over differ from epoch to epoch."""
    return examples // global_batch_size(recipe, examples)


def train_epochs(
    state: TrainState,
    recipe: Recipe,
    train: Examples,
    validation: Examples,
    seed: int,
    *,
    machine: Machine,
    first_epoch: int = 1,
    on_step: Callable[[], object] = lambda: None,
) -> Iterator[Row]:
    """Train in place; yield the row of the history after each epoch, from `first_epoch` to the recipe's last.

    The examples are on the model's device or in memory maps. Each epoch has its own random streams, so training may
    resume at any epoch. The order and the augmentation of the examples do not depend on the number of processes.
    """
    rank, world_size = rank_and_world_size()
    device = next(state.model.parameters()).device
    batch_size, steps = global_batch_size(recipe, train.size), count_steps(recipe, train.size)
    if batch_size % world_size:
        raise UserError(f"{world_size} processes cannot share batches of {batch_size} examples equally")
    own_size = batch_size // world_size
    # The validation split may have a class that the training split lacks.
    weights_K = make_class_weights(
        recipe.loss, train.labels, int(max(train.labels.max(), validation.labels.max())) + 1, device
    )

    # The network as it is called: shared among processes, compiled, in the precision of the recipe.
    dtype = autocast_dtype(recipe.precision, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    network = DistributedDataParallel(state.model) if world_size > 1 else state.model
    if machine.compile != "none":
        network = torch.compile(network, mode=machine.compile)  # type: ignore[assignment]  # It is called the same way.

    # Sums stay on the device, because reading a number at each step would wait for the step to finish.
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    augmentation_generator = torch.Generator(device)
    mixing = is_mixing(recipe.augmentation)

    def compute_gradients(inputs: Tensor, labels_M: Tensor, mixes_N5: Tensor | None = None) -> None:
        """Run the step up to the gradients; with `mixes_N5`, mix each example but the first with the one before it."""
        state.optimizer.zero_grad()
        # Augmentation is outside of autocast, because bfloat16 is too coarse for coordinates.
        augmented = augment(inputs, recipe.augmentation, augmentation_generator, rank, world_size, neighbour=mixing)
        augmented, own_N = (augmented, None) if mixes_N5 is None else mix(augmented, mixes_N5)
        with autocast:
            logits_NK = network(augmented)
        labels_N, loss = mixed_loss(logits_NK.float(), labels_M, own_N, recipe.loss, weights_K)
        loss_sum.add_(loss.detach(), alpha=own_size)
        correct.add_((logits_NK.detach().argmax(1) == labels_N).sum())
        if recipe.regularization.l1:
            loss = loss + recipe.regularization.l1 * l1_norm(state.model)
        loss.backward()

    if machine.cuda_graph and device.type == "cuda" and world_size == 1:
        compute_gradients = CudaGraph(compute_gradients, augmentation_generator)  # type: ignore[assignment]
    update_average: Callable[[], object] = lambda: None  # noqa: E731
    if state.average:
        update_average = moving_average_step(state.average, state.model, recipe.regularization.ema)

    for epoch in range(first_epoch, recipe.epochs + 1):
        augmentation_generator.manual_seed(derive_seed("augmentation", seed, epoch))
        torch.manual_seed(derive_seed("dropout", seed, epoch, rank))
        lr = float(state.schedule.get_last_lr()[0])
        loss_sum.zero_()
        correct.zero_()

        network.train()
        for inputs_of_step in epoch_inputs(train, recipe, seed, epoch, device):
            compute_gradients(*inputs_of_step)
            state.optimizer.step()
            state.schedule.step()
            update_average()
            on_step()

        train_loss, train_correct = sum_over_processes(loss_sum, correct)
        with autocast:
            validation_loss, validation_accuracy = evaluate_loss(
                state.best_model, validation, recipe.loss, device, weights_K
            )
        yield {
            "epoch": epoch,
            "train_loss": train_loss / (steps * batch_size),
            "train_accuracy": train_correct / (steps * batch_size),
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "lr": lr,
        }


def epoch_inputs(
    train: Examples, recipe: Recipe, seed: int, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what this process needs for each step of an epoch, on `device`: inputs [M, ...], labels [M].

    With mixing, each step also gets the amounts [N, 5], see `draw_mixes`.
    """
    rank, world_size = rank_and_world_size()
    batch_size, steps = global_batch_size(recipe, train.size), count_steps(recipe, train.size)
    own_size = batch_size // world_size
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    order_SN = torch.randperm(train.size, generator=generator)[: steps * batch_size].view(steps, batch_size)
    own_slice = slice(rank * own_size, (rank + 1) * own_size)
    if not is_mixing(recipe.augmentation):
        yield from batches(train, order_SN[:, own_slice], device)
        return
    own_order_SM = order_SN[:, slots(rank, own_size, batch_size, order_SN.device)]
    mixing_seed = derive_seed("mixing", seed, epoch)
    mixes_SN5 = draw_mixes(recipe.augmentation, mixing_seed, steps, batch_size, train.inputs.shape[1:])
    own_mixes_SN5 = mixes_SN5[:, own_slice].to(device)
    for (inputs, labels_M), mixes_N5 in zip(batches(train, own_order_SM, device), own_mixes_SN5, strict=True):
        yield inputs, labels_M, mixes_N5


def evaluate_loss(
    model: nn.Module, examples: Examples, loss: Loss, device: torch.device, weights_K: Tensor | None = None
) -> tuple[float, float]:
    """Return the mean loss and the accuracy on all examples, without augmentation or dropout."""
    rank, world_size = rank_and_world_size()
    model.eval()
    if dist.is_initialized():
        for statistics in model.buffers():  # Each process has its own; those of the first one are saved.
            dist.broadcast(statistics, 0)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    with torch.inference_mode():
        for start in range(rank * EVAL_BATCH_SIZE, examples.size, world_size * EVAL_BATCH_SIZE):
            rows = slice(start, start + EVAL_BATCH_SIZE)
            inputs, labels_N = examples.inputs[rows].to(device), examples.labels[rows].to(device)
            logits_NK = model(inputs).float()
            loss_sum += compute_loss(logits_NK, labels_N, loss, weights_K) * len(labels_N)
            correct += (logits_NK.argmax(1) == labels_N).sum()
    loss_total, correct_total = sum_over_processes(loss_sum, correct)
    return loss_total / examples.size, correct_total / examples.size


def mixed_loss(
    logits_NK: Tensor, labels_M: Tensor, own_N: Tensor | None, loss: Loss, weights_K: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each example's label, of the larger share if it is mixed, and the mean loss.

    `own_N` is the share of the example itself; the rest is that of the one before it. The loss of a mixed example is
    that of both labels, weighted by their shares. None means that no example is mixed.
    """
    if own_N is None:
        return labels_M, compute_loss(logits_NK, labels_M, loss, weights_K)
    own_labels_N, other_labels_N = labels_M[1:], labels_M[:-1]
    own_losses_N, other_losses_N = (
        compute_losses(logits_NK, labels, loss, weights_K) for labels in (own_labels_N, other_labels_N)
    )
    labels_N = torch.where(own_N >= 0.5, own_labels_N, other_labels_N)
    return labels_N, torch.lerp(other_losses_N, own_losses_N, own_N).mean()


def compute_losses(logits_NK: Tensor, labels_N: Tensor, loss: Loss, weights_K: Tensor | None) -> Tensor:
    """Return the loss of each example."""

    def loss_of_one(logits_K: Tensor, label: Tensor) -> Tensor:
        return compute_loss(logits_K[None], label[None], loss, weights_K)

    return torch.vmap(loss_of_one)(logits_NK, labels_N)


def derive_seed(*name: object) -> int:
    """Return the seed of the random stream of this name; PyTorch's generator on a CPU uses only 32 bits of a seed."""
    return int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:4])
