"""Measure the service under load: `python -m benchmarks.serving` writes serving.md.

This is a closed loop over loopback: each of N connections sends its next request when it has the response to the last
one. The client is this process; the service is another process on the same cores. A request is one 28x28 PNG from the
test split.
"""

import asyncio
import io
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from urllib.parse import urlsplit

import psutil
from PIL import Image

from benchmarks.recipes import latency
from benchmarks.report import PROJECT, spread, table, write
from stages.core.data.idx import read_raw
from stages.core.files.layout import ONNX, raw_folder

CONNECTIONS = {1: 0.2, 8: 0.4, 32: 0.4}  # each number of connections, with its share of the requests
STARTS = 5
IMAGES = 100


@contextmanager
def service() -> Iterator[tuple[psutil.Process, str, float]]:
    """Yield the service's process, its address (host:port) and the seconds until it was ready."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "serving.app", "--port", "0"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = next(line for line in process.stdout if "http://" in line)
        seconds = time.perf_counter() - started
        yield psutil.Process(process.pid), urlsplit(line.split("draw at ")[1].split(";")[0]).netloc, seconds
        process.terminate()


def requests(address: str) -> list[bytes]:
    """Return complete HTTP requests with one image each."""
    made = []
    for image_HW in read_raw(PROJECT / raw_folder("mnist"), "test").inputs[:IMAGES, 0]:
        png = io.BytesIO()
        Image.fromarray(image_HW).save(png, "PNG")
        head = f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Type: image/png\r\n"
        made.append(f"{head}Content-Length: {len(png.getvalue())}\r\n\r\n".encode() + png.getvalue())
    return made


async def connection(address: str, bodies: list[bytes], count: int) -> tuple[list[float], int]:
    """Return the seconds that each request took, and the number of responses with another status than 200."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    seconds, errors = [], 0
    for number in range(count):
        started = time.perf_counter()
        writer.write(bodies[number % len(bodies)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        seconds.append(time.perf_counter() - started)
        errors += not head.startswith(b"HTTP/1.1 200")
    writer.close()
    return seconds, errors


async def load(address: str, bodies: list[bytes], connections: int, count: int) -> dict[str, float]:
    started = time.perf_counter()
    done = await asyncio.gather(*(connection(address, bodies, count // connections) for _ in range(connections)))
    took, seconds = time.perf_counter() - started, [second for each, _ in done for second in each]
    return {
        "connections": connections,
        "requests": len(seconds),
        "errors": sum(errors for _, errors in done),
        "requests_per_second": len(seconds) / took,
        "p50_ms": 1e3 * median(seconds),
        "p99_ms": 1e3 * quantiles(seconds, n=100)[98],
    }


def main() -> None:
    parser = ArgumentParser("python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="number of requests in all (default: 100000)")
    total = parser.parse_args().requests
    starts, model_ms = [], latency(PROJECT / ONNX) / 1e3
    for _ in range(STARTS):
        with service() as (_, _, seconds):
            starts.append(seconds)
    with service() as (process, address, _):
        bodies = requests(address)
        asyncio.run(load(address, bodies, 8, 2000))  # This warms up.
        before = process.memory_info().rss
        results = []
        for connections, share in CONNECTIONS.items():
            results.append(asyncio.run(load(address, bodies, connections, round(share * total))))
            print(results[-1], flush=True)
        after = process.memory_info().rss
    rows = [
        [
            *(f"{result[name]:,.0f}" for name in ("connections", "requests", "errors", "requests_per_second")),
            *(f"{result[name]:.1f}" for name in ("p50_ms", "p99_ms")),
        ]
        for result in results
    ]
    text = [
        "One 28x28 PNG per request, with the recipe of the last run. The client shares the cores with the service.",
        table(["connections", "requests", "errors", "requests/s", "p50, ms", "p99, ms"], rows),
        f"The model itself takes {model_ms:.2f} ms for one image. Batching several requests could not save more than"
        " that per request.",
        f"The service is ready after {spread(starts, 2, ' s')}, in {STARTS} starts. Its memory (RSS) is"
        f" {before / 1e6:.0f} MB before the load and {after / 1e6:.0f} MB after it.",
    ]
    write(
        "serving",
        "The service under load",
        ("onnxruntime", "uvicorn", "fastapi"),
        text,
        {"starts": starts, "rss": [before, after], "model_ms": model_ms, "load": results},
    )


if __name__ == "__main__":
    main()
