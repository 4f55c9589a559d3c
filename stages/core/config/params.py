"""Read params.yaml: every setting of the pipeline, validated.

`python -m stages.core.config.params` checks the file and prints nothing if it is valid.
"""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from ruamel.yaml import YAML

from stages.core.config.explain import explain_all
from stages.core.config.section import Name, Section
from stages.core.config.yaml_text import parse_yaml, read_text
from stages.core.data.config import Dataset, Normalize
from stages.core.deploy.config import Export, Parity
from stages.core.evaluation.config import Evaluate
from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError, did_you_mean, report_errors
from stages.core.training.config import Machine, Recipe, Train

PARAMS = Path("params.yaml")
DEFAULTS = "recipe_defaults"


class Params(Section):
    """Hold all settings. Recipes are complete: what they leave out comes from `recipe_defaults`."""

    recipe_defaults: dict[str, Any]  # `find_wrong_defaults` validates its values.
    recipe: Name
    """The recipe that is trained, one of `recipes`."""
    dataset: Name
    """The data set that it is trained on, one of `datasets`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """The seed of the validation split, the initial weights, the order of the batches and the augmentation."""
    machine: Machine
    normalize: Normalize
    train: Train
    evaluate: Evaluate
    export: Export
    parity: Parity
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)]

    @property
    def chosen_recipe(self) -> Recipe:
        return self.recipes[self.recipe]

    @property
    def chosen_dataset(self) -> Dataset:
        return self.datasets[self.dataset]


def load_params(path: Path = PARAMS) -> Params:
    """Return the validated params. Raise `UserError` naming every wrong field, what was found and what is allowed."""
    return parse_params(read_text(path), path)


def parse_params(text: str, path: Path) -> Params:
    """Return the validated params in `text`; errors name `path`."""
    # DVC reads the file with the same parser, so a value means the same to both (1e-3 is a number).
    content = parse_yaml(text, YAML(typ="safe"), str(path))
    merged, wrong = with_complete_recipes(content), find_wrong_defaults(content)
    try:
        params = Params.model_validate(merged)
    except ValidationError as error:
        wrong += error.errors()
    if wrong:
        raise UserError("\n".join([f"{path} is invalid:", *explain_all(wrong, content, merged)]))
    for field in ("recipe", "dataset"):
        name, known = getattr(params, field), list(getattr(params, f"{field}s"))
        if name not in known:
            allowed = f"must be one of {', '.join(known)}{did_you_mean(name, known)}"
            raise UserError(f"{path} is invalid:\n  {field}: found '{name}', {allowed}")
    processes, batch_size = params.machine.processes, params.chosen_recipe.batch_size
    if batch_size % processes:
        allowed = f"must divide batch_size of recipe '{params.recipe}' ({batch_size})"
        raise UserError(f"{path} is invalid:\n  machine.processes: found {processes}, {allowed}")
    return params


def with_complete_recipes(content: Any) -> Any:
    """Return the content of the file with `recipe_defaults` merged into each recipe.

    A recipe's section takes over the default's keys, unless its `name` says that it is a section of another kind.
    """
    match content:
        case {"recipe_defaults": dict(defaults), "recipes": dict(recipes)}:
            return {**content, "recipes": {name: with_defaults(recipe, defaults) for name, recipe in recipes.items()}}
        case _:
            return content


def with_defaults(recipe: Any, defaults: dict[str, Any]) -> Any:
    """Return the recipe, completed with the defaults that it leaves out."""
    if not isinstance(recipe, dict):
        return recipe
    merged = {**defaults, **recipe}
    for field, default in defaults.items():
        stated = recipe.get(field)
        if isinstance(stated, dict) and isinstance(default, dict) and stated.get("name") in (None, default.get("name")):
            merged[field] = {**default, **stated}
    return merged


def find_wrong_defaults(content: Any) -> list[Any]:
    """Return pydantic's errors in `recipe_defaults`, except those that a recipe corrects by what it adds."""
    match content:
        case {"recipe_defaults": dict(defaults)}:
            try:
                Recipe.model_validate(defaults)
            except ValidationError as error:
                return [
                    {**detail, "loc": (DEFAULTS, *detail["loc"])}
                    for detail in error.errors()
                    if detail["type"] not in ("missing", "value_error")
                ]
    return []


def override_params(path: Path, overrides: Mapping[str, Any]) -> None:
    """Set dotted fields (`recipes.convnet.optimizer.lr`) in the file, keeping its comments.

    Raises `UserError` for a field that does not exist and for a value that is not allowed; the file is then untouched.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096  # The other lines stay as they are.
    content = parse_yaml(read_text(path), yaml, str(path))
    for field, value in overrides.items():
        try:
            set_field(content, field.split("."), value)
        except KeyError as error:
            (reason,) = error.args
            raise UserError(f"{path} is invalid:\n  {field}: {reason}") from None
    text = StringIO()
    yaml.dump(content, text)
    parse_params(text.getvalue(), path)
    if overrides:
        with replacing(path) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")


def set_field(content: Any, keys: list[str], value: Any) -> None:
    """Set a field that exists, or that a recipe leaves out; raise `KeyError` with the reason for any other."""
    section, defaults = content, None
    for depth, key in enumerate(keys):
        inherited: dict[str, Any] = defaults if isinstance(defaults, dict) else {}
        known = [*section, *inherited] if isinstance(section, dict) else []
        if key not in known:
            raise KeyError(f"there is no '{key}'{did_you_mean(key, known)}")
        if depth == len(keys) - 1:
            section[key] = value
            return
        section = section.setdefault(key, {})
        defaults = content.get(DEFAULTS) if (depth, keys[0]) == (1, "recipes") else inherited.get(key)


if __name__ == "__main__":
    with report_errors("params"):
        load_params()
