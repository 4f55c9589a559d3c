"""A saved model comes back as it was; any other file is an error that names the file, and runs no code."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.config.params import load_params
from stages.core.files.errors import UserError
from stages.core.nets.checkpoint import build_calibrated, load_model, save_model
from stages.core.nets.manifest import Manifest
from stages.core.training.config import Recipe
from tests.conftest import PROJECT
from tests.core.nets.small_networks import convnet, make_spec

RECIPES = load_params(PROJECT / "params.yaml").recipes
SMALL = RECIPES["convnet"].model_copy(update={"model": convnet([3], [5])})


def make_manifest(settings: Recipe, recipe: str = "convnet") -> Manifest:
    return Manifest(
        format=5,
        recipe=recipe,
        settings=settings,
        dataset="tiny",
        spec=make_spec(mean=0.25, std=0.5),
        data_sha256="0" * 64,
        environment="1 x a processor, float32",
        epoch=3,
        weights=1234,
        temperature=0.5,
        unsure_below=0.75,
        unsure_by="risk",
    )


def make_weights(manifest: Manifest) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = build_calibrated(manifest).model
    # A pass in training mode moves the batch norms' statistics off their defaults.
    model.train()(make_images(8))
    return model.state_dict()


def make_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)


def save_small(folder: Path) -> Path:
    """Save a small model to `folder`, and return the path of its weights."""
    manifest = make_manifest(SMALL)
    save_model(manifest, make_weights(manifest), folder / "model.pt")
    return folder / "model.pt"


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest beside `path`, whatever it becomes."""
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path)
    return str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path, recipe: str) -> None:
    manifest = make_manifest(RECIPES[recipe], recipe)
    weights = make_weights(manifest)
    path = tmp_path / "new folder" / "model.pt"
    save_model(manifest, weights, path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["manifest.json", "model.pt"]

    loaded, found = load_model(path)
    assert found == manifest
    assert not loaded.training
    original = build_calibrated(manifest).model.eval()
    original.load_state_dict(weights)
    images = make_images(5)
    assert torch.equal(loaded(images), original(images) / manifest.temperature)


def test_the_two_files_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe and the classes are not those of any params.yaml."""
    manifest = make_manifest(SMALL, "small")
    manifest = manifest.model_copy(update={"spec": make_spec().model_copy(update={"classes": ["cat", "dog"]})})
    weights = make_weights(manifest)
    save_model(manifest, weights, tmp_path / "model.pt")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded, found = load_model(Path("../model.pt"))
    assert found == manifest
    assert loaded(make_images(1)).shape == (1, 2)
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.model.state_dict().items())


def test_the_files_hold_weights_and_text_but_no_code(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    weights = torch.load(path, weights_only=True)
    assert set(weights) == set(build_calibrated(make_manifest(SMALL)).model.state_dict())
    assert json.loads(path.with_name("manifest.json").read_text()) == json.loads(make_manifest(SMALL).model_dump_json())


class RunsCode:
    """Make a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_zip, save_pickle])
def test_code_in_a_file_is_not_run(tmp_path: Path, save: Callable[[object, Path], None]) -> None:
    path, marker = save_small(tmp_path), tmp_path / "marker"
    save({"network.0.weight": RunsCode(marker)}, path)
    assert error_of(path).startswith(f"{path} is not a model that this pipeline saved: ")
    assert not marker.exists()


def test_an_ordinary_unpickling_would_have_run_it(tmp_path: Path) -> None:
    """The code in the test above is not harmless."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["network.0.weight", "network.2.running_var", "network.9.bias"])
def test_weights_must_be_finite(tmp_path: Path, name: str, value: float) -> None:
    path = save_small(tmp_path)
    weights = torch.load(path, weights_only=True)
    weights[name].view(-1)[-1] = value
    torch.save(weights, path)
    assert error_of(path) == f"{path}: weight '{name}' holds values that are not finite"


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    whole = path.read_bytes()
    # PyTorch raises different exceptions, depending on where the file ends.
    for size in (0, 1, 100, *range(1000, len(whole), 1000), len(whole) - 1):
        path.write_bytes(whole[:size])
        assert error_of(path).startswith(f"{path} is not a model that this pipeline saved: ")


@pytest.mark.parametrize(
    "content",
    [b"epoch,train_loss\n1,0.5\n", b'{"weights": []}', b"0", b"\x80\x02X\x01\x00\x00\x00\xff.", b"\x80\x02J\x01"],
    ids=["CSV", "JSON", "digit", "pickle with broken text", "pickle that ends in a number"],
)
def test_another_kind_of_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = save_small(tmp_path)
    path.write_bytes(content)
    assert error_of(path).startswith(f"{path} is not a model that this pipeline saved: ")


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "an older format": lambda weights: {"manifest": {}, "weights": weights},
    "no weights": lambda _: {},
    "one weight less": lambda weights: dict([*weights.items()][1:]),
    "one weight more": lambda weights: weights | {"more": torch.zeros(1)},
    "no names": lambda weights: dict(enumerate(weights.values())),
    "a weight that is None": lambda weights: weights | {"network.0.weight": None},
    "list": lambda weights: list(weights.values()),
    "tensor": lambda weights: weights["network.0.weight"],
    "None": lambda _: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_content_is_an_error(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = save_small(tmp_path)
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert error_of(path).startswith(f"{path} is not a model that this pipeline saved: ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimiser": "sgd"}, "optimiser"),
        ({"format": 3}, "format"),
        ({"temperature": 0.0}, "temperature"),
        ({"unsure_by": "chance"}, "unsure_by"),
        ({"epoch": "3"}, "epoch"),
        ({"data_sha256": "none"}, "data_sha256"),
        ({"spec": {"mean": float("nan")}}, "spec.mean"),
        ({"spec": {"shape": [28, 28]}}, "spec.shape"),
        ({"spec": {"dtype": "float32"}}, "spec.dtype"),
        ({"spec": {"classes": ["cat"]}}, "spec.classes"),
    ],
)
def test_a_wrong_manifest_is_an_error(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = save_small(tmp_path)
    change_manifest(path, lambda content: merge(content, change))
    message = error_of(path)
    assert message.startswith(f"{path.with_name('manifest.json')} is not a manifest of this version: ")
    assert reason in message


def merge(content: dict[str, Any], change: dict[str, Any]) -> None:
    """Set keys of `content`, and of its sections."""
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value


@pytest.mark.parametrize("change", [{"classes": ["cat", "dog"]}, {"shape": [1, 32, 32]}], ids=["classes", "shape"])
def test_a_manifest_of_another_model_is_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save_small(tmp_path)
    change_manifest(path, lambda content: merge(content, {"spec": change}))
    message = error_of(path)
    assert message.startswith(f"{path} is not a model that this pipeline saved: ")
    assert "size mismatch" in message


@pytest.mark.parametrize("name", list(Manifest.model_fields))
def test_every_key_of_the_manifest_is_required(tmp_path: Path, name: str) -> None:
    path = save_small(tmp_path)
    change_manifest(path, lambda content: content.pop(name))
    message = error_of(path)
    assert message.startswith(f"{path.with_name('manifest.json')} is not a manifest of this version: ")
    assert name in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"recipe": "\xff"}'],
    ids=["empty", "truncated", "list", "null", "deep", "broken text"],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = save_small(tmp_path)
    path.with_name("manifest.json").write_bytes(content)
    assert error_of(path).startswith(f"{path.with_name('manifest.json')} is not a manifest of this version: ")


@pytest.mark.parametrize("name", ["model.pt", "manifest.json"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = save_small(tmp_path)
    path.with_name(name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_model(path)


def test_a_failed_save_leaves_the_files_as_they_were(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    cannot_be_saved: Any = {"weight": (number for number in range(3))}
    with pytest.raises(TypeError):
        save_model(make_manifest(RECIPES["article"], "article"), cannot_be_saved, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
