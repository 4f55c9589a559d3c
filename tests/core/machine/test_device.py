"""Test the choice of device and precision, and how a processor is described."""

from pathlib import Path

import pytest
import torch

from stages.core.files.errors import UserError
from stages.core.machine.device import (
    autocast_dtype,
    describe_device,
    describe_processor,
    full_float32,
    pick_device,
)

CPU = torch.device("cpu")
PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


@pytest.mark.parametrize("name", PRESENT)
def test_a_device_that_is_there_is_taken_and_another_is_an_error(name: str) -> None:
    if PRESENT[name]:
        assert pick_device(name) == torch.device(name)
    else:
        with pytest.raises(UserError, match=rf"^params\.yaml: machine\.device: found '{name}', .* has only: .*cpu$"):
            pick_device(name)


def test_auto_takes_the_first_that_is_there() -> None:
    first = "cuda" if PRESENT["cuda"] else "mps" if PRESENT["mps"] else "cpu"
    assert pick_device("auto") == torch.device(first)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_precision_that_is_named_is_taken(device: str) -> None:
    assert autocast_dtype("float32", torch.device(device)) == torch.float32
    assert autocast_dtype("bfloat16", torch.device(device)) == torch.bfloat16


def test_auto_is_float32_on_mps() -> None:
    assert autocast_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's list of the processor's features")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this PyTorch does not list the features")
def test_auto_on_the_cpu_is_what_it_computes_in() -> None:
    features = Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in features or "amx_bf16" in features
    assert autocast_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.skipif(not PRESENT["cuda"], reason="needs CUDA")
def test_auto_on_cuda_is_what_it_computes_in() -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert autocast_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(("threads", "shown"), [(1, "1 thread"), (3, "3 threads")])
def test_the_number_of_threads_is_part_of_a_cpus_description(threads: int, shown: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert describe_device(CPU) == f"{describe_processor()}, {shown}"
    finally:
        torch.set_num_threads(before)


def test_the_instructions_are_part_of_a_processors_description() -> None:
    assert describe_processor().endswith(f", {torch.backends.cpu.get_cpu_capability()}")


def test_tf32_is_off_only_within_the_block() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
