"""What the machine decides: device and precision."""

import torch

from stages.core.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device that `device` in params.yaml names; auto is CUDA, else MPS, else CPU."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present[name]:
        found = ", ".join(kind for kind, there in present.items() if there)
        raise UserError(f"params.yaml: device: found '{name}', but this machine has only: {found}")
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; auto is bfloat16 where the hardware computes in it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11 or later
        features = torch.cpu.get_capabilities()
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
