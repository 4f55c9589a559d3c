"""The page in a real browser, and what it does without its optional parts."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from stages import download, evaluate, export, normalize, parity, report, train
from stages.core.errors import UserError
from tests.conftest import tiny_params, write_params

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ALONE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
HOSTILE = "<img src=x onerror=alert(1)>"  # the name of a class
CHARTS = {"loss", "accuracy", "confusion", "calibration", "confidences", "balance", "brightness"}


@pytest.fixture(scope="module")
def finished(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages ran, and a baseline is; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    params = tiny_params(tiny_idx)
    params["recipe"] = "article"
    params["datasets"]["tiny"]["classes"] = [HOSTILE, "a|b", *"23456789"]
    write_params(params, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (download, normalize, train, evaluate, export, parity):
            stage.main()
        baseline = report.BASELINE / "tiny"
        baseline.mkdir(parents=True)
        # of an older format
        baseline.joinpath("evaluation.json").write_text(json.dumps({"recall": 0.125, "accuracy": None}))
        report.main()
    return folder


@pytest.fixture
def ready(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the current one."""
    folder = tmp_path / "ready"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield chromium
        chromium.close()


def show(page: Page) -> tuple[list[str], set[str]]:
    """Open the report and wait for its charts; what the console said, and what was asked for."""
    said: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(report.PAGE.resolve().as_uri())
    page.wait_for_function("document.querySelectorAll('.chart svg').length === 7", timeout=20_000)
    return said, {url for url in asked if not url.startswith("data:")}


def test_every_chart_is_drawn_and_nothing_leaves_the_folder(ready: Path, browser: Browser) -> None:
    assert report.PAGE.stat().st_size < 3_000_000
    with browser.new_page() as page:
        said, asked = show(page)
        assert said == []
        assert asked == {path.resolve().as_uri() for path in (report.PAGE, report.LOCAL)}
        marks = "chart.querySelectorAll('svg [class*=mark-] path').length"
        drawn = dict(
            page.locator(".chart").evaluate_all(f"charts => charts.map(chart => [chart.id.slice(6), {marks}])")
        )
        assert set(drawn) == CHARTS
        assert all(drawn.values())
        # measured here, beside the page
        assert re.fullmatch(r"[\d.]+ ms", page.locator("[data-local='latency.1']").inner_text())
        assert page.locator(".absent:visible").count() == 0
        # an image for each mistake, right side up: decoded, and of the data's size
        sizes = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
        sides = page.locator(".gallery img").evaluate_all(sizes)
        assert sides == [[28, 28]] * min(report.MISTAKES, len(sides))
        assert sides


def test_names_of_classes_are_text(ready: Path, browser: Browser) -> None:
    with browser.new_page() as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a class name ran: {dialog.message}"))
        show(page)
        assert page.locator("[onerror]").count() == 0
        assert page.locator("#classes tbody th").first.inner_text() == HOSTILE
    card = report.CARD.read_text()
    assert "<img" not in card.replace(r"\<img", "")
    assert r"| a\|b | 26 |" in card


def test_a_table_sorts_by_mouse_and_by_keyboard(ready: Path, browser: Browser) -> None:
    with browser.new_page() as page:
        show(page)
        table = page.locator("#classes table")
        header = table.locator("thead th").nth(3)  # recall

        def recalls() -> list[float]:
            return [float(text) for text in table.locator("tbody tr > :nth-child(4)").all_inner_texts()]

        unsorted = recalls()
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        assert recalls() == sorted(unsorted, reverse=True)
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "ascending"
        assert recalls() == sorted(unsorted)
        assert len(set(unsorted)) > 1


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 29)")])
def test_a_phone_in_light_and_dark(ready: Path, browser: Browser, scheme: str, paper: str) -> None:
    with browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:  # type: ignore[arg-type]
        show(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert page.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill") == ink


def test_without_what_is_optional(ready: Path, browser: Browser) -> None:
    """No git, a damaged baseline, and beside the page the facts of another model."""
    (report.BASELINE / "tiny/evaluation.json").write_text("<<<<<<< HEAD")
    report.main()
    assert "commit" not in report.LOCAL.read_text()
    report.LOCAL.write_text(re.sub(r'"model": "\w+"', '"model": "another"', report.LOCAL.read_text()))
    with browser.new_page() as page:
        said, _ = show(page)
        assert said == []
        assert page.locator("#figures thead th:visible").all_inner_texts() == ["Measure", "This run"]
        assert page.locator(".absent:visible").count() == 2
        assert page.locator(".local:visible").count() == 0


def test_baseline_of_an_older_format(ready: Path) -> None:
    page = report.PAGE.read_text()
    assert re.search(r"<td>0\.\d{4}</td>\s*<td>0\.1250</td>", page)
    assert report.headline({"recall": 0.125, "accuracy": None}) == {"recall": "0.1250"}


def test_the_same_inputs_give_the_same_bytes(ready: Path) -> None:
    first = [path.read_bytes() for path in (report.PAGE, report.CARD)]
    report.main()
    assert [path.read_bytes() for path in (report.PAGE, report.CARD)] == first


@pytest.mark.parametrize(
    "path", [report.SUMMARY, report.HISTORY, report.PREDICTIONS, report.EVALUATION, report.ONNX, report.PARITY], ids=str
)
def test_changed_input_is_refused(ready: Path, path: Path) -> None:
    before = report.PAGE.read_bytes()
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))} is not what stage '\w+' wrote"):
        report.main()
    assert report.PAGE.read_bytes() == before


def test_facts_about_mnist_are_in_its_card_alone(ready: Path) -> None:
    assert "Census" not in report.CARD.read_text()
    assert 'of the data set "tiny"' in report.CARD.read_text()
