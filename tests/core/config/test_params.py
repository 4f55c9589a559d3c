"""Test that params.yaml is valid, that each wrong value is reported by name, and that recipes are completed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides  # `dvc exp run -S` calls this.
from ruamel.yaml import YAML

from stages.core.config.params import load_params, override_params, with_complete_recipes
from stages.core.files.errors import UserError
from tests.conftest import PROJECT, write_params

FILE = PROJECT / "params.yaml"
MISSING = object()


@pytest.fixture
def content() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(FILE)
    return loaded


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_params(path)
    return str(refused.value)


def set_field(content: Any, field: str, value: object) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in parents:  # A recipe may leave out a section.
        content = content.setdefault(part, {}) if isinstance(content, dict) else content[part]
    if value is MISSING:
        del content[last]
    else:
        content[last] = value


def test_the_projects_params(content: dict[str, Any]) -> None:
    params = load_params(FILE)
    assert params.model_dump(exclude={"recipes"}) == {
        name: section for name, section in content.items() if name != "recipes"
    }
    assert [*params.recipes] == [*content["recipes"]]
    assert params.chosen_recipe == params.recipes[params.recipe]


def test_the_projects_recipes_are_what_they_state_and_the_defaults(content: dict[str, Any]) -> None:
    defaults = content["recipe_defaults"]
    for name, recipe in load_params(FILE).model_dump()["recipes"].items():
        stated = content["recipes"][name]
        assert set(recipe) == {*defaults, *stated}
        for field, value in recipe.items():
            default, own = defaults.get(field, {}), stated.get(field, {})
            if not isinstance(value, dict):
                assert value == stated.get(field, default)
            elif own.get("name", value.get("name")) == default.get("name"):
                assert set(value) == {*default, *own}
                assert all(item == own.get(key, default.get(key)) for key, item in value.items())
            else:
                assert value == own


@pytest.mark.parametrize("recipe", ["article", "convnet"])
def test_choice(tmp_path: Path, content: dict[str, Any], recipe: str) -> None:
    content.update(recipe=recipe)
    write_params(content, tmp_path)
    params = load_params(tmp_path / "params.yaml")
    assert params.chosen_recipe.model.name == {"article": "mlp", "convnet": "convnet"}[recipe]


NAN, INF = float("nan"), float("inf")
SHA256 = "string should match pattern '^[0-9a-f]{64}$'"
RECIPES = ", ".join(load_params(PROJECT / "params.yaml").recipes)
WRONG = [
    # wrong type; nothing is converted
    ("seed", "one", "input should be a valid integer"),
    ("seed", "1", "input should be a valid integer"),
    ("seed", 1.0, "input should be a valid integer"),
    ("seed", True, "input should be a valid integer"),
    ("recipe", ["convnet"], "input should be a valid string"),
    ("normalize", None, "input should be a valid dictionary"),
    ("normalize.problems", "0.5", "input should be a valid number"),
    ("parity.batch_sizes", 7, "input should be a valid list"),
    ("recipes.article.model.hidden.1", "64", "input should be a valid integer"),
    ("recipes.convnet.model", "convnet", "input should be a valid dictionary"),
    # not finite
    ("normalize.problems", NAN, "input should be a finite number"),
    ("normalize.class_share.min", INF, "input should be a finite number"),
    ("parity.max_abs_diff", INF, "input should be a finite number"),
    ("recipes.convnet.optimizer.lr", NAN, "input should be a finite number"),
    # outside the bounds
    ("seed", -1, "input should be greater than or equal to 0"),
    ("seed", 2**32, f"input should be less than {2**32}"),
    ("normalize.problems", 1.5, "input should be less than or equal to 1"),
    ("normalize.max_pixels", 0, "input should be greater than or equal to 1"),
    ("normalize.validation", 0, "input should be greater than 0"),
    ("normalize.validation", 1.0, "input should be less than 1"),
    ("normalize.validation", 5000, "input should be less than 1"),
    ("normalize.class_share.max", 1.1, "input should be less than or equal to 1"),
    ("evaluate.batch_size", 0, "input should be greater than 0"),
    ("export.opset", 17, "input should be greater than or equal to 18"),
    ("export.opset", 24, "input should be less than or equal to 23"),
    ("parity.max_abs_diff", 0, "input should be greater than 0"),
    ("recipes.article.optimizer.lr", 0.0, "input should be greater than 0"),
    ("recipes.article.optimizer.momentum", 1.0, "input should be less than 1"),
    ("recipes.article.model.hidden.0", -2, "input should be greater than 0"),
    ("recipes.convnet.loss.label_smoothing", 1, "input should be less than 1"),
    ("recipes.convnet.loss.class_weight", 1.5, "input should be less than or equal to 1"),
    ("recipes.convnet.schedule.warmup", 0, "input should be greater than 0"),
    ("recipes.convnet.augmentation.shift", 65, "input should be less than or equal to 64"),
    ("recipes.convnet.augmentation.rotation", -1, "input should be greater than or equal to 0"),
    ("recipes.convnet.augmentation.scale", 1.0, "input should be less than or equal to 0.9"),
    ("recipes.convnet.regularization.ema", 1.0, "input should be less than 1"),
    ("recipes.convnet.regularization.l1", -0.1, "input should be greater than or equal to 0"),
    ("recipes.convnet.regularization.patience", 1.5, "input should be a valid integer"),
    ("recipes.mlp.model.dropout", 1.0, "input should be less than 1"),
    ("recipes.wavenet.model.layers", 13, "input should be less than or equal to 12"),
    ("machine.processes", 0, "input should be greater than or equal to 1"),
    ("machine.cuda_graph", 1, "input should be a valid boolean"),
    ("machine.compile", True, "input should be 'none', 'default' or 'max-autotune-no-cudagraphs'"),
    ("recipes.convnet.epochs", 0, "input should be greater than 0"),
    # far more than is of use
    ("normalize.max_pixels", 10**11, "input should be less than or equal to 10000000000"),
    ("evaluate.batch_size", 10**9, "input should be less than or equal to 1000000"),
    ("parity.batch_sizes.0", 10**9, "input should be less than or equal to 1000000"),
    ("parity.noise_images", 10**12, "input should be less than or equal to 10000"),
    ("parity.max_abs_diff", 1e300, "input should be less than or equal to 1"),
    ("recipes.article.model.hidden.0", 10**9, "input should be less than or equal to 8192"),
    ("recipes.article.optimizer.lr", 1e300, "input should be less than or equal to 1000"),
    ("recipes.convnet.epochs", 10**12, "input should be less than or equal to 1000000"),
    ("recipes.transformer.model.patch", 10**9, "input should be less than or equal to 1024"),
    # no folder, no option
    ("dataset", "../../etc", "string should match pattern"),
    # lists too long or too short
    ("recipes.article.model.hidden", [1] * 17, "list should have at most 16 items after validation, not 17"),
    (
        "recipes.convnet.model.channels",
        [[8], [8], [8], [8], [8]],
        "list should have at most 4 items after validation, not 5",
    ),
    ("recipes.convnet.model.channels.1", [], "list should have at least 1 item after validation, not 0"),
    ("recipes.resnet.model.blocks", [1, 1, 1], "list should have at least 4 items after validation, not 3"),
    ("recipes.convnet.model.channels", [], "list should have at least 1 item after validation, not 0"),
    ("parity.batch_sizes", [], "list should have at least 1 item after validation, not 0"),
    # not one of the names
    ("machine.device", "gpu", "input should be 'auto', 'cpu', 'cuda' or 'mps'"),
    ("recipes.convnet.precision", "float16", "input should be 'auto', 'float32' or 'bfloat16'"),
    ("recipes.convnet.loss", {"name": "hinge"}, "input tag 'hinge' found using 'name' does not match any"),
    # bad union members
    ("recipes.convnet.model", {"name": "unet"}, "input tag 'unet' found using 'name' does not match any"),
    ("recipes.convnet.optimizer", {"name": "lion"}, "input tag 'lion' found using 'name' does not match any"),
    ("recipes.convnet.schedule", {"name": "step"}, "input tag 'step' found using 'name' does not match any"),
    # unknown keys, also of another member of the union
    ("epochs", 3, "but there is no such key"),
    ("normalize.meen", 0.5, "but there is no such key"),
    ("recipes.article.model.channels", [8], "but there is no such key"),
    ("recipes.convnet.optimizer.momentum", 0.9, "but there is no such key"),
    ("machine.processes", 3, "must divide batch_size of recipe 'convnet' (128)"),
    # unknown choices
    (
        "recipe",
        "convnte",
        f"must be one of {RECIPES}, did you mean 'convnet'?",
    ),
    (
        "recipe",
        "zzz",
        f"must be one of {RECIPES}",
    ),
]


@pytest.mark.parametrize(
    ("field", "value", "allowed"), WRONG, ids=[f"{field}={str(value)[:20]}" for field, value, _ in WRONG]
)
def test_wrong_value(tmp_path: Path, content: dict[str, Any], field: str, value: object, allowed: str) -> None:
    set_field(content, field, value)
    write_params(content, tmp_path)
    headline, line = refusal(tmp_path / "params.yaml").split("\n")
    assert headline == f"{tmp_path / 'params.yaml'} is invalid:"
    assert line.startswith(f"  {field}: found {value!r}, {allowed}")


def test_far_name_is_not_suggested(tmp_path: Path, content: dict[str, Any]) -> None:
    content["recipe"] = "zzz"
    write_params(content, tmp_path)
    assert "did you mean" not in refusal(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "field",
    [
        "seed",
        "normalize",
        "normalize.std",
        "normalize.class_share.min",
        "recipes.vgg.optimizer.lr",  # That of the defaults belongs to another optimizer.
    ],
)
def test_missing_key(tmp_path: Path, content: dict[str, Any], field: str) -> None:
    set_field(content, field, MISSING)
    write_params(content, tmp_path)
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [f"  {field}: is missing"]


def test_missing_defaults_are_reported_without_what_they_would_have_completed(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["seed"] = -1
    del content["recipe_defaults"]
    write_params(content, tmp_path)
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [
        "  recipe_defaults: is missing",
        "  seed: found -1, input should be greater than or equal to 0",
    ]


@pytest.mark.parametrize(
    "field",
    ["recipes.article.epochs", "recipes.convnet.model", "recipes.convnet.model.name", "recipes.convnet.model.channels"],
)
def test_missing_key_that_has_no_default(tmp_path: Path, content: dict[str, Any], field: str) -> None:
    set_field(content, field, MISSING)
    write_params(content, tmp_path)
    line = f"  {field}: is missing, and recipe_defaults does not set it"
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [line]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("normalize.class_share", {"min": 0.3, "max": 0.2}, "min (0.3) must not be above max (0.2)"),
        (
            "recipes.article.optimizer",
            {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": True, "weight_decay": 0.0},
            "nesterov needs a momentum above 0",
        ),
        (
            "recipes.transformer.model",
            {"name": "transformer", "patch": 4, "dim": 64, "heads": 3, "layers": 1, "dropout": 0.0},
            "heads (3) must divide dim (64)",
        ),
        (
            "recipes.vgg.model.layers",
            ["M", 8],
            "the first layer must be a number of channels",
        ),
    ],
)
def test_values_that_do_not_go_together(
    tmp_path: Path, content: dict[str, Any], field: str, value: object, message: str
) -> None:
    set_field(content, field, value)
    write_params(content, tmp_path)
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [f"  {field}: {message}"]


def test_early_stopping_goes_with_a_constant_rate_alone(tmp_path: Path, content: dict[str, Any]) -> None:
    set_field(content, "recipes.convnet.regularization.patience", 2)
    write_params(content, tmp_path)
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [
        "  recipes.convnet: regularization.patience (2) would stop before schedule 'one_cycle' has brought the rate"
        " down; allowed: patience 0 or schedule 'constant'"
    ]
    set_field(content, "recipes.convnet.schedule", {"name": "constant"})
    write_params(content, tmp_path)
    assert load_params(tmp_path / "params.yaml").recipes["convnet"].regularization.patience == 2


def test_the_loss_of_squares_has_no_label_smoothing(tmp_path: Path, content: dict[str, Any]) -> None:
    set_field(content, "recipes.convnet.loss", {"name": "mse", "class_weight": 0.0, "label_smoothing": 0.1})
    write_params(content, tmp_path)
    expected = "  recipes.convnet.loss.label_smoothing: found 0.1, but there is no such key"
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [expected]


def test_every_wrong_field_is_named_at_once(tmp_path: Path, content: dict[str, Any]) -> None:
    content["seed"] = -1
    content["recipes"]["article"]["epochs"] = 0
    del content["evaluate"]["batch_size"]
    write_params(content, tmp_path)
    fields = {line.split(":")[0].strip() for line in refusal(tmp_path / "params.yaml").split("\n")[1:]}
    assert fields == {"seed", "recipes.article.epochs", "evaluate.batch_size"}


def test_key_with_the_name_of_the_union_member(tmp_path: Path, content: dict[str, Any]) -> None:
    content["recipes"]["article"]["model"] = {"name": "mlp", "hidden": [128, "x"], "mlp": 1}
    write_params(content, tmp_path)
    message = refusal(tmp_path / "params.yaml")
    assert "  recipes.article.model.hidden.1: found 'x', input should be a valid integer" in message
    assert "  recipes.article.model.mlp: found 1, but there is no such key" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: [1", "line 1, column 7"),
        ("seed: 1\nnormalize:\n  mean: 0.5\n  mean: 0.4\n", 'found duplicate key "mean"'),
        ("seed: 1\nseed: 2\n", 'found duplicate key "seed" with value "2" (original value: "1")'),
        ("---\nseed: 1\n---\nseed: 2\n", "expected a single document"),
        ("seed: \x01\n", "control characters are not allowed"),
        # This has the form of a date, but there is no such month.
        ("seed: 2024-13-45\n", "month must be in 1..12"),
    ],
)
def test_no_yaml(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(f"{path} is not valid YAML: ")
    assert reason in message


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("seed: &one 1\nrecipe: *one\n", 2, "found an alias, '*one'; allowed: the value itself"),
        ("seed: *one\n", 1, "found an alias, '*one'; allowed: the value itself"),
        ("seed: !!python/object:os.system {}\n", 1, "found a tag, 'tag:yaml.org,2002:python/object:os.system'"),
        ("\nseed: !!int one\n", 2, "found a tag, 'tag:yaml.org,2002:int'; allowed: plain values"),
        ("seed: " + "[" * 100_000, 1, "nested more than 16 deep"),
        ("seed: 0x" + "f" * 4000, 1, "found a value of 4,002 characters, allowed: at most 2,000"),
    ],
    ids=["alias", "undefined alias", "object", "integer", "nested", "long"],
)
def test_what_yaml_allows_and_this_file_does_not(tmp_path: Path, text: str, line: int, found: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert refusal(path).startswith(f"{path} is invalid:\n  line {line}: {found}")


def test_no_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff\n")
    assert refusal(path).startswith(f"{path} is not valid YAML: ")


@pytest.mark.parametrize(("text", "found"), [("", "None"), ("[]", r"\[\]"), ("seed", "'seed'")])
def test_no_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"is invalid:\n  the file: found {found}, input should be a valid dictionary"):
        load_params(path)


SMALL: dict[str, Any] = {
    "recipe_defaults": {
        "loss": {"name": "cross_entropy", "label_smoothing": 0.05},
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.02},
        "augmentation": {"shift": 2, "rotation": 3},
        "batch_size": 256,
    },
    "recipes": {
        "same": {},
        "other": {
            "loss": {"name": "mse"},
            "optimizer": {"lr": 0.5},
            "augmentation": {"rotation": 0, "shear": 7},
            "batch_size": 8,
            "epochs": 1,
        },
        "named": {"optimizer": {"name": "adamw", "lr": 0.5}, "loss": {"label_smoothing": 0}},
    },
    "seed": 1,
}


def test_recipes_are_completed() -> None:
    before = deepcopy(SMALL)
    assert with_complete_recipes(SMALL) == {
        "recipe_defaults": SMALL["recipe_defaults"],
        "recipes": {
            "same": SMALL["recipe_defaults"],
            "other": {
                "loss": {"name": "mse"},
                "optimizer": {"name": "adamw", "lr": 0.5, "weight_decay": 0.02},
                "augmentation": {"shift": 2, "rotation": 0, "shear": 7},
                "batch_size": 8,
                "epochs": 1,
            },
            "named": {
                "loss": {"name": "cross_entropy", "label_smoothing": 0},
                "optimizer": {"name": "adamw", "lr": 0.5, "weight_decay": 0.02},
                "augmentation": {"shift": 2, "rotation": 3},
                "batch_size": 256,
            },
        },
        "seed": 1,
    }
    assert before == SMALL


@pytest.mark.parametrize(
    "recipe", [{"loss": None}, {"loss": "mse"}, {"loss": []}, {"augmentation": 0}, {"batch_size": {"name": "x"}}]
)
def test_a_value_of_another_type_is_not_completed(recipe: dict[str, Any]) -> None:
    merged = with_complete_recipes({**SMALL, "recipes": {"one": recipe}})
    assert merged["recipes"]["one"] == SMALL["recipe_defaults"] | recipe


@pytest.mark.parametrize(
    "unchanged", [None, [], "text", {"recipes": {"one": {}}}, {"recipe_defaults": [], "recipes": {}}, {"seed": 1}]
)
def test_without_defaults_nothing_is_completed(unchanged: object) -> None:
    assert with_complete_recipes(unchanged) == unchanged


def test_complete_recipes_need_no_defaults(tmp_path: Path, content: dict[str, Any]) -> None:
    complete = json.loads(json.dumps(with_complete_recipes(content)))  # It holds no section twice, as YAML's aliases.
    write_params(complete | {"recipe_defaults": {}}, tmp_path)
    assert load_params(tmp_path / "params.yaml").recipes == load_params(FILE).recipes


WRONG_DEFAULTS = [
    ("batch_size", 0, "found 0, input should be greater than 0"),
    ("precision", "half", "found 'half', input should be 'auto', 'float32' or 'bfloat16'"),
    ("loss.label_smoothing", 1, "found 1, input should be less than 1"),
    ("augmentation.shift", -1, "found -1, input should be greater than or equal to 0"),
    ("augmentation.shfit", 1, "found 1, but there is no such key"),
    ("optimizer.momentum", 0.9, "found 0.9, but there is no such key"),
    ("regularization", 7, "found 7, input should be a valid dictionary or instance of Regularization"),
    ("dropout", 0.5, "found 0.5, but there is no such key"),
    ("regularization.patience", MISSING, "is missing"),
    ("optimizer.weight_decay", MISSING, "is missing"),
    ("optimizer.name", MISSING, "is missing"),
]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    WRONG_DEFAULTS,
    ids=[f"{field}={str(value)[:9]}" for field, value, _ in WRONG_DEFAULTS],
)
def test_a_wrong_default_is_reported_once(
    tmp_path: Path, content: dict[str, Any], field: str, value: object, message: str
) -> None:
    for recipe in content["recipes"].values():  # Recipes can add only to a section.
        if not isinstance(value, dict) and field == "regularization":
            recipe.pop(field, None)
    set_field(content, f"recipe_defaults.{field}", value)
    write_params(content, tmp_path)
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [f"  recipe_defaults.{field}: {message}"]


def test_an_unknown_name_in_the_defaults_is_reported_once(tmp_path: Path, content: dict[str, Any]) -> None:
    wrong = content["recipe_defaults"]["optimizer"]
    wrong["name"] = "lion"
    write_params(content, tmp_path)
    [line] = refusal(tmp_path / "params.yaml").split("\n")[1:]
    assert line.startswith(
        f"  recipe_defaults.optimizer: found {wrong!r}, input tag 'lion' found using 'name' does not"
    )


def test_values_in_the_defaults_that_do_not_go_together(tmp_path: Path, content: dict[str, Any]) -> None:
    for recipe in content["recipes"].values():
        recipe.pop("optimizer", None)
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": True, "weight_decay": 0.0}
    set_field(content, "recipe_defaults.optimizer", sgd)
    write_params(content, tmp_path)
    message = "  recipe_defaults.optimizer: nesterov needs a momentum above 0"
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [message]


def test_what_a_recipe_states_is_reported_of_the_recipe_and_what_it_inherits_of_the_defaults(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["recipe_defaults"]["augmentation"].update(shift=-1, rotation=-1)
    set_field(content, "recipes.convnet.augmentation.shift", -2)
    content["recipes"]["article"]["schedule"]["warmup"] = 0.5
    content["recipes"]["mlp"]["optimizer"].pop("weight_decay")  # It is of another name than the default's.
    del content["recipes"]["lstm"]["epochs"]
    write_params(content, tmp_path)
    fields = [line.split(":")[0].strip() for line in refusal(tmp_path / "params.yaml").split("\n")[1:]]
    assert len(fields) == len(set(fields))
    assert set(fields) == {
        "recipe_defaults.augmentation.shift",
        "recipe_defaults.augmentation.rotation",
        "recipes.convnet.augmentation.shift",
        "recipes.article.schedule.warmup",
        "recipes.mlp.optimizer.weight_decay",
        "recipes.lstm.epochs",
    }


def test_a_default_that_every_recipe_overrides_does_no_harm(tmp_path: Path, content: dict[str, Any]) -> None:
    content["recipe_defaults"]["epochs"] = 7
    content["recipe_defaults"]["model"] = {"name": "mlp", "hidden": [8]}  # It is not complete.
    write_params(content, tmp_path)
    assert load_params(tmp_path / "params.yaml").recipes == load_params(FILE).recipes


def test_a_default_that_every_recipe_overrides_is_validated(tmp_path: Path, content: dict[str, Any]) -> None:
    content["recipe_defaults"] |= {"epochs": "x", "model": 3}
    write_params(content, tmp_path)
    epochs, model = sorted(refusal(tmp_path / "params.yaml").split("\n")[1:])
    assert epochs == "  recipe_defaults.epochs: found 'x', input should be a valid integer"
    assert model.startswith("  recipe_defaults.model: found 3, ")


@pytest.mark.parametrize("value", [None, [], "adamw", 7])
def test_defaults_that_are_not_a_section(tmp_path: Path, content: dict[str, Any], value: object) -> None:
    content["recipe_defaults"] = value
    write_params(content, tmp_path)
    line = f"  recipe_defaults: found {value!r}, input should be a valid dictionary"
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [line]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (MISSING, "is missing"),
        (None, "found None, input should be a valid dictionary"),
        ({"one": None}, ".one: found None, input should be a valid dictionary or instance of Recipe"),
    ],
)
def test_recipes_that_are_not_a_section(tmp_path: Path, content: dict[str, Any], value: object, message: str) -> None:
    set_field(content, "recipes", value)
    write_params(content, tmp_path)
    expected = f"  recipes{message}" if message.startswith(".") else f"  recipes: {message}"
    assert refusal(tmp_path / "params.yaml").split("\n")[1:] == [expected]


LEFT_OUT = [
    ("recipes.convnet.precision", "float32"),
    ("recipes.mlp.batch_size", 64),
    ("recipes.convnet.loss.label_smoothing", 0.25),
    ("recipes.convnet.schedule.name", "constant"),
    ("recipes.convnet.optimizer.weight_decay", 0.5),
    ("recipes.accurate.augmentation.shift", 1),
    ("recipes.article.regularization.patience", 3),
]


@pytest.mark.parametrize(("field", "value"), LEFT_OUT)
def test_a_field_that_a_recipe_leaves_out_is_overridden_in_that_recipe_alone(
    tmp_path: Path, field: str, value: object
) -> None:
    """DVC needs a `+` before such a field, and writes the same file."""
    text, by_dvc, by_flow = FILE.read_text(), tmp_path / "dvc.yaml", tmp_path / "flow.yaml"
    by_dvc.write_text(text)
    by_flow.write_text(text)
    with pytest.raises(InvalidArgumentError):
        apply_overrides(by_dvc, [f"{field}={value}"])
    apply_overrides(by_dvc, [f"+{field}={value}"])
    override_params(by_flow, {field: value})
    assert by_dvc.read_text() == by_flow.read_text()
    before, after = text.split("\n"), by_flow.read_text().split("\n")
    added = [line for line in after if line not in before]
    assert len(added) <= 2
    assert len(after) - len(before) <= 2

    _, name, *keys = field.split(".")
    expected, changed = (load_params(path).model_dump()["recipes"] for path in (FILE, by_flow))
    recipe, expected_recipe = changed.pop(name), expected.pop(name)
    assert changed == expected
    if field == "recipes.convnet.schedule.name":
        assert recipe == expected_recipe | {"schedule": {"name": "constant"}}
    else:
        assert dict(scalars(recipe)) == {**dict(scalars(expected_recipe)), ".".join(keys): value}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("recipes.convnet.momentum", 0.9, "there is no 'momentum'"),
        ("recipes.convnet.precison", "auto", "there is no 'precison', did you mean 'precision'?"),
        ("recipes.convnet.loss.lable_smoothing", 0.1, "there is no 'lable_smoothing', did you mean 'label_smoothing'?"),
        ("recipes.convnet.optimizer.momentum", 0.9, "there is no 'momentum'"),
        ("recipes.convnte.precision", "auto", "there is no 'convnte', did you mean 'convnet'?"),
        ("recipes.convnet.precision.name", "auto", "there is no 'name'"),
        ("recipes.convnet.optimizer.lr.max", 1, "there is no 'max'"),
        ("momentum", 0.9, "there is no 'momentum'"),
        ("loss.label_smoothing", 0.1, "there is no 'loss'"),
        ("recipe_defaults.epochs", 3, "there is no 'epochs'"),
        ("recipes.article.schedule.warmup", 0.2, "found 0.2, but there is no such key"),
        ("recipes.convnet.loss.label_smoothing", 7, "found 7, input should be less than 1"),
    ],
)
def test_an_override_that_is_not_possible_changes_nothing(
    tmp_path: Path, field: str, value: object, reason: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text())
    with pytest.raises(UserError) as refused:
        override_params(path, {"seed": 5, field: value})
    assert str(refused.value) == f"{path} is invalid:\n  {field}: {reason}"
    assert path.read_text() == FILE.read_text()


@pytest.mark.parametrize("field", ["seed", "recipes.convnet.epochs", "recipes.convnet.optimizer.lr"])
def test_an_override_beside_defaults_that_are_not_a_section(
    tmp_path: Path, content: dict[str, Any], field: str
) -> None:
    content["recipe_defaults"] = 5
    write_params(content, tmp_path)
    with pytest.raises(UserError, match="recipe_defaults: found 5, input should be a valid dictionary"):
        override_params(tmp_path / "params.yaml", {field: 1})


def test_a_default_is_overridden_for_all_recipes_that_leave_it_out(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text())
    override_params(path, {"recipe_defaults.batch_size": 32, "recipe_defaults.optimizer.weight_decay": 0.125})
    assert len(changed_lines(FILE.read_text(), path.read_text())) == 2
    recipes = load_params(path).recipes
    assert (recipes["mlp"].batch_size, recipes["convnet"].batch_size) == (32, 128)
    assert recipes["mlp"].optimizer.weight_decay == 0.0
    assert recipes["convnet"].optimizer.weight_decay == 0.125


def scalars(section: dict[str, Any], *above: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted names and the values of all fields, except those within lists."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from scalars(value, *above, key)
        elif not isinstance(value, list):
            yield ".".join([*above, key]), value


def another(value: object) -> object:
    """Return a different value of the same type and length."""
    match value:
        case bool():
            return not value
        case str():
            return value[::-1]
        case _:
            return YAML(typ="safe").load(f"{str(value)[:-1]}{1 if str(value)[-1] != '1' else 2}")


def changed_lines(before: str, after: str) -> list[str]:
    return [new for old, new in zip(before.split("\n"), after.split("\n"), strict=True) if old != new]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 2),
        ("recipe", "article"),
        ("dataset", "fashion-mnist"),
        ("normalize.class_share.max", 0.25),
        ("machine.cuda_graph", False),
        ("machine.compile", "default"),
        ("recipes.convnet.optimizer.lr", 0.003),
        ("recipes.convnet.model.dropout", 0.125),
        ("recipes.vgg.optimizer.lr", 1e-05),
    ],
)
def test_dvc_and_the_flow_override_a_field_alike_and_change_one_line(tmp_path: Path, field: str, value: object) -> None:
    text, by_dvc, by_flow = FILE.read_text(), tmp_path / "dvc.yaml", tmp_path / "flow.yaml"
    by_dvc.write_text(text)
    by_flow.write_text(text)
    apply_overrides(by_dvc, [f"{field}={value}"])
    override_params(by_flow, {field: value})
    assert by_dvc.read_text() == by_flow.read_text()
    assert len(changed_lines(text, by_dvc.read_text())) == 1
    assert dict(scalars(load_params(by_dvc).model_dump())) == {
        **dict(scalars(load_params(FILE).model_dump())),
        field: value,
    }


def test_dvc_keeps_the_layout_and_every_comment_when_it_sets_any_field(tmp_path: Path, content: dict[str, Any]) -> None:
    path, text = tmp_path / "params.yaml", FILE.read_text()
    path.write_text(text)
    fields = dict(scalars(content))
    apply_overrides(path, [f"{field}={value}" for field, value in fields.items()])
    assert path.read_text() == text
    others = {field: another(value) for field, value in fields.items()}
    apply_overrides(path, [f"{field}={value}" for field, value in others.items()])
    assert dict(scalars(YAML(typ="safe").load(path))) == others
    for old, new in zip(text.split("\n"), path.read_text().split("\n"), strict=True):
        (before, mark, comment), (after, *rest) = old.partition("#"), new.partition("#")
        assert rest == [mark, comment]
        assert before.partition(":")[0] == after.partition(":")[0]


def test_yaml_1_1_reads_the_same_values(content: dict[str, Any]) -> None:
    """DVC quotes strings only where YAML 1.2 needs it, but YAML 1.1 reads a plain `off` as false."""
    older = YAML(typ="safe", pure=True)
    older.version = (1, 1)
    assert older.load(FILE) == content


def check_as_a_program(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.core.config.params"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=env)


def test_program(tmp_path: Path, content: dict[str, Any]) -> None:
    write_params(content, tmp_path)
    lost = check_as_a_program(tmp_path)
    assert lost.returncode == 1
    assert lost.stderr == "params: error: dataset: found 'mnist', must be the name of a folder in data/: none\n"
    (tmp_path / "data/mnist").mkdir(parents=True)
    right = check_as_a_program(tmp_path)
    assert (right.returncode, right.stdout, right.stderr) == (0, "", "")
    (tmp_path / "params.yaml").unlink()
    absent = check_as_a_program(tmp_path)
    assert absent.returncode == 1
    assert absent.stderr == "params: error: [Errno 2] No such file or directory: 'params.yaml'\n"
