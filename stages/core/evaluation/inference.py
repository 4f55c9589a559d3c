"""Compute a model's logits for a whole split."""

import torch
from torch import Tensor, nn

from stages.core.machine.device import full_float32


def infer(model: nn.Module, inputs: Tensor, device: torch.device, batch_size: int) -> Tensor:
    """Return logits float32 [N, K] on the CPU for raw inputs [N, *shape], computed in float32."""
    model.to(device).eval()
    with torch.inference_mode(), full_float32():  # Parity compares these predictions with a CPU's.
        return torch.cat([model(batch.to(device)).float().cpu() for batch in inputs.split(batch_size)])
