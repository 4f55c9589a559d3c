"""Hold the model that is served, and replace it when its file is replaced by another model that works.

Shape suffixes: N examples, K classes.
"""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from stages.core.deploy.onnx_model import OnnxModel
from stages.core.examples.image import adversarial
from stages.core.files.errors import UserError

INTERVAL_S = 1.0  # seconds between two checks of the file
THREADS = 1  # Requests are spread over the cores. Threads that share one small input mostly wait for each other.
TOLERANCE = 1e-3  # This allows for float32 sums that are computed in a different order.
NOISE_INPUTS = 6

log = logging.getLogger("serving")


class LiveModel:
    """Hold the model in a file or, while the file is missing or rejected, the last model that worked.

    Attributes:
        model: the model that is served. Read it once per request, because it may be replaced at any moment.
        since: when it was loaded.
        rejected: why the current content of the file is not served, or None.
    """

    def __init__(self, path: Path) -> None:
        """Load the file; raise `UserError` if it is missing or does not work."""
        self.path = path
        self.rejected: str | None = None
        self.stamp = read_stamp(path)
        if self.stamp is None:
            raise UserError(f"{path} not found: run the pipeline first, with `make run`")
        self.model, self.since = load(path), datetime.now(UTC)

    def refresh(self) -> None:
        """Load the file if it has changed since the last check."""
        stamp = read_stamp(self.path)
        if stamp == self.stamp:
            return
        self.stamp = stamp
        try:
            if stamp is None:
                raise UserError(f"{self.path} is missing")
            self.model, self.since = load(self.path), datetime.now(UTC)
        except UserError as error:
            self.rejected = str(error)
            log.warning("%s; model %s is still served", error, self.model.sha256[:12])
        else:
            self.rejected = None
            log.info("model %s is served", self.model.sha256[:12])

    async def watch(self) -> None:
        """Check the file at regular intervals until this task is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await asyncio.to_thread(self.refresh)


def read_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when the file is replaced or written to, or None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def load(path: Path) -> OnnxModel:
    """Return the model in a file if it works; otherwise raise `UserError`, whatever is wrong with the file."""
    try:
        model = OnnxModel(path, THREADS)
        violations = find_violations(model)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base class.
        raise UserError(f"{path} does not work: {error}") from error
    if violations:
        raise UserError(f"{path} does not work: {', '.join(violations)}")
    return model


def find_violations(model: OnnxModel) -> list[str]:
    """Return the rules that the outputs for extreme and random inputs violate, each alone and all in one batch."""
    inputs = np.concatenate([*adversarial(model.spec, NOISE_INPUTS, seed=1).values()])
    logits_NK, probabilities_NK = model.run(inputs)
    if logits_NK.shape != (len(inputs), len(model.spec.classes)) or not np.isfinite(logits_NK).all():
        return ["not every image gets a finite logit for each class"]
    alone_NK = np.concatenate([model.run(each[None])[0] for each in inputs])
    softmax_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    softmax_NK /= softmax_NK.sum(axis=1, keepdims=True)
    rules = {
        "its probabilities are not the softmax of its logits": np.allclose(
            probabilities_NK, softmax_NK, atol=TOLERANCE
        ),
        "an image alone gets another answer than in a batch": np.allclose(alone_NK, logits_NK, TOLERANCE, TOLERANCE),
    }
    return [rule for rule, holds in rules.items() if not holds]
