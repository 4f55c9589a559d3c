"""Record the kernels of a step on CUDA and replay them."""

from collections.abc import Callable

import torch
from torch import Tensor


class CudaGraph:
    """Run `work` on CUDA with its kernels recorded: launching a small kernel takes longer than running it.

    The first call runs `work` as it is, while libraries choose their kernels and allocate memory. Later calls replay
    its kernels with the new values of `inputs`. So `work` must return nothing, never wait for the device, and always
    take inputs of the same shapes. Tensors that it makes, such as gradients, stay where they are. Random numbers from
    PyTorch's generator and from `generator` advance as they would without recording.

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
            # The thread that reads ahead may allocate memory during the recording.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.work(*self.inputs)
            self.recorded = True
        self.graph.replay()
