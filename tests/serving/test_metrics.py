"""Test the metrics for Prometheus."""

from stages.core.deploy.onnx_model import OnnxModel
from tests.serving.client import ONE, SEVEN, picture, post
from tests.serving.conftest import DIGITS, Service


def test_metrics_count(own_service: Service) -> None:
    post(own_service, picture(ONE))
    post(own_service, picture(SEVEN))
    post(own_service, b"")
    own_service.client.get("/some/path/that/is/not")
    text = own_service.client.get("/metrics").text
    sha256 = OnnxModel(DIGITS).sha256
    for line in (
        'requests_total{path="/predict",status="200"} 2.0',
        'requests_total{path="/predict",status="422"} 1.0',
        'requests_total{path="none",status="404"} 1.0',
        'request_seconds_count{path="/predict"} 3.0',
        'images_total{label="1",unsure="false"} 1.0',
        'images_total{label="7",unsure="false"} 1.0',
        f'model_info{{dataset="mnist",recipe="convnet",sha256="{sha256}"}} 1.0',
    ):
        assert line in text.splitlines(), text
