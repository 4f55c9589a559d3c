"""Count requests and answers for Prometheus."""

import asyncio
import time

from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.core.deploy.onnx_model import OnnxModel

REQUESTS = Counter("requests", "Requests by path and status", ["path", "status"])
SECONDS = Histogram(
    "request_seconds", "Seconds from a request's headers to the end of the response", ["path"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)  # fmt: skip
IMAGES = Counter("images", "Images classified, by label and whether the model was unsure", ["label", "unsure"])
MODEL = Gauge("model_info", "1 for the model that is served", ["sha256", "recipe", "dataset"])

CONTENT_TYPE = CONTENT_TYPE_LATEST


def count_answer(label: str, *, unsure: bool) -> None:
    """Count one image that was classified."""
    IMAGES.labels(label, str(unsure).lower()).inc()


def render(model: OnnxModel) -> bytes:
    """Return all metrics in Prometheus's text format, with the model that is served now."""
    MODEL.clear()
    MODEL.labels(model.sha256, model.metadata.get("recipe"), model.metadata.get("dataset")).set(1)
    return generate_latest()


class Measured:
    """Count requests and the seconds that they take, with all unknown paths as one; answer HEAD like GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # Uvicorn leaves out the body of the response.
            scope = {**scope, "method": "GET"}
        status, answered, started = 500, False, time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # The service is shutting down, and the time for open requests is up.
            if not answered:
                await JSONResponse({"detail": "the service is shutting down"}, 503)(scope, receive, send_and_note)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(path, status).inc()
            SECONDS.labels(path).observe(time.perf_counter() - started)
