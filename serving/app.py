"""Serve the model, with a page to draw on, until ctrl-C: `python -m serving.app`.

Reads artifacts/onnx/model.onnx, again whenever it changes, artifacts/details/parity.json, and for /model the files in
artifacts/metrics/.
Fails if there is no model, if the model does not work, or if the port is taken.

Shape suffixes: N examples, K classes.
"""

import asyncio
import json
import logging
import os
import socket
from argparse import ArgumentParser
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from serving import body, images, metrics, page
from serving.connections import Connection
from serving.live_model import LiveModel
from serving.responses import Answer, Health, ModelFacts, Prediction, Problem
from stages.core.deploy.onnx_model import OnnxModel, is_proven
from stages.core.files import layout
from stages.core.files.errors import UserError, report_errors

GRACE_S = 5  # seconds that open requests have to finish when the service shuts down
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 408, 413, 415, 422, 503)}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {metrics.CONTENT_TYPE: {"schema": {"type": "string"}}}}}

router = APIRouter()


def get_live_model(request: Request) -> LiveModel:
    """Return the model of the service that received the request."""
    return request.app.state.live


@router.post("/predict", summary="Classify images", response_model_exclude_none=True, responses=PROBLEMS)
async def predict(
    request: Request,
    with_images: Annotated[bool, Query(alias="images", description="also return the input of the model")] = False,
) -> Answer:
    """Classify pictures (PNG, JPEG, WebP, GIF, BMP or TIFF) of any size, or pixels in JSON.

    If the model's `centre_ink` is true, a picture may be light on dark or dark on light, and what is drawn is scaled
    and centred on its centre of mass, as in MNIST. Otherwise, the whole picture is resized, and its colours
    are never inverted. Pixels in JSON are always taken as they are. A blank image is rejected, because there is nothing
    to classify.
    """
    async with body.received(request, request.app.state.room) as content:
        return await to_thread.run_sync(answer, get_live_model(request).model, content, with_images)


def answer(model: OnnxModel, content: body.Body, with_images: bool) -> Answer:
    """Return the predictions for all images in a body."""
    inputs = images.to_inputs(content, model.spec)
    _, probabilities_NK = model.run(inputs)
    predictions = []
    for given, probabilities_K in zip(inputs, probabilities_NK, strict=True):
        best = int(probabilities_K.argmax())
        label, unsure = model.spec.classes[best], bool(probabilities_K[best] < model.unsure_below)
        values = probabilities_K.astype(float).round(6).tolist()
        metrics.count_answer(label, unsure=unsure)
        predictions.append(
            Prediction(
                label=label,
                confidence=values[best],
                probabilities=dict(zip(model.spec.classes, values, strict=True)),
                unsure=unsure,
                image=images.to_rows(given) if with_images else None,
            )
        )
    return Answer(model=model.sha256, predictions=predictions)


@router.get("/model", summary="Describe the model")
async def describe_model(request: Request) -> ModelFacts:
    model = get_live_model(request).model
    return ModelFacts(
        sha256=model.sha256,
        recipe=model.metadata.get("recipe"),
        dataset=model.metadata.get("dataset"),
        data_sha256=model.metadata.get("data_sha256"),
        spec=model.spec,
        unsure_below=model.unsure_below,
        operators=model.operators,
        proven=is_proven(model),
        metrics=read_metrics(layout.METRICS.parent),
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the content of the metrics files by name, without any that cannot be read while a stage writes it."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    return found


@router.get("/health", summary="Report whether the newest model is served")
async def report_health(request: Request) -> Health:
    live = get_live_model(request)
    return Health(
        status="model rejected" if live.rejected else "ok",
        model=live.model.sha256,
        since=live.since,
        proven=is_proven(live.model),
        rejected=live.rejected,
    )


@router.get("/metrics", summary="Return figures for Prometheus", response_class=PlainTextResponse, responses=TEXT)
async def return_metrics(request: Request) -> Response:
    return Response(metrics.render(get_live_model(request).model), media_type=metrics.CONTENT_TYPE)


@router.get("/", include_in_schema=False)
async def return_page() -> HTMLResponse:
    return HTMLResponse(page.PAGE, headers=page.HEADERS)


@router.get("/openapi.json", include_in_schema=False)
async def describe_service(request: Request) -> dict[str, Any]:
    """Describe the service with the inputs of the model that is served now."""
    app: FastAPI = request.app
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=router.routes)
    document["paths"]["/predict"]["post"]["requestBody"] = images.describe_bodies(get_live_model(request).model.spec)
    return document


async def answer_error(_: Request, error: Exception) -> Response:
    """Turn an exception that a handler has raised into a response with a 4xx status."""
    match error:
        case UserError():
            return JSONResponse({"detail": str(error)}, 422)
        case RequestValidationError():
            first = error.errors()[0]
            return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)
        case _:
            assert isinstance(error, ClientDisconnect)
            return Response(status_code=400)  # Nobody will read it.


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Watch the model's file while the service runs."""
    # More threads than cores would not be faster, and each may hold a large picture.
    to_thread.current_default_thread_limiter().total_tokens = os.cpu_count() or 1
    watch = asyncio.create_task(app.state.live.watch())
    print(f"serving: the page is at {app.state.url}; ctrl-C stops it", flush=True)
    yield
    watch.cancel()


def build(live: LiveModel, url: str) -> FastAPI:
    """Return the service for this model, which prints `url` when it is ready."""
    app = FastAPI(
        title="vision-pipeline",
        version="1",
        description="Classifies images with the model that the pipeline has exported.",
        # FastAPI's own pages would load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((UserError, RequestValidationError, ClientDisconnect), answer_error),
    )
    app.state.live, app.state.url, app.state.room = live, url, body.Room()
    app.add_middleware(metrics.Measured)
    app.include_router(router)
    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; raise `UserError` if that is impossible."""
    try:
        # The port is left out here, because getaddrinfo would truncate a port that is too large to 16 bits.
        family, *_, (address, _, *scope) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((address, port, *scope), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {reason}; --port chooses another one, 0 any that is free") from None
    # asyncio sets this only for sockets that name their protocol. Without it, each response is delayed by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main() -> None:
    parser = ArgumentParser("python -m serving.app", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only). WARNING: there is no authentication; "
        "anyone who can reach another address can use the service",
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000; 0: any free one)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    with report_errors("serving"):
        live = LiveModel(layout.ONNX)
        listener = listen(arguments.host, arguments.port)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        app = build(live, f"http://{host}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",  # Clients cause its warnings, and could fill the log with them.
            http=Connection,
            ws="none",
            access_log=False,  # A query may contain secrets. Requests are counted in /metrics.
            server_header=False,
            headers=[("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")],
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
