"""Serve the model, with a page to draw on: `python -m serving.app`, until ctrl-C.

Reads artifacts/onnx/model.onnx, again whenever it changes, and for /model the files in artifacts/metrics/ and
artifacts/details/parity.json.
Fails when there is no model, or none that works, and when the port is taken.

Shape suffixes: N images, C planes, H x W pixels, K classes.
"""

import asyncio
import base64
import hashlib
import json
import logging
import os
import re
import socket
import time
from argparse import ArgumentParser
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field, JsonValue
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import body
from serving.connections import Connection
from serving.live_model import LiveModel
from stages.core.deploy.onnx_model import OnnxModel, is_proven
from stages.core.files import layout
from stages.core.files.errors import UserError, reported

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
GRACE_S = 5  # seconds for requests under way when the service shuts down

REQUESTS = Counter("requests", "Requests by path and status", ["path", "status"])
SECONDS = Histogram(
    "request_seconds", "From a request's head to its answer's end", ["path"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)  # fmt: skip
IMAGES = Counter("images", "Images answered, by label and whether the model was unsure", ["label", "unsure"])
MODEL = Gauge("model_info", "1 for the model that is served", ["sha256", "recipe", "dataset"])

PROVEN = "whether stage `parity` has proven that this file computes what the evaluated model computes"
TEXT = {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}

router = APIRouter()


class Prediction(BaseModel):
    label: str
    confidence: Annotated[float, Field(ge=0, le=1, description="the label's probability")]
    probabilities: Annotated[dict[str, float], Field(description="by class")]
    unsure: Annotated[bool, Field(description="whether the confidence is below the model's `unsure_below`")]
    image: Annotated[list[list[int]] | None, Field(description="what the model was given: rows of grey levels")] = None


class Answer(BaseModel):
    model: Annotated[str, Field(description="sha256 of the model that answers")]
    predictions: Annotated[list[Prediction], Field(description="one for each image, in their order")]


class Problem(BaseModel):
    detail: Annotated[str, Field(description="what is wrong, and what is allowed")]


class Health(BaseModel):
    status: Literal["ok", "model refused"]
    model: Annotated[str, Field(description="sha256 of the model that is served")]
    since: datetime
    proven: Annotated[bool, Field(description=PROVEN)]
    refused: Annotated[str | None, Field(description="why the newest file is not served")]


class ModelFacts(BaseModel):
    sha256: str
    recipe: str | None
    dataset: str | None
    data_sha256: Annotated[str | None, Field(description="of the normalized data it was trained on")]
    classes: list[str]
    image_shape: Annotated[list[int], Field(description="planes, height, width")]
    centre_ink: Annotated[bool, Field(description="whether pictures of another size are centred by their ink")]
    unsure_below: Annotated[float, Field(description="a prediction of less confidence is unsure")]
    operators: Annotated[dict[str, int], Field(description="how many ONNX nodes there are of each kind")]
    proven: Annotated[bool, Field(description=PROVEN)]
    metrics: Annotated[dict[str, JsonValue], Field(description="of the pipeline's last run, by stage")]


def live_model(request: Request) -> LiveModel:
    """Return the model of the service that got the request."""
    return request.app.state.live


@router.post(
    "/predict",
    summary="Classify images",
    response_model_exclude_none=True,
    responses={status: {"model": Problem} for status in (400, 408, 413, 415, 422, 503)},
)
async def predict(
    request: Request, images: Annotated[bool, Query(description="answer what the model was given, too")] = False
) -> Answer:
    """Classify pictures (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size, or pixels in JSON.

    If the model's `centre_ink` is true, a picture may be light on dark or dark on light, and what is drawn is scaled
    and centred by its mass, as MNIST's digits were. Otherwise, the whole picture is resized, and its grey levels are
    never inverted. Pixels in JSON are always taken as they are. A blank image is rejected, because there is nothing to
    classify.
    """
    async with body.received(request, request.app.state.room) as content:
        return await to_thread.run_sync(answer, live_model(request).model, content, images)


def answer(model: OnnxModel, content: body.Body, with_images: bool) -> Answer:
    images_NHW = body.to_images(content, *model.spec.shape[1:], centre_ink=model.spec.centre_ink)
    _, probabilities_NK = model.run(images_NHW[:, None])
    predictions = []
    for image_HW, probabilities_K in zip(images_NHW, probabilities_NK, strict=True):
        best = int(probabilities_K.argmax())
        label, unsure = model.spec.classes[best], bool(probabilities_K[best] < model.unsure_below)
        values = probabilities_K.astype(float).round(6).tolist()
        IMAGES.labels(label, str(unsure).lower()).inc()
        predictions.append(
            Prediction(
                label=label,
                confidence=values[best],
                probabilities=dict(zip(model.spec.classes, values, strict=True)),
                unsure=unsure,
                image=image_HW.tolist() if with_images else None,
            )
        )
    return Answer(model=model.sha256, predictions=predictions)


@router.get("/model", summary="What is known of the model")
async def facts(request: Request) -> ModelFacts:
    model = live_model(request).model
    return ModelFacts(
        sha256=model.sha256,
        recipe=model.metadata.get("recipe"),
        dataset=model.metadata.get("dataset"),
        data_sha256=model.metadata.get("data_sha256"),
        classes=model.spec.classes,
        image_shape=list(model.spec.shape),
        centre_ink=model.spec.centre_ink,
        unsure_below=model.unsure_below,
        operators=model.operators,
        proven=is_proven(model),
        metrics=read_metrics(layout.METRICS.parent),
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what the readable files hold, by their names; a stage may be writing one at this moment."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    return found


@router.get("/health", summary="Whether it serves, and the newest model")
async def health(request: Request) -> Health:
    live = live_model(request)
    return Health(
        status="model refused" if live.refused else "ok",
        model=live.model.sha256,
        since=live.since,
        proven=is_proven(live.model),
        refused=live.refused,
    )


@router.get(
    "/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse, responses={200: {"content": TEXT}}
)
async def metrics(request: Request) -> Response:
    model = live_model(request).model
    MODEL.clear()
    MODEL.labels(model.sha256, model.metadata.get("recipe"), model.metadata.get("dataset")).set(1)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def security_policy(html: str) -> str:
    """Return a Content-Security-Policy that allows what is in the page and requests to this service, nothing else."""

    def allowed(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


POLICY = security_policy(PAGE)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """Describe the service as it is with the model that is served now, whose size of images it states."""
    app: FastAPI = request.app
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=router.routes)
    _, height, width = live_model(request).model.spec.shape
    document["paths"]["/predict"]["post"]["requestBody"] = body.describe(height, width)
    return document


class Measured:
    """Count requests and the seconds that they take, all paths that do not exist as one; answer HEAD like GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # Uvicorn leaves out the body of the response.
            scope = {**scope, "method": "GET"}
        status, answered, started = 500, False, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:  # The service is shutting down, and `GRACE_S` is over.
            if not answered:
                await JSONResponse({"detail": "the service is shutting down"}, 503)(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            REQUESTS.labels(path, status).inc()
            SECONDS.labels(path).observe(time.perf_counter() - started)


async def refuse(_: Request, error: Exception) -> Response:
    """Answer 4xx to what a handler has raised."""
    match error:
        case UserError():
            return JSONResponse({"detail": str(error)}, 422)
        case RequestValidationError():
            first = error.errors()[0]
            return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)
        case _:
            assert isinstance(error, ClientDisconnect)
            return Response(status_code=400)  # that nobody reads


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    # more would only share the cores, and each may hold a large picture
    to_thread.current_default_thread_limiter().total_tokens = os.cpu_count() or 1
    watch = asyncio.create_task(app.state.live.watch())
    print(f"serving: draw at {app.state.url}; ctrl-C ends it", flush=True)
    yield
    watch.cancel()


def build(live: LiveModel, url: str) -> FastAPI:
    app = FastAPI(
        title="vision-pipeline",
        version="1",
        description="Classifies images with the model that the pipeline has exported.",
        # FastAPI's own pages load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((UserError, RequestValidationError, ClientDisconnect), refuse),
    )
    app.state.live, app.state.url, app.state.room = live, url, body.Room()
    app.add_middleware(Measured)
    app.include_router(router)
    return app


def listen(host: str, port: int) -> socket.socket:
    try:
        # without the port: of one too large it would keep 16 bits
        family, *_, (address, _, *scope) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((address, port, *scope), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {reason}; --port chooses another one, 0 any that is free") from None
    # asyncio does that by itself only for sockets that name their protocol; else each answer waits for 40 ms
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main() -> None:
    parser = ArgumentParser("python -m serving.app", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone). WARNING: there is no authentication; "
        "whoever reaches another address can use the service",
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000; 0: any free one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    with reported("serving"):
        live = LiveModel(layout.ONNX)
        listener = listen(arguments.host, arguments.port)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        app = build(live, f"http://{host}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # Its warnings are about what clients do, who could fill the log with them.
            http=Connection,
            ws="none",
            access_log=False,  # a query may hold what is secret; /metrics counts
            server_header=False,
            headers=[("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")],
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
