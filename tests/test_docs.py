"""Test README and docs: every command line works, every link leads somewhere, and the reference is up to date."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from ruamel.yaml import YAML

from docs import reference
from stages.core.config.params import PARAMS, override_params
from stages.core.files import layout
from stages.core.files.layout import dataset_file
from tests.conftest import PROJECT, Clone, tiny_params, wait_for

PAGES = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted(path.relative_to(PROJECT) for path in (PROJECT / "docs").glob("*.md"))
README_LINES = 120
# Paths that the pages name, but that are neither in the repository nor the output of a stage.
WRITTEN = {
    Path(name)
    for name in (
        ".dvc/config.local",
        ".dvc/tmp/rwlock",
        ".prefect",
        "artifacts/predictions/photos/predictions.parquet",
        "data/NAME/dataset.yaml",
        "data/flowers",
        "data/flowers/dataset.yaml",
        "site",
    )
}
# The ends of messages whose beginning, which the pages quote, is in a variable.
QUOTED_IN_PART = ["…: …, found:\n…", "there would allow it"]
OF_DVC = ["Unable to acquire lock", "Unable to read RWLock-file"]  # messages that the pages quote


class Run(NamedTuple):
    """Run the command in a clone of the project on tiny data, in the order of its page.

    If `instead` is given, run that in its place. If `target` is given, an experiment runs only this stage and those
    before it.
    """

    instead: str = ""
    target: str = ""


class Serve(NamedTuple):
    """Start `instead` in the clone, wait until it prints `ready`, and stop it."""

    instead: str
    ready: str


class Ask(NamedTuple):
    """Run the command while the service is running, with the service's port in place of 8000."""


class Override(NamedTuple):
    """Only check that params.yaml accepts the values of -S, because a run takes long or needs other hardware."""


class Help(NamedTuple):
    """Only check that the help of `program` has the options, because the command needs a server or never ends."""

    program: str


class DryRun(NamedTuple):
    """Only do a dry run, because the target takes long, changes the environment or needs the network."""


class NotRun(NamedTuple):
    """Do not run the command, for this reason."""

    reason: str


How = Run | Serve | Ask | Override | Help | DryRun | NotRun
COMPARE = "dvc exp show --only-changed --drop 'Created|artifacts|stages|validation|top5'"
COMMANDS: dict[str, How] = {
    "cd artifacts/onnx && sha256sum --check --strict SHA256SUMS": Run(),
    "cp artifacts/metrics/evaluation.json artifacts/metrics/parity.json artifacts/baseline/mnist/": Run(),
    "curl -F files=@one.png -F files=@two.jpg http://127.0.0.1:8000/predict": Ask(),
    "curl -H 'Content-Type: image/png' --data-binary @seven.png http://127.0.0.1:8000/predict": Ask(),
    "curl http://127.0.0.1:8000/health": Ask(),
    "dvc add data/flowers/*/": Run(),
    "dvc checkout": Run(),
    "dvc commit --force train": Run(),
    "dvc exp apply slower": Run(),
    "dvc exp remove gentle": Run(),
    "dvc exp run -S +recipes.convnet.loss.class_weight=0.5": Run(target="normalize"),
    "dvc exp run -S dataset=fashion-mnist": Run(target="normalize"),
    "dvc exp run -S dataset=flowers -S recipe=photos": Run(target="normalize"),
    "dvc exp run -S machine.processes=4": Override(),
    "dvc exp run -S normalize.class_share.min=0.05 -S normalize.class_share.max=0.9": Run(target="normalize"),
    "dvc exp run -S recipe=article -S dataset=fashion-mnist": Run(target="train"),
    "dvc exp run -S recipe=article": Run(target="normalize"),
    "dvc exp run -n gentle -S +recipes.convnet.augmentation.rotation=5": Run(target="normalize"),
    "dvc exp run -n slower -S recipes.convnet.optimizer.lr=0.003": Run(),
    COMPARE: Run(),
    "dvc metrics diff main slower": Run(),
    "dvc params diff main slower": Run(),
    "dvc plots diff main slower": Run(),
    "dvc plots show": Run(),
    "dvc repro": Run(),
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": Run(),
    "export PREFECT_API_URL=http://SERVER:4200/api": Run(),
    "export PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://prefect:PASSWORD@DBHOST/prefect": Run(),
    "make audit": DryRun(),
    "make check": DryRun(),
    "make demo": DryRun(),
    "make docs": DryRun(),
    "make flow": DryRun(),
    "make format": DryRun(),
    "make new-data NAME=flowers FROM=~/flowers": Run(
        "make --assume-old=.venv/installed new-data NAME=flowers FROM=flowers"
    ),
    "make run": Run("make --assume-old=.venv/installed run"),
    "make schedule": DryRun(),
    "make test": DryRun(),
    "make test-all": DryRun(),
    "prefect deploy --all": Help("prefect deploy"),
    "prefect deployment run pipeline/on-demand --param recipe=article --watch": Help("prefect deployment run"),
    "prefect deployment run pipeline/on-demand --params "
    """'{"overrides": {"recipes.convnet.optimizer.lr": 0.003}}'""": Help("prefect deployment run"),
    "prefect deployment run predict/predict --param folder=photos": Help("prefect deployment run"),
    "prefect server start --host 0.0.0.0": Help("prefect server start"),
    "prefect work-pool create vision-pipeline --type process": Help("prefect work-pool create"),
    "prefect worker start --pool vision-pipeline": Help("prefect worker start"),
    r"printf '#!/bin/sh\nexec make check\n' > .git/hooks/pre-commit && chmod +x .git/hooks/pre-commit": Run(),
    "python -m benchmarks.inference": NotRun("it takes minutes and overwrites measured figures"),
    "python -m docs.reference": Run(),
    "python -m flows.pipeline --help": Run(),
    "python -m flows.pipeline --recipe article --isolated": Help("python -m flows.pipeline"),
    "python -m flows.predict --help": Run(),
    "python -m flows.predict photos": Run(),
    "python -m serving.app --port 8001": Serve("python -m serving.app --port 0", "page is at http://"),
    "python -m stages.core.config.params": Run(),
    "source .venv/bin/activate": NotRun("the clone uses the environment of the tests"),
    "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -m stages.train": Help(
        "torchrun"
    ),
}


def read(page: Path) -> str:
    return (PROJECT / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Return the contents of the page's fenced blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the page's command lines without their comments."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", "").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#(?!!).*", "", line).strip())]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def test_every_command_line_is_known_and_no_other() -> None:
    assert {command for page in PAGES for command in commands(page)} == set(COMMANDS)


def test_command_lines_are_in_blocks_of_sh() -> None:
    languages = {name for page in PAGES for name in re.findall(r"^```([^\n]+)$", read(page), re.MULTILINE)}
    assert languages <= {"sh", "python", "text", "yaml", "mermaid", "{toctree}"}


def test_the_readme_is_short() -> None:
    assert len(read(Path("README.md")).splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", without_blocks(read(page)))):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / name if name else PROJECT / page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page, as does MyST."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_in_code_exists(page: Path) -> None:
    roots = {path.name for path in PROJECT.iterdir()}
    outputs = {path for path in vars(layout).values() if isinstance(path, Path)}
    outputs |= {parent for path in outputs for parent in path.parents} | WRITTEN
    for code in re.findall(r"`([^`\n]+)`", without_blocks(read(page))):
        is_path = code.split("/")[0] in roots or re.search(r"/.*\.(py|md|yaml|json|parquet|npy|html)$", code)
        if is_path and re.fullmatch(r"\.?\w[\w./*-]*", code):
            known = {Path(code), "artifacts" / Path(code)} & outputs  # A table of outputs omits the folder.
            assert known or any(PROJECT.glob(code.rstrip("/"))), code


def test_the_configuration_reference_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on no value in params.yaml, of which there is none here."""
    page = read(reference.PAGE)
    monkeypatch.chdir(tmp_path)
    assert page == reference.render(), "run `python -m docs.reference`"


def test_every_field_of_the_configuration_is_described() -> None:
    rows = [line.split(" | ") for line in read(reference.PAGE).splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row[0] for row in rows if len(row[-1]) < 3] == []


def test_the_troubleshooting_page_quotes_messages_as_they_are() -> None:
    """Check that every part of a message in the first column occurs in the code, unless DVC prints the message."""
    files = [file for name in ("stages", "flows", "serving") for file in (PROJECT / name).rglob("*.py")]
    code = "\n".join([*(file.read_text(encoding="utf-8") for file in files), *OF_DVC])
    code = re.sub(r"\"\n\s*f?\"", "", code)  # A string may be split over several lines.
    rows = re.findall(r"^\| (`.*?) \|", read(Path("docs/troubleshooting.md")), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`+ ?(.*?) ?`+", row)]
    parts = [part.strip() for message in messages for part in re.split("…|, |'", message)]
    assert len(parts) > 100
    assert [part for part in parts if part not in code] == []


def render_message(node: ast.expr) -> str:
    """Return the text that an expression makes, with `…` for what varies."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(render_message, values))
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=elements)]):
            return "\n".join(map(render_message, elements))
        case ast.IfExp(body=body, orelse=orelse):
            return f"{render_message(body)}\n{render_message(orelse)}"
        case _:
            return "…"


def raised_messages() -> Iterator[str]:
    """Yield the messages of all `UserError` and `TemporaryError` that hold words of their own."""
    for name in ("stages", "flows", "serving"):
        for file in (PROJECT / name).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Raise(exc=ast.Call(func=ast.Name(id="UserError" | "TemporaryError"), args=[text])):
                        if re.search("[a-z]", message := render_message(text)):
                            yield message


def test_the_troubleshooting_page_has_every_message() -> None:
    rows = re.findall(r"^\| (`.*?) \|", read(Path("docs/troubleshooting.md")), re.MULTILINE)
    quoted = [message for row in rows for message in re.findall(r"`+ ?(.*?) ?`+(?=,|$)", row)]
    patterns = [".*".join(map(re.escape, message.split("…"))) for message in quoted]
    messages = [*raised_messages()]
    assert len(messages) > 80
    patterns += map(re.escape, QUOTED_IN_PART)
    missing = [text for text in messages if not any(re.search(each, text, re.DOTALL) for each in patterns)]
    assert missing == [], "docs/troubleshooting.md does not quote these"


def test_the_version_of_the_project_is_in_the_changelog() -> None:
    version = re.search(r'^version = "(.*)"$', read(Path("pyproject.toml")), re.MULTILINE)
    assert version
    assert re.search(r"^## (\S+) - \d{4}-\d\d-\d\d$", read(Path("CHANGELOG.md")), re.MULTILINE)[1] == version[1]  # type: ignore[index]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "."]
    done = subprocess.run([*build, tmp_path / "site"], cwd=PROJECT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/docs/index.html").exists()


@pytest.fixture
def project(repeated: Clone, tiny_idx: Path) -> Clone:
    """Return a clone with a committed run and what the pages take for granted: pictures, and a second data set."""
    fashion = repeated.folder / dataset_file("fashion-mnist")
    tiny = tiny_params(tiny_idx)["datasets"]["tiny"]
    described = YAML(typ="safe").load(fashion)
    YAML().dump(described | {"sources": tiny["sources"], "sha256": tiny["sha256"]}, fashion)
    repeated.run("git", "add", "--all")
    repeated.run("git", "commit", "--quiet", "--message=a finished run")
    (repeated.folder / "photos").mkdir()
    for name in ("seven.png", "one.png", "two.jpg", "photos/three.png"):
        (repeated.folder / name).write_bytes(picture(Path(name).suffix))
    with (repeated.folder / ".git/info/exclude").open("a") as file:
        file.write("photos\n/flowers\n/*.jpg\n/*.png\n")
    for name, color in (("rose", (200, 20, 60)), ("tulip", (230, 200, 20))):
        folder = repeated.folder / "flowers" / name
        folder.mkdir(parents=True)
        for index in range(20):
            flower = Image.new("RGB", (60, 40), (20, 90 + 5 * index, 30))
            flower.paste(color, (10 + index, 5, 30 + index, 30))
            flower.save(folder / f"{index}.png")
    return repeated


def picture(suffix: str) -> bytes:
    image, content = Image.new("L", (40, 40), 255), BytesIO()
    image.paste(0, (18, 5, 22, 35))
    image.save(content, "PNG" if suffix == ".png" else "JPEG")
    return content.getvalue()


@contextmanager
def serving(clone: Clone, command: str, ready: str) -> Iterator[str]:
    """Run a server in the clone; yield what it has printed once it is ready, and stop it afterwards."""
    log = clone.folder.with_suffix(".server.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=clone.folder, env=clone.environment({}), stdout=file, stderr=file
        )
    try:
        wait_for(lambda: ready in log.read_text() or process.poll() is not None, 120, command)
        assert process.poll() is None, log.read_text()
        yield log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=str)
def test_the_command_lines_of_a_page_work(page: Path, project: Clone) -> None:
    for command in commands(page):
        work(command, COMMANDS[command], project)


def work(command: str, how: How, clone: Clone) -> None:
    """Run or check one command line; fail with its output."""
    match how:
        case Run(instead, target):
            clone.run("bash", "-c", f"{instead or command} {target}")
        case Serve(instead, ready):
            with serving(clone, instead, ready):
                pass
        case Ask():
            if shutil.which("curl") is None:
                pytest.skip("no curl here")
            with serving(clone, "python -m serving.app --port 0", "page is at http://") as printed:
                (port,) = re.findall(r"page is at http://127.0.0.1:(\d+)", printed)
                asked = command.replace("curl", "curl --silent --fail", 1).replace(":8000", f":{port}")
                assert json.loads(clone.run("bash", "-c", asked).stdout)
        case Override():
            copy = Path(shutil.copy(PROJECT / PARAMS, clone.folder / "overridden.yaml"))
            overrides = dict(re.findall(r"-S \+?([\w.]+)=(\S+)", command))
            assert overrides
            override_params(copy, {field: YAML(typ="safe").load(value) for field, value in overrides.items()})
            copy.unlink()
        case Help(program):
            text = clone.run(*program.split(), "--help", env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
            assert command.startswith(program)
            assert [option for option in re.findall(r"(?<= )--[a-z-]+", command) if option not in text] == []
        case DryRun():
            assert clone.run(*command.split(), "--dry-run", "--assume-old=.venv/installed").stdout
        case NotRun():
            pass


@pytest.mark.slow
def test_the_programs_of_the_pages_work(project: Clone) -> None:
    for page in PAGES:
        for program in blocks(page, "python"):
            assert project.run(sys.executable, "-c", program).stdout
