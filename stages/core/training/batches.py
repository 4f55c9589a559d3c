"""Cut the examples of a split into batches, on the device where they are needed.

Shape suffixes: N examples, S steps.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.core.data.splits import Split
from stages.core.machine.memory import fits
from stages.core.training.distributed import rank_and_world_size


class Examples(NamedTuple):
    """Hold the examples of one split as tensors, on a device or in a memory map."""

    inputs: Tensor  # raw, [N, *spec.shape]
    labels: Tensor  # int64 [N]
    mapped: np.memmap | None = None  # the memory map, if `inputs` is one

    @property
    def size(self) -> int:
        return len(self.labels)


def as_tensors(split: Split) -> Examples:
    """Return the split as tensors that share its memory."""
    mapped = split.inputs if isinstance(split.inputs, np.memmap) else None
    return Examples(torch.from_numpy(split.inputs), torch.from_numpy(split.labels), mapped)


def place(examples: Examples, device: torch.device) -> Examples:
    """Return the examples in the memory of the device if they fit; otherwise as they are, to be read batch by batch.

    Processes that train on a CPU share its memory, and each has a copy.
    """
    copies = rank_and_world_size()[1] if device.type == "cpu" else 1
    if not fits(copies * examples.inputs.nbytes, device):
        return examples
    # Copy on the CPU, too: pages of a memory map may be dropped and read again.
    return Examples(examples.inputs.to(device, copy=True), examples.labels.to(device))


def batches(examples: Examples, order_SN: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and labels of each row of `order_SN` on `device`.

    Examples in a memory map are read one batch ahead, for CUDA through pinned memory.
    """
    if examples.mapped is None and examples.inputs.device.type == device.type:
        for rows_N in order_SN.to(device):
            yield examples.inputs[rows_N], examples.labels[rows_N]
        return

    def fetch(rows_N: Tensor) -> tuple[Tensor, Tensor]:
        read_ahead(examples, rows_N)
        batch = examples.inputs[rows_N], examples.labels[rows_N]
        if device.type == "cuda":
            batch = batch[0].pin_memory(), batch[1].pin_memory()
        return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(fetch, order_SN[0])
        for rows_N in order_SN[1:]:
            batch, coming = coming.result(), reader.submit(fetch, rows_N)
            yield batch
        yield coming.result()


def read_ahead(examples: Examples, rows_N: Tensor) -> None:
    """Ask the kernel to read these rows of a memory map all at once; page faults would wait for each page in turn."""
    if examples.mapped is None or examples.mapped.filename is None or not hasattr(os, "posix_fadvise"):
        return
    size = examples.inputs[0].nbytes
    file = os.open(examples.mapped.filename, os.O_RDONLY)
    try:
        for row in rows_N.tolist():
            os.posix_fadvise(file, examples.mapped.offset + row * size, size, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)
