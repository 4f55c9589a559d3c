"""Measure free memory, and keep the memory that a training step frees for the next one."""

import ctypes
import platform
from pathlib import Path, PurePosixPath

import torch


def fits(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes fit into half of the free memory; the other half is left for the computation."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return bool(2 * size <= free)


def free_memory() -> int:
    """Return the bytes that this process may still allocate, within the limits of its control groups (v1 and v2)."""
    import psutil  # noqa: PLC0415  # Importing it takes a fifth of a second.

    limits = [psutil.virtual_memory().available]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        first = "memory" in controllers.split(",")
        root, name = ("memory", "memory.limit_in_bytes") if first else ("", "memory.max")
        # In a container, its own group can be the root of what is mounted.
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            file = Path("/sys/fs/cgroup") / root / folder.relative_to("/") / name
            if file.exists() and (limit := file.read_text().strip()).isdecimal():
                limits.append(int(limit))
    return min(limits)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process, where the C library is glibc.

    A training step frees what the next one allocates. Getting it from the system again, page by page, can take a
    considerable share of the time.
    """
    trim_threshold, mmap_max = -1, -4  # from glibc's malloc.h
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_max, 0)
