"""Notify a webhook that a run has failed."""

import os
from typing import Any

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_logger

from flows.stage import StageError

WEBHOOK = "VISION_PIPELINE_WEBHOOK"  # This is an environment variable because the URL is a secret.
TIMEOUT_S = 10


def notify(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  # Prefect names them
    """Post the run, its state, the stage and its last lines as JSON; log a failure to do so without the secret URL."""
    if not (url := os.environ.get(WEBHOOK)):
        return
    error = state.result(raise_on_failure=False) if state.is_failed() else None
    stage, lines = (error.stage, error.lines) if isinstance(error, StageError) else (None, [state.message])
    try:
        answer = httpx.post(
            url, json={"run": flow_run.name, "state": state.name, "stage": stage, "lines": lines}, timeout=TIMEOUT_S
        )
        failed = None if answer.is_success else f"status {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        failed = type(error).__name__
    if failed:
        get_logger("flows.notify").warning("the webhook in %s was not notified of the failure: %s", WEBHOOK, failed)
