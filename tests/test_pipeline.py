"""The whole graph, with real DVC and git on tiny data."""

import ast
import json
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core.files import layout
from stages.core.files.layout import NORMALIZED
from tests.conftest import PROJECT, Clone, write_params
from tests.faults.processes import contents

STAGES = YAML(typ="safe").load(PROJECT / "dvc.yaml")["stages"]


def direct_imports(module: Path) -> set[str]:
    """Return the project's files that `module` itself imports, with the packages that they are in and it is not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.ImportFrom(module=str(base), names=names):
                candidates = [base, *(f"{base}.{alias.name}" for alias in names)]
            case ast.Import(names=names):
                candidates = [alias.name for alias in names]
            case _:
                continue
        paths = [Path(candidate.replace(".", "/")) for candidate in candidates]
        found.update(f"{path}.py" for path in paths if (PROJECT / f"{path}.py").is_file())
        found.update(f"{path}/__init__.py" for path in paths if has_code(path / "__init__.py"))
    # Python runs the packages that hold a module first. Most are only a docstring.
    above = {parent / "__init__.py" for file in found for parent in Path(file).parents}
    return found | {
        file.as_posix() for file in above if has_code(file) and not module.is_relative_to(PROJECT / file.parent)
    }


def has_code(package: Path) -> bool:
    """Return whether the project has this file, and more than a docstring in it."""
    return (PROJECT / package).is_file() and len(ast.parse((PROJECT / package).read_text()).body) > 1


def first_party_imports(*modules: Path) -> set[str]:
    """Return the project's files that these modules import, themselves and through each other, and the modules."""
    found: set[str] = set()
    waiting = {module.relative_to(PROJECT).as_posix() for module in modules}
    while waiting:
        found.add(name := waiting.pop())
        waiting |= direct_imports(PROJECT / name) - found
    return found


def test_stages_of_dvc_are_the_modules() -> None:
    modules = {path.stem for path in (PROJECT / "stages").glob("*.py")} - {"__init__"}
    assert set(STAGES) == modules
    assert {stage["cmd"] for stage in STAGES.values()} == {f"python -m stages.{name}" for name in modules}


def test_the_report_shows_every_stage_before_it() -> None:
    assert ["download", *(outputs.stage for outputs in layout.TIMED), "report"] == [*STAGES]


def test_only_the_modules_of_pictures_and_their_networks_mention_pixels() -> None:
    """Check that examples of another kind would not be taken for pictures elsewhere."""
    allowed = ("stages/core/examples/", "stages/core/nets/", "stages/core/data/formats.py")
    for file in (PROJECT / "stages").rglob("*.py"):
        name = file.relative_to(PROJECT).as_posix()
        mentions = re.findall(r"(?i)(?<!css )pixel", file.read_text(encoding="utf-8"))
        assert not mentions or name.startswith(allowed), name


@pytest.mark.parametrize("name", STAGES)
def test_every_import_of_a_stage_is_a_dep(name: str) -> None:
    """A dep is a module, or a package of which the stage imports at least one module."""
    deps = [Path(dep) for dep in STAGES[name]["deps"] if dep.startswith("stages/")]
    # Python runs the package of a stage before the stage.
    started = [PROJECT / "stages" / module for module in ("__init__.py", f"{name}.py")]
    imported = {Path(module) for module in first_party_imports(*started)}
    assert {module for module in imported if not any(module.is_relative_to(dep) for dep in deps)} == set()
    assert [dep for dep in deps if not any(module.is_relative_to(dep) for module in imported)] == []


# Each package may import those before it; the config sections are below all of them.
LAYERS = ["files", "config", "machine", "examples", "data", "nets", "evaluation", "training", "deploy", "reporting"]


def layer_of(module: str) -> int:
    """Return the place of a module in the order of the layers."""
    match module.removesuffix(".py").split("/"):
        case ["stages", "core", "files", *_]:
            return 0
        case ["stages", "core", _, "config" | "section" | "spec"]:
            return 1
        case ["stages", "core", package, *_]:
            return 1 + LAYERS.index(package)
        case _:
            return 1 + len(LAYERS)


def test_no_module_imports_one_of_a_higher_layer() -> None:
    for module in (PROJECT / "stages/core").glob("*/*.py"):
        name = module.relative_to(PROJECT).as_posix()
        above = {each for each in first_party_imports(module) if layer_of(each) > layer_of(name)}
        assert not above, f"{name} imports {above}"


def test_imports_have_no_cycle() -> None:
    modules = [path for folder in ("stages", "flows", "serving") for path in (PROJECT / folder).rglob("*.py")]
    graph = {path.relative_to(PROJECT).as_posix(): direct_imports(path) for path in modules}
    TopologicalSorter(graph).prepare()


@pytest.mark.slow
def test_repro_runs_every_stage_once(undisturbed: Clone, repeated: Clone) -> None:
    first = undisturbed.folder.with_suffix(".log").read_text()
    assert all(f"Running stage '{name}'" in first for name in STAGES)
    assert set(undisturbed.read_yaml("dvc.lock")["stages"]) == set(STAGES)

    second = repeated.run("dvc", "repro").stdout
    assert "Running stage" not in second
    assert "Data and pipelines are up to date." in second


@pytest.mark.slow
def test_repro_again_in_another_folder_writes_the_same_bytes(repeated: Clone) -> None:
    lock = (repeated.folder / "dvc.lock").read_bytes()
    repeated.folder = repeated.folder.rename(repeated.folder.with_name("moved elsewhere"))
    repeated.run("dvc", "repro", "--force")
    assert (repeated.folder / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
def test_an_experiment_is_compared_with_the_commit(repeated: Clone) -> None:
    clone = repeated
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message=run")
    clone.run("dvc", "exp", "run", "--name", "baseline", "--set-param", "recipe=article")
    diff = json.loads(clone.run("dvc", "metrics", "diff", "--json", "HEAD", "baseline").stdout)
    evaluation = diff["artifacts/metrics/evaluation.json"]
    assert evaluation["loss"]["old"] != evaluation["loss"]["new"]
    assert all("made_from" not in metric for metrics in diff.values() for metric in metrics)
    show = ["dvc", "exp", "show", "--no-pager", "--only-changed", "--drop", "Created|artifacts|stages|validation|top5"]
    table = clone.run(*show, env={"COLUMNS": "160"}).stdout
    assert all(name in table for name in ("accuracy", "calibration_error", "tolerance_used", "recipe"))
    assert "…" not in table
    changed = json.loads(clone.run("dvc", "params", "diff", "--json", "HEAD", "baseline").stdout)["params.yaml"]
    assert changed["recipe"] == {"old": "convnet", "new": "article"}

    clone.run("dvc", "plots", "diff", "HEAD", "baseline", "--out", "plots")
    page = (clone.folder / "plots" / "index.html").read_text()
    assert all(title in page for title in ("Loss by epoch", "Accuracy by epoch", "Confusion matrix"))


@pytest.mark.slow
def test_an_override_changes_one_line_and_a_bad_one_loses_nothing(clone: Clone) -> None:
    """Check it in the project's own file, with its comments and its layout."""
    text = (PROJECT / "params.yaml").read_text().replace("\ndataset: mnist ", "\ndataset: tiny  ")
    (clone.folder / "params.yaml").write_text(text)
    clone.run("git", "commit", "--quiet", "--all", "--message=tiny data in the project's file")

    clone.run("dvc", "exp", "run", "--set-param", "seed=2", "normalize")
    assert clone.run("git", "diff", "--numstat", "params.yaml").stdout == "1\t1\tparams.yaml\n"
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message=run")
    written = contents(clone.folder, NORMALIZED)

    refused = clone.run("dvc", "exp", "run", "--set-param", "normalize.std=-1", "normalize", check=False)
    assert refused.returncode != 0
    assert "normalize.std: found -1, input should be greater than or equal to 0.0001" in refused.stdout
    clone.run("git", "checkout", "params.yaml")
    clone.run("dvc", "checkout", "normalize")
    assert contents(clone.folder, NORMALIZED) == written


@pytest.mark.slow
def test_refused_params_stop_before_any_work(clone: Clone, params: dict[str, object]) -> None:
    params["seed"] = -1
    write_params(params, clone.folder)
    done = clone.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "seed: found -1, input should be greater than or equal to 0" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (clone.folder / "artifacts/raw/tiny").exists()


@pytest.mark.slow
def test_raw_data_stay_out_of_git_before_dvc_knows_them(clone: Clone) -> None:
    """A kill of `dvc repro` at the end of the stage leaves the data in this state."""
    clone.run("python", "-m", "stages.download")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--allow-empty", "--message=raw data")
    clone.run("dvc", "repro", "download")
    assert clone.run("git", "status", "--porcelain").stdout == "?? dvc.lock\n"
