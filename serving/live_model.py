"""The model that is served: another one as soon as its file changes, if that one proves to work.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from stages.core.deploy.onnx_model import OnnxModel
from stages.core.files.errors import UserError

LOOK_S = 1.0  # between two looks at the file
THREADS = 1  # requests are shared among the cores, one image is not: threads that wait for each other cost more
TOLERANCE = 1e-3  # float32 sums in another order, with room

log = logging.getLogger("serving")


class LiveModel:
    """The model in `path`; while that is missing or refused, the last good one.

    Attributes:
        model: what answers. Take it once for a request, it may be another one the next moment.
        since: when it was loaded.
        refused: why what lies in `path` now is not served, or None.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: str | None = None
        self.stamp = stamp(path)
        if self.stamp is None:
            raise UserError(f"{path} not found: run the pipeline first, with `make run`")
        self.model, self.since = load(path), datetime.now(UTC)

    def refresh(self) -> None:
        """Load the file if it is another one than at the last look."""
        found = stamp(self.path)
        if found == self.stamp:
            return
        self.stamp = found
        try:
            if found is None:
                raise UserError(f"{self.path} is missing")
            self.model, self.since = load(self.path), datetime.now(UTC)
        except UserError as error:
            self.refused = str(error)
            log.warning("%s; model %s is still served", error, self.model.sha256[:12])
        else:
            self.refused = None
            log.info("model %s is served", self.model.sha256[:12])

    async def watch(self) -> None:
        """Look at the file for as long as this is awaited."""
        while True:
            await asyncio.sleep(LOOK_S)
            await asyncio.to_thread(self.refresh)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs whenever the file was replaced or written to; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def load(path: Path) -> OnnxModel:
    """The checked model; `UserError` for any other file, whatever is wrong with it."""
    try:
        model = OnnxModel(path, THREADS)
        broken = broken_rules(model)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's have no common base class
        raise UserError(f"{path} does not work: {error}") from error
    if broken:
        raise UserError(f"{path} does not work: {', '.join(broken)}")
    return model


def broken_rules(model: OnnxModel) -> list[str]:
    """What goes wrong with blank, full and noise images, each alone and all in one batch."""
    planes, height, width = model.spec.shape
    if planes != 1:
        return [f"its images have {planes} planes, allowed is 1: grey levels"]
    noise_NCHW = np.random.default_rng(1).integers(256, size=(6, 1, height, width), dtype=np.uint8)
    images_NCHW = np.concatenate((np.zeros_like(noise_NCHW[:1]), np.full_like(noise_NCHW[:1], 255), noise_NCHW))
    logits_NK, probabilities_NK = model.run(images_NCHW)
    if logits_NK.shape != (len(images_NCHW), len(model.spec.classes)) or not np.isfinite(logits_NK).all():
        return ["not every image gets a finite logit for each class"]
    alone_NK = np.concatenate([model.run(image_CHW[None])[0] for image_CHW in images_NCHW])
    softmax_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    softmax_NK /= softmax_NK.sum(axis=1, keepdims=True)
    rules = {
        "its probabilities are not the softmax of its logits": np.allclose(
            probabilities_NK, softmax_NK, atol=TOLERANCE
        ),
        "an image alone gets another answer than in a batch": np.allclose(alone_NK, logits_NK, TOLERANCE, TOLERANCE),
    }
    return [rule for rule, kept in rules.items() if not kept]
