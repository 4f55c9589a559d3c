"""Build the losses, optimizers and learning-rate schedules that recipes name; all of them are PyTorch's own.

Shape suffixes: N examples, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from stages.core.training import config


def make_class_weights(
    loss: config.Loss, labels_N: Tensor, num_classes: int, device: torch.device | None = None
) -> Tensor | None:
    """Return the weight of each class, float32 [K], or None if the loss weights all examples equally.

    Of N training examples, n_k are of class k. Its weight is (N / (K n_k)) ** class_weight, divided by the mean of this
    value over the training examples. Their mean weight is then 1, so the loss keeps its scale, and the learning rate
    and the factor of L1 need no other values. With an exponent of 1, all classes have the same total weight; 0.5 is a
    compromise between that and their frequencies.
    """
    if not loss.class_weight:
        return None
    total = len(labels_N)
    counts_K = labels_N.cpu().bincount(minlength=num_classes).double()
    # A class that only the validation split has is weighted as if it had one training example.
    weights_K = (total / (num_classes * counts_K.clamp(min=1))) ** loss.class_weight
    return (weights_K * total / (counts_K * weights_K).sum()).float().to(device)


def compute_loss(logits_NK: Tensor, labels_N: Tensor, loss: config.Loss, weights_K: Tensor | None = None) -> Tensor:
    """Return the mean loss of the examples, each multiplied by the weight of its class if `weights_K` is given.

    PyTorch divides a weighted loss by the sum of the weights in the batch. Here the divisor is the number of examples,
    so an example counts the same in every batch, and the losses of equal slices of a batch have the loss of the batch
    as their mean, whatever the number of processes. PyTorch also multiplies each term of a smoothed target by the
    weight of its own class. With few rare classes of high weight, these would then be the main target of every example.
    Here the whole loss of an example has one weight, as if the example occurred that many times.
    """
    match loss:
        case config.CrossEntropy(label_smoothing=smoothing):
            if weights_K is None:
                return F.cross_entropy(logits_NK, labels_N, label_smoothing=smoothing)
            losses_N = F.cross_entropy(logits_NK, labels_N, label_smoothing=smoothing, reduction="none")
        case config.Mse():
            targets_NK = F.one_hot(labels_N, logits_NK.shape[1]).to(logits_NK.dtype)
            if weights_K is None:
                return F.mse_loss(logits_NK, targets_NK)
            losses_N = F.mse_loss(logits_NK, targets_NK, reduction="none").mean(1)
    return (losses_N * weights_K[labels_N]).mean()


def l1_norm(model: nn.Module) -> Tensor:
    """Return the sum of the absolute weights, without biases and the weights of norms, which are vectors."""
    return torch.stack([weight.abs().sum() for weight in model.parameters() if weight.ndim > 1]).sum()


def make_optimizer(model: nn.Module, optimizer: config.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters of the model."""
    weights = list(model.parameters())
    match optimizer:
        case config.Sgd(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay):
            return torch.optim.SGD(weights, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=True)
        case config.Adam(lr=lr, weight_decay=decay):
            return torch.optim.Adam(weights, lr, weight_decay=decay, fused=True)
        case config.AdamW(lr=lr, weight_decay=decay):
            return torch.optim.AdamW(weights, lr, weight_decay=decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, schedule: config.Schedule, steps: int) -> lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate for a training run of `steps` steps."""
    match schedule:
        case config.Constant():
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case config.OneCycle(warmup=warmup):
            steps = max(steps, 3)
            warmup = max(warmup, 2 / steps)  # PyTorch divides by the length of each leg.
            peak = optimizer.param_groups[0]["lr"]
            has_betas = "betas" in optimizer.defaults  # SGD keeps the momentum that its recipe states.
            return lr_scheduler.OneCycleLR(
                optimizer, peak, total_steps=steps, pct_start=warmup, cycle_momentum=has_betas
            )
        case config.Cosine(warmup=warmup):
            rising = min(round(warmup * steps), steps - 1)
            fall = lr_scheduler.CosineAnnealingLR(optimizer, steps - rising)
            if not rising:
                return fall
            rise = lr_scheduler.LinearLR(optimizer, 1 / (rising + 1), total_iters=rising)
            return lr_scheduler.SequentialLR(optimizer, [rise, fall], [rising])
