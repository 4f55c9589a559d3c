"""Losses, optimizers and learning-rate schedules that recipes name, all of them torch's own.

Shape suffixes: N images, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from stages.core import params


def loss_of(logits_NK: Tensor, labels_N: Tensor, config: params.CrossEntropy | params.Mse) -> Tensor:
    """The mean over the images."""
    match config:
        case params.CrossEntropy(label_smoothing=smoothing):
            return F.cross_entropy(logits_NK, labels_N, label_smoothing=smoothing)
        case params.Mse():
            return F.mse_loss(logits_NK, F.one_hot(labels_N, logits_NK.shape[1]).to(logits_NK.dtype))


def l1_norm(model: nn.Module) -> Tensor:
    """The sum of absolute weights; biases and norms, which are vectors, are left alone."""
    return torch.stack([weight.abs().sum() for weight in model.parameters() if weight.ndim > 1]).sum()


def make_optimizer(model: nn.Module, config: params.Sgd | params.Adam | params.AdamW) -> torch.optim.Optimizer:
    weights = list(model.parameters())
    match config:
        case params.Sgd():
            return torch.optim.SGD(
                weights,
                config.lr,
                config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.nesterov,
                fused=True,
            )
        case params.Adam():
            return torch.optim.Adam(weights, config.lr, weight_decay=config.weight_decay, fused=True)
        case params.AdamW():
            return torch.optim.AdamW(weights, config.lr, weight_decay=config.weight_decay, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: params.Constant | params.OneCycle | params.Cosine, steps: int
) -> lr_scheduler.LRScheduler:
    """For a training of `steps` steps."""
    match config:
        case params.Constant():
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case params.OneCycle(warmup=warmup):
            steps = max(steps, 3)
            warmup = max(warmup, 2 / steps)  # torch divides by the length of each leg
            peak = optimizer.param_groups[0]["lr"]
            turns_beta = "betas" in optimizer.defaults  # sgd keeps the momentum that its recipe names
            return lr_scheduler.OneCycleLR(
                optimizer, peak, total_steps=steps, pct_start=warmup, cycle_momentum=turns_beta
            )
        case params.Cosine(warmup=warmup):
            up = min(round(warmup * steps), steps - 1)
            down = lr_scheduler.CosineAnnealingLR(optimizer, steps - up)
            if not up:
                return down
            rise = lr_scheduler.LinearLR(optimizer, 1 / (up + 1), total_iters=up)
            return lr_scheduler.SequentialLR(optimizer, [rise, down], [up])
