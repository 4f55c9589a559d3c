"""The whole graph, with real DVC and git on tiny data."""

import ast
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import PROJECT, Clone, write_params

STAGES = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]


def first_party_imports(module: Path) -> set[str]:
    """The project's files that `module` imports, themselves and through each other."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        file = waiting.pop()
        if (name := file.relative_to(PROJECT).as_posix()) in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.ImportFrom(module=str(base), names=names):
                    candidates = [base, *(f"{base}.{alias.name}" for alias in names)]
                case ast.Import(names=names):
                    candidates = [alias.name for alias in names]
                case _:
                    continue
            paths = (PROJECT / f"{candidate.replace('.', '/')}.py" for candidate in candidates)
            waiting += [path for path in paths if path.is_file()]
    return found


def test_stages_of_dvc_are_the_modules() -> None:
    modules = {path.stem for path in (PROJECT / "stages").glob("*.py")} - {"__init__"}
    assert set(STAGES) == modules
    assert {stage["cmd"] for stage in STAGES.values()} == {f"python -m stages.{name}" for name in modules}


@pytest.mark.parametrize("name", STAGES)
def test_every_import_of_a_stage_is_a_dep(name: str) -> None:
    deps = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert deps == first_party_imports(PROJECT / "stages" / f"{name}.py")


def test_repro_twice_and_an_experiment(clone: Clone) -> None:
    first = clone.run("dvc", "repro").stdout
    assert all(f"Running stage '{name}'" in first for name in STAGES)
    lock = (clone.folder / "dvc.lock").read_bytes()
    assert set(clone.read_yaml("dvc.lock")["stages"]) == set(STAGES)

    second = clone.run("dvc", "repro").stdout
    assert "Running stage" not in second
    assert "Data and pipelines are up to date." in second

    # every artifact again, the same bytes; the stages see another folder's name
    moved = clone.folder.rename(clone.folder.with_name("moved elsewhere"))
    clone.folder = moved
    clone.run("dvc", "repro", "--force")
    assert (clone.folder / "dvc.lock").read_bytes() == lock

    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message=run")
    clone.run("dvc", "exp", "run", "--name", "baseline", "--set-param", "recipe=article")
    diff = json.loads(clone.run("dvc", "metrics", "diff", "--json", "HEAD", "baseline").stdout)
    evaluation = diff["artifacts/metrics/evaluation.json"]
    assert evaluation["loss"]["old"] != evaluation["loss"]["new"]
    assert all("made_from" not in metric for metrics in diff.values() for metric in metrics)
    show = ["dvc", "exp", "show", "--no-pager", "--only-changed", "--drop", "Created|artifacts|stages"]
    table = clone.run(*show, env={"COLUMNS": "160"}).stdout
    assert all(name in table for name in ("accuracy", "calibration_error", "tolerance_used", "recipe"))
    assert "…" not in table
    changed = json.loads(clone.run("dvc", "params", "diff", "--json", "HEAD", "baseline").stdout)["params.yaml"]
    assert changed["recipe"] == {"old": "convnet", "new": "article"}

    clone.run("dvc", "plots", "diff", "HEAD", "baseline", "--out", "plots")
    page = (clone.folder / "plots" / "index.html").read_text()
    assert all(title in page for title in ("Loss by epoch", "Accuracy by epoch", "Confusion matrix"))


def test_refused_params_stop_before_any_work(clone: Clone, params: dict[str, object]) -> None:
    params["seed"] = -1
    write_params(params, clone.folder)
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "seed: found -1, input should be greater than or equal to 0" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (clone.folder / "artifacts/raw/tiny").exists()
