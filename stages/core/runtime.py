"""What the machine decides: device, precision, memory and processes."""

import ctypes
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import psutil
import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

from stages.core.errors import UserError
from stages.core.params import Params


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


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32, whose products have 10 bits, where a GPU would use it."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def keep_freed_memory() -> None:
    """Have the memory of freed tensors wait for the next ones, not go back to the system, where the C library is glibc.

    A training step frees what the next one takes, and to get it anew, page by page, took up to a third of the time.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_max, 0)


def tune_process(device: torch.device) -> None:
    """Settings of the whole process that make a training on `device` faster."""
    keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, where a recipe is in float32
        torch.backends.cudnn.benchmark = True  # batches are all of one shape: the fastest kernel is looked for once


class CudaGraph:
    """`work` on CUDA, its kernels recorded once, then launched together: small ones take less time than their launch.

    The first call runs as it is, while libraries choose their kernels and take their memory. Later ones repeat what the
    kernels did, with the new values of `inputs`: `work` returns nothing, waits for nothing and takes inputs of always
    the same shapes; tensors that it makes, such as gradients, stay where they are. `generator` is one that it draws
    from beside torch's own; both go on as they would.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, work: Callable[..., None], generator: torch.Generator) -> None:
        self.work, self.generator = work, generator
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        self.inputs: tuple[Tensor, ...] = ()
        self.recorded = False

    def __call__(self, *inputs: Tensor) -> None:
        if not self.inputs:
            self.inputs = tuple(tensor.clone() for tensor in inputs)
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.work(*self.inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        if not self.recorded:
            self.graph.register_generator_state(self.generator)
            # what reads ahead may take memory meanwhile, in its own thread
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.work(*self.inputs)
            self.recorded = True
        self.graph.replay()


def fits(data: TensorDict, device: torch.device) -> bool:
    """Whether the data take at most half of the memory that is free: the other half is for the work on them."""
    size = data.bytes()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return bool(2 * size <= free)


def free_memory() -> int:
    """Bytes that this process may take, the limits of its container and of all around it respected.

    Those are Linux's control groups, version 1 or 2.
    """
    limits = [psutil.virtual_memory().available]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        first = "memory" in controllers.split(",")
        root, name = ("memory", "memory.limit_in_bytes") if first else ("", "memory.max")
        # in a container its own group can be the root of what is mounted
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            file = Path("/sys/fs/cgroup") / root / folder.relative_to("/") / name
            if file.exists() and (limit := file.read_text().strip()).isdecimal():
                limits.append(int(limit))
    return min(limits)


def place(data: TensorDict, device: torch.device) -> TensorDict:
    """On the device, if they fit; else as they are."""
    return data.to(device) if fits(data, device) else data


def group() -> tuple[int, int]:
    """This process's rank among those that train together, and their number."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def launch(module: str, knobs: Params) -> bool:
    """Run `module` in `train.processes` processes; False where that is one, or torchrun has started this one.

    Raises `UserError` where one of them is killed; one that fails has said why. Torchrun ends the others.
    """
    processes, device = knobs.train.processes, pick_device(knobs.device)
    if processes == 1 or dist.is_torchelastic_launched():
        return False
    # imported by who needs it alone: on machines other than Linux it complains
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    allowed = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, processes)
    if processes > allowed:
        raise UserError(
            f"params.yaml: train.processes: found {processes}, this machine has {allowed} {device.type} device"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", module])
    except SignalException as error:
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        for rank, failure in error.failures.items():  # where one is killed, another can fail for that
            if failure.exitcode < 0:
                name = failure.signal_name()
                raise UserError(f"process {rank} was killed by {name}, all {processes} have been ended") from None
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    return True


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """The device of this process; where torchrun has started it, a CUDA device of its own, and its process group."""
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
