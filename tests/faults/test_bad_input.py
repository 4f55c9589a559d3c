"""Params and data that nobody would write: each is refused by name, or it is right after all."""

import contextlib
import copy
import math
import os
import re
import resource
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages import download, normalize
from stages.core.config.explain import shown
from stages.core.config.params import Params, load_params, override_params, parse_params, with_complete_recipes
from stages.core.data.idx import FILES, read_idx, write_idx
from stages.core.data.schemas import SPLITS
from stages.core.data.splits import read_dataset
from stages.core.files.errors import UserError
from stages.core.nets.config import NetConfig
from stages.core.nets.registry import build_model
from tests.conftest import PROJECT, make_spec, tiny_params, write_params
from tests.faults.counts import LONG, Faults

TEXT = (PROJECT / "params.yaml").read_text()
CONTENT = YAML(typ="safe").load(TEXT)
NAMED = Path("params.yaml")
MAX_MEMORY = 1 << 27  # for refusing a file

settings.register_profile(
    "faults",
    max_examples=1000 if LONG else 100,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
fuzzed = settings(settings.get_profile("faults"))
fuzzed_slowly = settings(fuzzed, max_examples=200 if LONG else 30)


def places(content: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """The keys to every value in the file, sections and leaves."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield *above, key
        yield from places(value, *above, key)


PLACES = list(places(CONTENT))
FIELDS = [".".join(map(str, place)) for place in PLACES]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**9, 10**12, 2**31, 2**63, 10**400, -1, 0, 1e308]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(), st.dates())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(SCALARS, inner, max_size=5)),
    max_leaves=20,
)


def changed(place: tuple[str | int, ...], change: str, value: Any, key: Any) -> dict[str, Any]:
    """The project's params with one value replaced or removed, or a key added beside it."""
    content: dict[str, Any] = copy.deepcopy(CONTENT)
    inner: Any = content
    for part in place[:-1]:
        inner = inner[part]
    if change == "remove":
        del inner[place[-1]]
    elif change == "add" and isinstance(inner, dict):
        inner[key] = value
    else:
        inner[place[-1]] = value
    return content


def written(content: Any) -> str:
    text = StringIO()
    YAML(typ="safe").dump(content, text)
    return text.getvalue()


def outcome(text: str) -> str | Params:
    """The params, or the message of the refusal; anything else is an error of the test."""
    try:
        return parse_params(text, NAMED)
    except UserError as error:
        refusal = str(error)
    assert refusal.startswith(("params.yaml is invalid:\n  ", "params.yaml is not valid YAML: "))
    assert len(refusal) < 20_000
    return refusal


@fuzzed
@given(st.sampled_from(PLACES), st.sampled_from(["replace", "remove", "add"]), VALUES, SCALARS)
def test_any_field(faults: Faults, place: tuple[str | int, ...], change: str, value: Any, key: Any) -> None:
    with faults.tried("params.yaml with a wrong value, an unknown key or none"):
        content = changed(place, change, value, key)
        found = outcome(written(content))
        if isinstance(found, Params):
            assert found.model_dump() == with_complete_recipes(content)
            return
        section, field = ".".join(map(str, place[:-1])), ".".join(map(str, place))
        named = {line.strip().partition(": ")[0] for line in found.split("\n")[1:]}
        if change == "add" and isinstance(place[-1], str):
            own = key if isinstance(key, str) and re.fullmatch(r"[\w-]{1,64}", key) else shown(key)
            added = f"\n  {section}{'.' if section else ''}{own}: "
            no_string = not isinstance(key, str) and f": found {own}, " in found
            assert added in found or no_string or section in named, found
        else:
            # itself, one within it, or what it does not go with: its section, or a choice
            others = {section, "recipe", "dataset", "machine.processes", "recipes.convnet"}
            # Without a default, the recipes that do not state the value lack it.
            patterns = (f"{field}*", f"{field.replace('recipe_defaults.', 'recipes.*.')}*")
            assert named & others or any(fnmatch(name, each) for each in patterns for name in named), found


@fuzzed
@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.text(max_size=20))
def test_any_text(faults: Faults, start: int, length: int, inserted: str) -> None:
    with faults.tried("params.yaml with any text in any place"):
        outcome(TEXT[:start] + inserted + TEXT[start + length :])


@fuzzed
@given(st.binary(max_size=200), st.integers(0, len(TEXT)))
def test_any_bytes(faults: Faults, tmp_path: Path, inserted: bytes, start: int) -> None:
    with faults.tried("params.yaml with any bytes in any place"):
        path = tmp_path / "params.yaml"
        path.write_bytes(TEXT.encode()[:start] + inserted + TEXT.encode()[start:])
        refusal = f"{path} is invalid:\n  "
        try:
            load_params(path)
        except UserError as error:
            refusal = str(error)
        assert refusal.startswith((f"{path} is invalid:\n  ", f"{path} is not valid YAML: "))


def bomb(levels: int = 40) -> str:
    """Nine times nine times nine ... values by aliases of aliases."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{level}: &a{level} [{', '.join(9 * [f'*a{level - 1}'])}]" for level in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file: found None"),
        (bomb(), "line 2: found an alias, '*a0'"),
        ("a: &a [*a]", "line 1: found an alias, '*a'"),
        ("a: &a {x: 1}\nb: {<<: *a}", "line 2: found an alias, '*a'"),
        ("[" * 1_000_000, "line 1: nested more than 16 deep"),
        ("? " * 100_000, "line 1: nested more than 16 deep"),
        ("seed: 0x" + "f" * 1000, "seed: found "),
        ("seed: !!timestamp x", "line 1: found a tag"),
        ("? {a: 1}\n: 2", "found unhashable key"),
        ("\n".join(f"key{index}: 1" for index in range(5_000)), "and "),
        ("x" * (1 << 21), "has 2,097,152 bytes, allowed: at most 1,048,576"),
        ("seed: " + "x" * 1_000_000, "found a value of 1,000,000 characters, allowed: at most 2,000"),
    ],
    ids=["empty", "bomb", "itself", "merged", "nested", "keys", "digits", "tag", "key", "many", "large", "long"],
)
def test_text_that_grows(faults: Faults, tmp_path: Path, text: str, reason: str) -> None:
    with faults.tried("params.yaml that grows when it is read"):
        (tmp_path / "params.yaml").write_text(text)
        tracemalloc.start()
        try:
            with pytest.raises(UserError) as refused:
                load_params(tmp_path / "params.yaml")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert reason in str(refused.value)
        assert len(str(refused.value)) < 10_000
        assert peak < MAX_MEMORY


def test_no_file(faults: Faults, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "endless", "folder"):
        with faults.tried("params.yaml that is not a file"), pytest.raises(UserError, match=f"{name} is not a file"):
            load_params(tmp_path / name)


@pytest.mark.slow
@fuzzed_slowly
@given(st.sampled_from(FIELDS), VALUES)
def test_any_override(faults: Faults, tmp_path: Path, field: str, value: Any) -> None:
    with faults.tried("override of a field with a wrong value"):
        path = tmp_path / "params.yaml"
        path.write_text(TEXT)
        try:
            override_params(path, {field: value})
            load_params(path)
        except UserError:
            assert path.read_text() == TEXT


@fuzzed_slowly
@given(st.text().filter(lambda field: field not in FIELDS))
def test_any_override_field(faults: Faults, tmp_path: Path, field: str) -> None:
    with faults.tried("override of a field that there is not"):
        (tmp_path / "params.yaml").write_text(TEXT)
        with pytest.raises(UserError, match="there is no"):
            override_params(tmp_path / "params.yaml", {field: 1})


def largest(model: str) -> NetConfig:
    """The network of this kind with every field at its upper bound."""
    at_bounds: dict[str, dict[str, Any]] = {
        "mlp": {"hidden": [8192] * 16},
        "convnet": {"channels": [[2048] * 4 for _ in range(4)], "stem": "pool", "head": "flatten"},
        "vgg": {"layers": [2048] * 32},
        "resnet": {"blocks": [64] * 4},
        "densenet": {"growth_rate": 128, "blocks": [64] * 4, "features": 2048},
        "lstm": {"hidden": 4096, "layers": 8},
        "gru": {"hidden": 4096, "layers": 8},
        "transformer": {"patch": 28, "dim": 2048, "heads": 2048, "layers": 24},
        "wavenet": {"stride": 1, "channels": 2048, "layers": 12},
    }
    content = copy.deepcopy(CONTENT)
    content["recipes"][model]["model"].update(at_bounds[model])
    return parse_params(written(content), NAMED).recipes[model].model


@pytest.mark.parametrize(
    "model", ["mlp", "convnet", "vgg", "resnet", "densenet", "lstm", "gru", "transformer", "wavenet"]
)
def test_the_largest_networks(faults: Faults, model: str) -> None:
    """They are refused before they take memory: the smallest one would take 1.2 GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with faults.tried("params.yaml with a network too large"):
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
        try:
            # A convnet so deep does not take smaller images.
            spec = make_spec((1, 280, 280), [str(label) for label in range(256)])
            with pytest.raises(UserError, match=r"weights, allowed: at most 250,000,000$"):
                build_model(largest(model), spec)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@fuzzed
@given(st.sampled_from([1, 3]), st.binary(max_size=40))
def test_any_idx_file(faults: Faults, tmp_path: Path, ndim: int, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with faults.tried("IDX file of any bytes"), pytest.raises(UserError, match=f"^{tmp_path}/file "):
        read_idx(tmp_path / "file", ndim)


SIZES = st.one_of(st.integers(0, 3), st.sampled_from([255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))


@fuzzed
@given(
    st.sampled_from([0x0801, 0x0803, 0x0802, 0x0D03, 0x03080000]), st.tuples(SIZES, SIZES, SIZES), st.integers(0, 30)
)
def test_any_idx_header(faults: Faults, tmp_path: Path, magic: int, shape: tuple[int, int, int], size: int) -> None:
    """What the header says is read, or refused before there is memory for it."""
    with faults.tried("IDX file with any header"):
        (tmp_path / "file").write_bytes(struct.pack(">4I", magic, *shape) + bytes(size))
        right = magic == 0x0803 and math.prod(shape) == size > 0
        tracemalloc.start()
        try:
            read: Any = read_idx(tmp_path / "file", ndim=3)
        except UserError as error:
            read = str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 1 << 20
        assert read.shape == shape if right else read.startswith(f"{tmp_path}/file ")


SPLIT = st.tuples(  # images, their height and width, labels more than images, classes
    st.integers(0, 12),
    st.integers(1, 2),
    st.integers(3, 4),
    st.sampled_from([0, 0, 0, 1, -1]),
    st.sampled_from([2, 2, 3]),
)


@pytest.mark.slow
@fuzzed_slowly
@given(SPLIT, SPLIT, st.floats(0, 0.8, exclude_min=True))
def test_any_data_set(
    faults: Faults,
    tmp_path_factory: pytest.TempPathFactory,
    train: tuple[int, ...],
    test: tuple[int, ...],
    share: float,
) -> None:
    """Any number, shape and labels of images: refused by the file's name, or all that comes of it is right."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    for split, (count, height, width, more, classes) in (("train", train), ("test", test)):
        pixels = draw.integers(256, size=(count, height, width), dtype=np.uint8)
        write_idx(folder / FILES[split].images, pixels)
        write_idx(folder / FILES[split].labels, (np.arange(max(0, count + more)) % classes).astype(np.uint8))
    content = tiny_params(folder)
    content["datasets"]["tiny"]["classes"] = ["even", "odd"]
    content["normalize"]["validation"] = share
    write_params(content, folder)
    with faults.tried("data set of any number and shape of images and labels"), contextlib.chdir(folder):
        try:
            download.main()
            normalize.main()
        except UserError as error:
            refusal = str(error)
        else:
            kept, held, tested = (read_dataset().read(name).labels for name in SPLITS)
            assert (len(kept) + len(held), len(tested)) == (train[0], test[0])
            # Each of the two classes is in both parts, even where the share alone would leave one out.
            deviation = math.sqrt(train[0] * share * (1 - share))  # of the number of hashes below the share
            assert abs(len(held) - share * train[0]) <= 5 * deviation + 2
            assert 2 <= len(held) <= train[0] - 2
            assert all(set(labels.tolist()) == {0, 1} for labels in (kept, held, tested))
            assert train[1:3] == test[1:3]
            return
        assert refusal.startswith("artifacts/")


@pytest.mark.parametrize("label", [10, 11, 127, 255])
def test_unknown_label(faults: Faults, workspace: Path, tiny_idx: Path, params: dict[str, Any], label: int) -> None:
    source = shutil.copytree(tiny_idx, workspace / "source")
    labels = np.array(read_idx(source / FILES["train"].labels, ndim=1))
    labels[3] = label
    write_idx(source / FILES["train"].labels, labels)
    content = tiny_params(source)
    write_params(content, workspace)
    with (
        faults.tried("label that is no class"),
        pytest.raises(UserError, match=rf"in_range\(0, 9\) \(1 failing; row 3: {label}\)"),
    ):
        download.main()
