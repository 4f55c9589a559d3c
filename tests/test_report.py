"""Test the report of tiny runs, read by a real browser; the model card as text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from stages import download, evaluate, export, normalize, parity, report, train
from stages.core.config.params import override_params
from stages.core.files import layout, schemas
from stages.core.files.errors import UserError
from stages.core.files.tables import read_json, read_table, write_table
from stages.core.reporting import audit
from stages.core.reporting.context import MISTAKES
from tests.conftest import PROJECT, make_images, make_once, tiny_params, write_params

HOSTILE = "<img src=x onerror=alert(1)> | </script>"
LONG = "x" * 90
CHARTS = ["accuracy", "balance", "brightness", "calibration", "confidences", "confusion", "loss", "risk"]


@pytest.fixture(scope="module")
def proved(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which all stages ran, with two badly named classes and an old baseline; do not write to it."""

    def make(folder: Path) -> None:
        params = tiny_params(tiny_idx)
        params["datasets"]["tiny"]["classes"] = [*"01234567", LONG, HOSTILE]
        # This model errs at times.
        params["recipe"] = "article"
        params["recipes"]["article"]["optimizer"]["lr"] = 0.006
        write_params(params, folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            baseline = layout.BASELINE / "tiny" / "evaluation.json"
            baseline.parent.mkdir(parents=True)
            baseline.write_text('{"recall": 0.98765}')
            for stage in (download, normalize, train, evaluate, export, parity, report):
                stage.main()

    return make_once(tmp_path_factory, "proved", make)


@pytest.fixture
def ready(proved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder, and make it the current one."""
    folder = tmp_path / "ready"
    shutil.copytree(proved, folder)
    monkeypatch.chdir(folder)
    return folder


class Visit:
    """Hold the page in a window, with whatever goes wrong in it."""

    def __init__(self, browser: Browser, width: int = 1280) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 800})
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(layout.PAGE.resolve().as_uri())
        self.page.wait_for_function("document.querySelectorAll('.chart svg').length === 8")

    def marks(self) -> dict[str, int]:
        """Return how many visible shapes each chart has drawn from its data."""
        marks: dict[str, int] = self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll(".chart")].map(chart => [
                chart.id.replace("chart-", ""),
                [...chart.querySelectorAll("[class*=role-mark] path")].filter(mark => {
                    const box = mark.getBoundingClientRect();
                    return box.width + box.height > 1;
                }).length,
            ]))"""
        )
        return marks


def column(page: Page, section: str, place: int) -> list[str]:
    return page.locator(f"#{section} table.sortable").first.locator(f"tbody tr > :nth-child({place})").all_inner_texts()


@pytest.mark.slow
def test_page_in_a_browser(ready: Path, browser: Browser) -> None:
    visit = Visit(browser)
    page = visit.page
    marks = visit.marks()
    assert sorted(marks) == CHARTS
    assert min(marks.values()) >= 1, marks
    # Training and validation have a line each, and a point for each of the two epochs.
    assert marks["loss"] == marks["accuracy"] == 2 + 2 * 2
    assert marks["balance"] == 3 * 10
    # All bars stand on the axis.
    bars = page.locator("#chart-confidences .role-mark.mark-rect path").all()
    feet = {round(box["y"] + box["height"]) for bar in bars if (box := bar.bounding_box())}
    assert len(bars) > 1
    assert max(feet) - min(feet) <= 1

    accuracy = json.loads(layout.METRICS.read_text())["accuracy"]
    assert page.locator("h1").inner_text().startswith(f"{accuracy:.2%} of 100 test images")
    wrong = round(100 * (1 - accuracy))
    assert wrong > 0
    assert page.locator(".gallery img").count() == min(wrong, MISTAKES)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    # The name of a class is shown as text, whatever it contains.
    assert HOSTILE in column(page, "classes", 1)
    assert page.locator("img[src=x]").count() == 0

    for section, name, place in (("classes", "Precision", 3), ("onnx", "Difference", 2)):
        for order in ("descending", "ascending"):
            page.locator(f"#{section}").get_by_role("button", name=name).click()
            values = [float(text) for text in column(page, section, place)]
            assert len(set(values)) > 2
            assert values == sorted(values, reverse=order == "descending")
            assert page.locator(f"#{section} th[aria-sort={order}]").inner_text().startswith(name)

    # The baseline has one figure; the page shows the others without it.
    [recall] = page.locator("#figures tr", has_text="Recall").all_inner_texts()
    assert "0.9877" in recall
    assert page.locator("[data-local='latency.1']").inner_text().endswith(" ms")
    assert visit.complaints == []
    assert visit.requests == [path.resolve().as_uri() for path in (layout.PAGE, layout.LOCAL)]
    assert layout.PAGE.stat().st_size < 3e6


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_page_is_as_wide_as_the_window(ready: Path, browser: Browser, width: int) -> None:
    page = Visit(browser, width).page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    charts = page.evaluate(
        "[...document.querySelectorAll('.chart')].map(chart => chart.scrollWidth - chart.clientWidth)"
    )
    assert charts == [0] * len(CHARTS)


@pytest.mark.slow
def test_long_names_of_classes_hide_nothing(ready: Path, browser: Browser) -> None:
    """Neither a table nor a name in a chart is wider than the space that it has."""
    page = Visit(browser).page
    hidden = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(table => table.scrollWidth - table.clientWidth)"
    )
    assert hidden == [0] * len(hidden)
    [label] = page.locator("#chart-confusion text", has_text="xxx").all()[:1]
    assert label.text_content() != LONG


def test_same_run_gives_the_same_bytes(ready: Path) -> None:
    written = (layout.PAGE, layout.CARD, layout.AUDIT)
    first = [path.read_bytes() for path in written]
    report.main()
    assert [path.read_bytes() for path in written] == first


@pytest.mark.slow
def test_optional_parts(ready: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a baseline nor git, nor measurements of this model, nor mistakes."""
    schema = schemas.predictions(10, 100)
    table = read_table(layout.PREDICTIONS, schema)
    write_table(table.with_columns(prediction=pl.col("label")), layout.PREDICTIONS, schema)
    layout.EVALUATE.record(layout.METRICS, layout.DETAILS, layout.PER_CLASS, layout.PREDICTIONS, layout.LABEL_ERRORS)
    shutil.rmtree(layout.BASELINE)
    monkeypatch.setenv("PATH", "")
    report.main()
    layout.LOCAL.write_text(layout.LOCAL.read_text().replace('"model": "', '"model": "0'))
    visit = Visit(browser)
    assert "No baseline is kept" in visit.page.locator("#figures").inner_text()
    assert visit.page.locator("th.commit").is_hidden()
    # Measurements of another model are not shown.
    assert visit.page.locator("#onnx .absent").is_visible()
    assert visit.page.locator("#onnx .local").is_hidden()
    assert "baseline" not in layout.CARD.read_text()
    assert "The model makes none" in visit.page.locator("#mistakes").inner_text()
    assert min(visit.marks().values()) >= 1
    assert visit.complaints == []
    assert "No test image is classified incorrectly." in layout.CARD.read_text()


def test_model_card_escapes_names(ready: Path) -> None:
    card = layout.CARD.read_text()
    headings = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model Details",
        "Intended Use",
        "Factors",
        "Metrics",
        "Evaluation Data",
        "Training Data",
        "Quantitative Analyses",
        "Ethical Considerations",
        "Caveats and Recommendations",
    ]
    assert HOSTILE not in card
    assert "(Guo et al. 2017, 15 bins)" in card
    assert "| 0.9877 |" in card
    assert r"\<img src=x onerror=alert(1)\> \| \</script\>" in card


@pytest.mark.parametrize(
    "path",
    [
        layout.SPEC,
        layout.EXAMPLES,
        layout.split_array("train"),
        layout.split_array("validation"),
        layout.split_array("test"),
        layout.DATA_DETAILS,
        layout.MANIFEST,
        layout.HISTORY,
        layout.METRICS,
        layout.DETAILS,
        layout.PER_CLASS,
        layout.PREDICTIONS,
        layout.LABEL_ERRORS,
        layout.ONNX,
        layout.PARITY_METRICS,
        layout.PARITY_DETAILS,
    ],
    ids=str,
)
def test_a_damaged_input_is_an_error(ready: Path, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} is not what stage '[a-z]+' wrote"):
        report.main()


def test_a_model_of_other_data_is_an_error(ready: Path) -> None:
    override_params(ready / "params.yaml", {"seed": 7})
    normalize.main()
    with pytest.raises(UserError, match=r"^artifacts/model/model\.pt was not trained on the data in artifacts/norm"):
        report.main()


@pytest.mark.slow
def test_the_audit_names_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_idx: Path) -> None:
    """In a folder of pictures with one fault of each kind, each is in audit.csv and on the page with its file."""
    monkeypatch.chdir(tmp_path)
    params = tiny_params(tiny_idx)
    scale = {"mean": 0.5, "std": 0.5}
    params["datasets"]["tiny"] = {"problems": 0.1, "licence": "CC0", "description": "Bright patches.", **scale}
    params["recipes"][params["recipe"]]["epochs"] = 6
    write_params(params, tmp_path)
    paths: dict[str, list[Path]] = {}
    for split, count, seed in (("train", 600, 1), ("validation", 200, 2), ("test", 200, 3)):
        images, labels = make_images(count, seed)
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            if label % 4 == 0:  # classes 0, 4 and 8
                path = tmp_path / "data/tiny" / split / "abc"[label // 4] / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
                paths.setdefault(f"{split}/{path.parent.name}", []).append(path)
    folder = tmp_path / "data/tiny"
    paths["test/a"][0].rename(folder / "test/b/flipped.png")
    shutil.copy(paths["train/a"][0], folder / "train/c/conflict.png")
    near = Image.open(paths["train/b"][0]).point(lambda level: level * 15 // 16)
    near.save(folder / "validation/b/near.png")
    (folder / "train/a/truncated.png").write_bytes(paths["train/a"][1].read_bytes()[:300])
    odd = Image.open(paths["train/c"][0])
    odd.resize((280, 28)).save(folder / "train/c/odd.png")

    for stage in (download, normalize, train, evaluate, export, parity, report):
        stage.main()
    rows = read_table(layout.AUDIT, audit.schema()).select("finding", "file", "split", "label", "suggested", "detail")
    found = {(finding, file): rest for finding, file, *rest in rows.iter_rows()}
    conflict, copied, twin = (
        "train/c/conflict.png",
        *(path.relative_to(folder).as_posix() for path in (paths["train/a"][0], paths["train/b"][0])),
    )
    same = f"same content as {copied} (train, labelled a)"
    assert found["problem", "train/a/truncated.png"] == [None, "a", None, "cannot be read: image file is truncated"]
    assert found["conflicting label", conflict] == found["exact duplicate", conflict] == ["train", "c", None, same]
    assert found["conflicting label", copied][3] == f"same content as {conflict} (train, labelled c)"
    looks = f"looks the same as {twin} (train, labelled b)"
    assert found["near duplicate", "validation/b/near.png"] == ["validation", "b", None, looks]
    assert found["likely mislabelled", "test/b/flipped.png"][:3] == ["test", "b", "a"]
    assert found["outlier", "train/c/odd.png"][3].startswith("280x28: ")

    page, card = layout.PAGE.read_text(), layout.CARD.read_text()
    assert all(file in page for _, file in found)
    assert all(found[finding, file][3] in page for finding, file in found if file not in {conflict, copied})
    assert "natural order" in page
    assert "Bright patches.\n\nLicence of the data: CC0.\n" in card
    likely = sum(finding == "likely mislabelled" for finding, _ in found)
    assert f"{likely} are likely mislabelled" in card
    layout.REPORT.verify(layout.AUDIT)


def test_metrics_are_seventeen_numbers_of_visible_size(proved: Path) -> None:
    files = [read_json(path) for path in (proved / layout.METRICS.parent).glob("*.json")]
    metrics = {name: value for file in files for name, value in file.items()}
    assert len(metrics) == sum(map(len, files)) == 17
    assert all(type(value) in (int, float) for value in metrics.values())
    # DVC rounds to five digits, and a figure that is not zero must not look like zero.
    assert all(value == 0 or round(value, 5) for value in metrics.values()), metrics


def test_stage_that_has_not_run_is_named(ready: Path) -> None:
    layout.PARITY.checksums.unlink()
    with pytest.raises(UserError, match="stage 'parity' has not finished"):
        report.main()


def test_the_stage_does_not_load_torch() -> None:
    code = "import stages.report, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout == "False\n"
