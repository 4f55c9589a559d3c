"""Choose the device and the precision, and describe the processor in use."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stages.core.files.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device that `machine.device` in params.yaml names; auto is CUDA, else MPS, else CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        found = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"params.yaml: machine.device: found '{name}', but this machine has only: {found}")
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return float32 or bfloat16; `auto` is bfloat16 where the hardware supports it."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.11 does not have it.
        features = torch.cpu.get_capabilities()
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute in full float32 where a GPU would use TF32, which rounds inputs to a 10-bit mantissa."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def describe_device(device: torch.device) -> str:
    """Return the device's name; on a CPU also the number of threads, which affects the rounding of sums."""
    match device.type:
        case "cuda":
            return torch.cuda.get_device_name(device)
        case "cpu":
            threads = torch.get_num_threads()
            return f"{describe_processor()}, {threads} thread{'s' if threads > 1 else ''}"
        case kind:
            return f"{describe_processor()}, {kind}"


def describe_processor() -> str:
    """Return the processor's name and the instruction set that PyTorch uses, which affects the rounding of sums."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
