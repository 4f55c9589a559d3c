"""Train in several processes that share each batch (PyTorch's DistributedDataParallel)."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from stages.core.files.errors import UserError
from stages.core.machine.device import pick_device
from stages.core.training.config import Machine


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank among those that train together, and their number."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(*values: Tensor) -> list[float]:
    """Return each value, a scalar tensor, summed over all processes."""
    totals = torch.stack(values)
    if dist.is_initialized():
        dist.all_reduce(totals)
    return totals.tolist()


def launch(module: str, machine: Machine) -> bool:
    """Run `module` in `machine.processes` processes; return False if that is 1 or torchrun started this process.

    Raises `UserError` if one of them is killed; one that fails has already reported why. Torchrun ends the others.
    """
    processes, device = machine.processes, pick_device(machine.device)
    if processes == 1 or dist.is_torchelastic_launched():
        return False
    # They are imported only where they are needed, because they print warnings on systems other than Linux.
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    allowed = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, processes)
    if processes > allowed:
        devices = f"{allowed} {device.type} device{'' if allowed == 1 else 's'}"
        raise UserError(f"params.yaml: machine.processes: found {processes}, this machine has {devices}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", module])
    except SignalException as error:
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        for rank, failure in error.failures.items():  # If one is killed, others may fail as a consequence.
            if failure.exitcode < 0:
                name = failure.signal_name()
                raise UserError(f"process {rank} was killed by {name}, all {processes} were stopped") from None
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    return True


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if torchrun started this process; yield its device; on CUDA, each process has its own."""
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
