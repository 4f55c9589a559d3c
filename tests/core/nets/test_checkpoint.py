import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stages.core.checkpoint import build  # FIXME
from stages.core.params import ConvNet  # FIXME
from torch import Tensor

from stages.core.config.params import load_params
from stages.core.files.errors import UserError
from stages.core.nets.checkpoint import load_model, save_model
from stages.core.nets.manifest import Manifest
from stages.core.training.config import Recipe
from tests.conftest import CLASSES, PROJECT

RECIPES = load_params(PROJECT / "params.yaml").recipes
SMALL = RECIPES["convnet"].model_copy(
    update={"model": ConvNet(name="convnet", channels=[[3], [5]], stem="pool", head="flatten", dropout=0.0)}
)


def make_manifest(settings: Recipe, recipe: str = "convnet") -> Manifest:
    return Manifest(
        format=3,
        recipe=recipe,
        settings=settings,
        dataset="tiny",
        classes=CLASSES,
        image_shape=(1, 28, 28),
        centre_ink=False,
        mean=0.25,
        std=0.5,
        data_sha256="0" * 64,
        trained_on="1 x a processor, float32",
        epoch=3,
        temperature=0.5,
        unsure_below=0.75,
        unsure_by="risk",
    )


def make_weights(manifest: Manifest) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = build(manifest).network
    # A pass in training mode moves the batch norms' statistics off their defaults.
    network.train()(torch.randn((8, *manifest.image_shape)))
    return network.state_dict()


def make_content() -> dict[str, Any]:
    manifest = make_manifest(SMALL)
    return {"manifest": manifest.model_dump(), "weights": make_weights(manifest)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_round_trip(tmp_path: Path, recipe: str) -> None:
    manifest = make_manifest(RECIPES[recipe], recipe)
    weights = make_weights(manifest)
    path = tmp_path / "new folder" / "model.pt"
    save_model(path, manifest, weights)
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]

    loaded, found = load_model(path)
    assert found == manifest
    assert not loaded.training
    original = build(manifest).network.eval()
    original.load_state_dict(weights)
    images = torch.randn((5, 1, 28, 28), generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(images), original(images) / manifest.temperature)


def test_the_file_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in no params.yaml
    manifest = make_manifest(SMALL, "small").model_copy(update={"classes": ["cat", "dog"]})
    weights = make_weights(manifest)
    save_model(tmp_path / "model.pt", manifest, weights)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded, found = load_model(Path("../model.pt"))
    assert found == manifest
    assert loaded(torch.zeros((1, 1, 28, 28))).shape == (1, 2)
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.network.state_dict().items())


def test_no_code_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    manifest = make_manifest(RECIPES["article"], "article")
    save_model(path, manifest, make_weights(manifest))
    content = torch.load(path, weights_only=True)
    assert content["manifest"]["epoch"] == 3
    assert set(content["weights"]) == set(build(manifest).network.state_dict())


class RunsCode:
    """Makes a file when it is unpickled."""

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
    path, marker = tmp_path / "model.pt", tmp_path / "marker"
    save(make_content() | {"weights": RunsCode(marker)}, path)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")
    assert not marker.exists()


def test_what_would_have_run(tmp_path: Path) -> None:
    """The code in the test above is not harmless: a plain unpickling runs it."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "2.running_var", "9.bias"])
def test_weight_that_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    path, content = tmp_path / "model.pt", make_content()
    content["weights"][name].view(-1)[-1] = value
    torch.save(content, path)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: weight '{name}' holds values that are not finite"


def whole_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(make_content(), buffer)
    return buffer.getvalue()


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "model.pt", whole_file()
    # where it ends decides which exception torch raises
    for size in (0, 1, 100, *range(1000, len(whole), 1000), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")


@pytest.mark.parametrize(
    "content",
    [b"epoch,train_loss\n1,0.5\n", b'{"weights": []}', b"0", b"\x80\x02X\x01\x00\x00\x00\xff.", b"\x80\x02J\x01"],
    ids=["CSV", "JSON", "digit", "pickle with broken text", "pickle that ends in a number"],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")


def test_damaged_text_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "model.pt", whole_file()
    assert b"cross_entropy" in whole
    path.write_bytes(whole.replace(b"cross_entropy", b"\xff" * 13))
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optimiser": "sgd"}, "optimiser"),
        ({"format": 2}, "format"),
        ({"temperature": 0.0}, "temperature"),
        ({"unsure_by": "chance"}, "unsure_by"),
        ({"epoch": "3"}, "epoch"),
        ({"mean": float("nan")}, "mean"),
        ({"data_sha256": "none"}, "data_sha256"),
        ({"image_shape": (28, 28)}, "image_shape"),
        ({"classes": ["cat", "dog"]}, "size mismatch"),
        ({"image_shape": (1, 32, 32)}, "size mismatch"),
    ],
)
def test_wrong_manifest_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path, content = tmp_path / "model.pt", make_content()
    content["manifest"] |= change
    torch.save(content, path)
    with pytest.raises(UserError, match=told) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")


@pytest.mark.parametrize("name", list(Manifest.model_fields))
def test_missing_manifest_key_is_refused(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / "model.pt", make_content()
    del content["manifest"][name]
    torch.save(content, path)
    with pytest.raises(UserError, match=name) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no manifest": lambda content: {"weights": content["weights"]},
    "no weights": lambda content: {"manifest": content["manifest"]},
    "weights are None": lambda content: content | {"weights": None},
    "weights are empty": lambda content: content | {"weights": {}},
    "weights have no names": lambda content: content | {"weights": dict(enumerate(content["weights"].values()))},
    "one weight more": lambda content: content | {"weights": content["weights"] | {"more": torch.zeros(1)}},
    "list": lambda content: list(content.values()),
    "tensor": lambda content: content["weights"]["0.weight"],
    "None": lambda _: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_content_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = tmp_path / "model.pt"
    torch.save(change(make_content()), path)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path} is no checkpoint of this pipeline: ")


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    manifest = make_manifest(RECIPES["article"], "article")
    save_model(path, manifest, make_weights(manifest))
    before = path.read_bytes()
    cannot_be_saved: Any = {"weight": (number for number in range(3))}
    with pytest.raises(TypeError):
        save_model(path, manifest, cannot_be_saved)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
