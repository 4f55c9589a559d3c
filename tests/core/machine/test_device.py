import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.core.files.errors import UserError
from stages.core.machine.device import autocast_dtype, pick_device

CPU = torch.device("cpu")
PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


@pytest.mark.parametrize("name", PRESENT)
def test_a_device_that_is_there_is_taken_another_refused(name: str) -> None:
    if PRESENT[name]:
        assert pick_device(name) == torch.device(name)
    else:
        with pytest.raises(UserError, match=rf"^params\.yaml: device: found '{name}', .* has only: .*cpu$"):
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
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell the features")
def test_auto_on_the_cpu_is_what_it_computes_in() -> None:
    features = Path("/proc/cpuinfo").read_text().split()
    native = "avx512_bf16" in features or "amx_bf16" in features
    assert autocast_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.skipif(not PRESENT["cuda"], reason="needs CUDA")
def test_auto_on_cuda_is_what_it_computes_in() -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert autocast_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory is kept by glibc")
def test_memory_that_was_freed_is_kept_for_the_next_tensor() -> None:
    # in a process of its own: what it sets stays. The first tensors find small objects in the way of the freed memory
    code = """
import resource, torch
from stages.core.machine.memory import keep_freed_memory
keep_freed_memory()
for step in range(50):
    if step == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    pages = 4 * 2**24 // resource.getpagesize()
    assert int(done.stdout) < pages, f"10 tensors of {pages} pages"
