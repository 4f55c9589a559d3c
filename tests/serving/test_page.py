"""Test the page in a real browser: digits are drawn on it with the mouse, a finger and the keyboard."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import wait_for
from tests.serving.conftest import Service, altered, serving, set_spec, write_places_model

Stroke = list[tuple[float, float]]


def arc(x: float, y: float, width: float, height: float, *degrees: int) -> Stroke:
    """Return part of an ellipse around (x, y), from one angle to another."""
    start, end = degrees
    angles = [math.radians(start + (end - start) * step / 16) for step in range(17)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


# The coordinates are percentages of the drawing area.
DIGITS: dict[str, list[Stroke]] = {
    "0": [arc(50, 50, 22, 32, -90, 270)],
    "1": [[(50, 16), (50, 84)]],
    "2": [[*arc(50, 35, 20, 18, -170, 40), (30, 82), (74, 82)]],
    "3": [[*arc(47, 34, 19, 17, -150, 80), *arc(47, 66, 22, 18, -80, 150)]],
    "4": [[(36, 18), (30, 54), (72, 54)], [(62, 18), (60, 86)]],
    "5": [[(70, 18), (38, 18), (34, 46), *arc(48, 63, 22, 21, -120, 140)]],
    "6": [[(60, 15), (42, 38), *arc(50, 63, 19, 20, -160, 200)]],
    "7": [[(28, 20), (72, 20), (44, 84)]],
    "8": [[*arc(50, 33, 16, 16, 90, -270), *arc(50, 67, 19, 18, -90, 270)]],
    "9": [[*arc(50, 35, 18, 18, 0, 360), (66, 60), (58, 86)]],
}


class Visit(NamedTuple):
    page: Page
    complaints: list[str]  # in the console, which also reports violations of the security policy
    requests: list[str]


def visit(browser: Browser, url: str, classes: int = 10) -> Visit:
    page = browser.new_context(viewport={"width": 360, "height": 780}, has_touch=True).new_page()
    page.set_default_timeout(15_000)
    seen = Visit(page, [], [])
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(url)
    expect(page.locator("#classes tr")).to_have_count(classes)
    return seen


def on_pad(page: Page, stroke: Stroke) -> Stroke:
    box = page.locator("#pad").bounding_box()
    assert box
    return [(box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100) for x, y in stroke]


def draw(page: Page, strokes: list[Stroke]) -> None:
    """Draw with the mouse, and wait for the answer to the last stroke."""
    for stroke in strokes:
        first, *others = on_pad(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point, steps=2)
        page.mouse.up()
    wait_for(lambda: page.evaluate("!asking && !changed"), 60, "an answer")


def test_digits_drawn_with_the_mouse(browser: Browser, service: Service) -> None:
    page, complaints, requests = visit(browser, service.url)
    said = {}
    for digit, strokes in DIGITS.items():
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#label")).to_have_text("")
        draw(page, strokes)
        said[digit] = page.locator("#label").inner_text()
        assert page.locator("tr.best th").inner_text() == said[digit]
    assert sum(digit == label for digit, label in said.items()) >= 9, said
    assert complaints == []
    assert len(requests) > 20
    assert [url for url in requests if not url.startswith((f"{service.url}/", "data:"))] == []


def test_a_browser_without_coalesced_events(browser: Browser, service: Service) -> None:
    page, complaints, _ = visit(browser, service.url)
    page.evaluate("delete PointerEvent.prototype.getCoalescedEvents")
    draw(page, DIGITS["1"])
    expect(page.locator("#label")).to_have_text("1")
    assert complaints == []


def test_the_input_of_the_model_is_shown(browser: Browser, service: Service) -> None:
    page = visit(browser, service.url).page
    pixels = "given.getContext('2d').getImageData(0, 0, 28, 28).data"
    lit = f"{pixels}.filter((value, at) => at % 4 === 0 && value > 40).length"
    assert page.evaluate(lit) == 0
    draw(page, DIGITS["1"])
    assert 20 < page.evaluate(lit) < 120
    expect(page.locator("#given")).to_have_attribute(
        "aria-label", "Your drawing, scaled and centred to 28 by 28 pixels"
    )


def test_a_digit_drawn_with_a_finger(browser: Browser, service: Service) -> None:
    """Check also that the page does not scroll away under the finger."""
    page, complaints, _ = visit(browser, service.url)
    touch = page.context.new_cdp_session(page)
    first, *others = on_pad(page, [(x, y) for y in range(20, 85, 4) for x in (50,)])

    def send(kind: str, *points: tuple[float, float]) -> None:
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": round(x), "y": round(y)} for x, y in points]},
        )

    send("touchStart", first)
    for point in others:
        send("touchMove", point)
    send("touchEnd")
    expect(page.locator("#label")).to_have_text("1")
    assert page.evaluate("scrollY") == 0
    assert complaints == []


def test_a_digit_drawn_with_the_keyboard(browser: Browser, service: Service) -> None:
    page, complaints, _ = visit(browser, service.url)
    page.keyboard.press("Tab")
    expect(page.locator("#pad")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("status")).to_have_text("46% across, 50% down")
    page.keyboard.press("ArrowRight")
    for key in ["ArrowUp"] * 9 + ["ArrowLeft"] * 6 + ["Space"] + ["ArrowRight"] * 12 + ["ArrowDown"] * 18 + ["Space"]:
        page.keyboard.press(key)
    expect(page.locator("#label")).to_have_text("7")
    expect(page.get_by_role("status")).to_contain_text("7, ")
    page.keyboard.press("Escape")
    expect(page.locator("#label")).to_have_text("")
    expect(page.get_by_role("status")).to_have_text("Cleared")
    assert complaints == []


def test_the_pen_is_visible_when_the_keyboard_is_used_after_the_mouse(browser: Browser, service: Service) -> None:
    page = visit(browser, service.url).page
    draw(page, DIGITS["1"])
    expect(page.locator("#pen")).to_be_hidden()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#pen")).to_be_visible()


def test_the_page_says_that_the_service_is_gone(browser: Browser, own_service: Service) -> None:
    page = visit(browser, own_service.url).page
    draw(page, DIGITS["1"])
    own_service.end()
    page.get_by_role("button", name="Clear").click()
    draw(page, DIGITS["7"])
    expect(page.locator("#sureness")).to_contain_text("No answer: the service cannot be reached")
    expect(page.get_by_role("status")).to_contain_text("No answer")


def shape(page: Page, selector: str) -> float:
    """Return the ratio of width to height as shown."""
    box = page.locator(selector).bounding_box()
    assert box
    return box["width"] / box["height"]


@pytest.mark.parametrize("viewport", [360, 1200])
def test_a_model_of_images_that_are_not_square(browser: Browser, tmp_path: Path, viewport: int) -> None:
    """Check that a stroke in the upper third stays there in the model's input, and that both have its proportions."""
    with serving(tmp_path, write_places_model(tmp_path / "places.onnx")) as running:
        page, complaints, _ = visit(browser, running.url, classes=3)
        page.set_viewport_size({"width": viewport, "height": 780})
        draw(page, [[(20, 15), (80, 15)]])
        expect(page.locator("#label")).to_have_text("high")
        assert shape(page, "#pad") == pytest.approx(20 / 30, rel=0.02)
        assert shape(page, "#given") == pytest.approx(20 / 30, rel=0.02)
        expect(page.locator("#given")).to_have_attribute("aria-label", "Your drawing, scaled to 20 by 30 pixels")
        page.get_by_role("button", name="Clear").click()
        draw(page, [[(20, 85), (80, 85)]])
        expect(page.locator("#label")).to_have_text("low")
        assert complaints == []


@pytest.mark.parametrize("viewport", [320, 360, 720, 1200])
def test_long_names_of_classes_fit(browser: Browser, own_service: Service, viewport: int) -> None:
    names = [*"0123456", "trousers", "a long name of several words", "Donaudampfschifffahrtsgesellschaft"]
    own_service.replace_model(altered(set_spec(classes=names)))
    wait_for(lambda: own_service.client.get("/model").json()["spec"]["classes"] == names, 60, "the new model")
    page = visit(browser, own_service.url).page
    page.set_viewport_size({"width": viewport, "height": 780})
    draw(page, DIGITS["7"])
    expect(page.locator("#label")).to_have_text("trousers")
    one_line = (
        "label.getClientRects().length === 1 && label.offsetHeight < 2 * parseFloat(getComputedStyle(label).fontSize)"
    )
    assert page.evaluate(one_line)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport
    for element in page.locator("#label, #given, #classes td").all():
        box = element.bounding_box()
        assert box
        assert box["x"] + box["width"] <= viewport - 16


def test_of_many_classes_the_ten_most_probable_are_listed(browser: Browser, service: Service) -> None:
    page, complaints, _ = visit(browser, service.url)
    names = [f"class {label}" for label in range(300)]
    for first in (7, 200):
        probabilities = dict.fromkeys(names, 0.0) | {f"class {first + place}": 0.5**place / 2 for place in range(12)}
        prediction = {"probabilities": probabilities, "label": f"class {first}", "confidence": 0.5, "unsure": False}
        page.evaluate("show", prediction | {"image": [[0, 255]]})
        rows = page.locator("#classes th").all_inner_texts()
        assert rows == [f"class {first + place}" for place in range(10)]
        assert page.locator("tr.best td").last.inner_text() == "50.0 %"
        expect(page.locator("#listed")).to_have_text("10 best of 300 classes")
    assert complaints == []


def test_the_page_says_that_a_drawing_is_blank(browser: Browser, service: Service) -> None:
    page, _, _ = visit(browser, service.url)
    draw(page, DIGITS["1"])
    page.evaluate("clear(); changed = true; ask()")
    expect(page.locator("#sureness")).to_have_text("No answer: the picture is blank; there is nothing to classify")
    expect(page.locator("#label")).to_have_text("")
    draw(page, DIGITS["1"])
    expect(page.locator("#label")).to_have_text("1")
