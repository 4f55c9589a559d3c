"""Build the losses, optimizers and learning-rate schedules that recipes name; all of them are PyTorch's own.

Shape suffixes: N examples, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from stages.core.training import config


def compute_loss(logits_NK: Tensor, labels_N: Tensor, loss: config.Loss) -> Tensor:
    """Return the mean loss of the examples."""
    match loss:
        case config.CrossEntropy(label_smoothing=smoothing):
            return F.cross_entropy(logits_NK, labels_N, label_smoothing=smoothing)
        case config.Mse():
            return F.mse_loss(logits_NK, F.one_hot(labels_N, logits_NK.shape[1]).to(logits_NK.dtype))


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
