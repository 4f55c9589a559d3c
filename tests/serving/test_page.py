"""Test the page in a real browser: digits are drawn on it, and photos are given to it in every way."""

import base64
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect

from serving import body
from tests.conftest import wait_for
from tests.serving.client import SEVEN, encoded, picture
from tests.serving.conftest import (
    COLORS,
    PLACES,
    Service,
    altered,
    bar,
    colored,
    enlarged,
    serving,
    set_spec,
    write_colors_model,
    write_places_model,
)

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
def test_a_drawing_area_that_is_not_square(browser: Browser, tmp_path: Path, viewport: int) -> None:
    """Check that the drawing area and the model's input have the proportions of the model's images."""
    with serving(tmp_path, write_places_model(tmp_path / "places.onnx", centre_ink=True)) as running:
        page, complaints, _ = visit(browser, running.url, classes=3)
        page.set_viewport_size({"width": viewport, "height": 780})
        expect(page.locator("h1")).to_have_text("Draw one of the classes")
        draw(page, [[(20, 50), (80, 50)]])
        expect(page.locator("#label")).to_have_text("middle")
        assert shape(page, "#pad") == pytest.approx(20 / 30, rel=0.02)
        assert shape(page, "#given") == pytest.approx(20 / 30, rel=0.02)
        expect(page.locator("#given")).to_have_attribute(
            "aria-label", "Your drawing, scaled and centred to 20 by 30 pixels"
        )
        assert complaints == []


def test_a_picture_for_a_grey_model_that_does_not_centre_ink(browser: Browser, tmp_path: Path) -> None:
    """Check that what is in the upper third of a picture stays there, and that its colours become grey."""
    with serving(tmp_path, write_places_model(tmp_path / "places.onnx")) as running:
        page, complaints, _ = visit(browser, running.url, classes=3)
        for place, name in enumerate(PLACES):
            brown_HWC = (enlarged(bar(place))[..., None] * np.array([0.9, 0.7, 0.4])).astype(np.uint8)
            choose(page, Given(f"{name}.png", encoded(Image.fromarray(brown_HWC))))
            expect(page.locator("#label")).to_have_text(name)
            red, green, blue = colors_on(page, "#given")
            assert red == green == blue > 10
        assert shape(page, "#given") == pytest.approx(20 / 30, rel=0.02)
        expect(page.locator("#given")).to_have_attribute("aria-label", "Your picture, stretched to 20 by 30 pixels")
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


def test_the_page_says_that_a_drawing_is_blank(browser: Browser, service: Service) -> None:
    page, _, _ = visit(browser, service.url)
    draw(page, DIGITS["1"])
    page.evaluate("clear(); changed = true; ask()")
    expect(page.locator("#sureness")).to_have_text("No answer: the picture is blank; there is nothing to classify")
    expect(page.locator("#label")).to_have_text("")
    draw(page, DIGITS["1"])
    expect(page.locator("#label")).to_have_text("1")


class Given(NamedTuple):
    """Hold a file that a person gives to the page."""

    name: str
    content: bytes
    kind: str = "image/png"


def photo(plane: int, name: str = "photo.png") -> Given:
    return Given(name, encoded(Image.fromarray(enlarged(colored(plane)))))


def choose(page: Page, *files: Given) -> None:
    chosen: list[FilePayload] = [{"name": name, "mimeType": kind, "buffer": content} for name, content, kind in files]
    page.get_by_label("Choose pictures").set_input_files(chosen)


def transfer(page: Page, event: str, *files: Given) -> None:
    """Drop or paste files, as a browser does it."""
    dispatch = """([event, files]) => {
        const transfer = new DataTransfer();
        for (const [name, content, type] of files) {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type }));
        }
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(
            event === "paste"
                ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
                : new DragEvent(event, { ...options, dataTransfer: transfer }),
        );
    }"""
    page.evaluate(
        dispatch, [event, [[name, base64.b64encode(content).decode(), kind] for name, content, kind in files]]
    )


def give(page: Page, way: str, *files: Given) -> None:
    if way == "choose":
        choose(page, *files)
    else:
        transfer(page, way, *files)


def colors_on(page: Page, canvas: str) -> list[float]:
    """Return the means of red, green and blue on a canvas."""
    sums = f"""(() => {{
        const canvas = document.querySelector("{canvas}");
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {{ willReadFrequently: true }});
        copy.drawImage(canvas, 0, 0);
        const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        const sums = [0, 0, 0];
        data.forEach((value, at) => at % 4 < 3 && (sums[at % 4] += value));
        return sums.map((sum) => (4 * sum) / data.length);
    }})()"""
    means: list[float] = page.evaluate(sums)
    return means


def test_a_page_for_photos_has_nothing_to_draw_on(browser: Browser, color_service: Service) -> None:
    page, complaints, _ = visit(browser, color_service.url, classes=3)
    expect(page).to_have_title("Classify a picture")
    expect(page.locator("h1")).to_have_text("Classify a picture")
    expect(page.locator("#pad")).to_be_hidden()
    expect(page.locator("#sureness")).to_have_text("No picture yet.")
    text = page.locator("body").inner_text().lower()
    assert "digit" not in text
    assert "draw" not in text
    assert complaints == []


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_photo_is_given(browser: Browser, color_service: Service, way: str) -> None:
    page, complaints, requests = visit(browser, color_service.url, classes=3)
    for plane in (2, 0, 1):
        give(page, way, photo(plane))
        expect(page.locator("#label")).to_have_text(COLORS[plane])
        expect(page.locator("#sureness")).to_contain_text("% sure")
        expect(page.locator("tr.best th")).to_have_text(COLORS[plane])
        expect(page.get_by_role("status")).to_contain_text(f"{COLORS[plane]}, ")
        expect(page.get_by_role("img", name="The picture photo.png")).to_be_visible()
        expect(page.get_by_role("img", name="Your picture, cropped to 32 by 24 pixels")).to_be_visible()
        means = colored(plane).mean(axis=(0, 1))
        assert colors_on(page, "#given") == pytest.approx(means, abs=0.01)
        assert colors_on(page, "#preview") == pytest.approx(means, abs=2)
        assert shape(page, "#given") == pytest.approx(32 / 24, rel=0.02)
    assert page.locator("#results").is_hidden()
    assert complaints == []
    assert [url for url in requests if not url.startswith((f"{color_service.url}/", "data:"))] == []


def test_a_photo_is_chosen_with_the_keyboard(browser: Browser, color_service: Service, tmp_path: Path) -> None:
    page, complaints, _ = visit(browser, color_service.url, classes=3)
    path = tmp_path / "sky.png"
    path.write_bytes(photo(2).content)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose pictures")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    assert chooser.value.is_multiple()
    chooser.value.set_files(path)
    expect(page.locator("#label")).to_have_text("blue")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Take a photo")).to_be_focused()
    assert complaints == []


def test_the_camera_is_offered_where_there_is_a_touch_screen(browser: Browser, color_service: Service) -> None:
    page = visit(browser, color_service.url, classes=3).page
    expect(page.get_by_text("Take a photo")).to_be_visible()
    camera = page.get_by_label("Take a photo")
    expect(camera).to_have_attribute("capture", "environment")
    camera.set_input_files(FilePayload(name="1.jpg", mimeType="image/jpeg", buffer=photo(1).content))
    expect(page.locator("#label")).to_have_text("green")
    desk = browser.new_context(viewport={"width": 1200, "height": 780}).new_page()
    desk.goto(color_service.url)
    expect(desk.get_by_text("Choose pictures")).to_be_visible()
    expect(desk.get_by_text("Take a photo")).to_be_hidden()


def test_several_photos_at_once(browser: Browser, color_service: Service) -> None:
    page, complaints, _ = visit(browser, color_service.url, classes=3)
    names = ["berry.png", "leaf.png", "notes.png", "sky.png"]
    files = [photo(0, names[0]), photo(1, names[1]), Given(names[2], b"<!doctype html>"), photo(2, names[3])]
    choose(page, *files)
    listed = page.get_by_role("list", name="Results").get_by_role("button")
    expect(listed).to_contain_text(
        ["berry.png red, ", "leaf.png green, ", "notes.png No answer: notes.png is not a picture", "sky.png blue, "]
    )
    expect(page.locator("#label")).to_have_text("red")
    expect(listed.nth(0)).to_have_attribute("aria-pressed", "true")
    listed.nth(3).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#label")).to_have_text("blue")
    expect(page.get_by_role("img", name="The picture sky.png")).to_be_visible()
    expect(listed.nth(0)).to_have_attribute("aria-pressed", "false")
    listed.nth(2).click()
    expect(page.locator("#sureness")).to_have_text("No answer: notes.png is not a picture: it is an HTML page")
    expect(page.locator("#label")).to_have_text("")
    expect(page.locator("#preview")).to_be_hidden()
    choose(page, files[1])
    expect(page.locator("#label")).to_have_text("green")
    expect(page.locator("#results")).to_be_hidden()
    assert all("status of 422" in complaint for complaint in complaints)


def png(width: int, height: int, color: str = "white") -> bytes:
    return encoded(Image.new("RGB", (width, height), color))


WRONG = {
    "blank": (Given("empty.png", png(90, 90)), "empty.png is blank; there is nothing to classify"),
    "not a picture": (Given("song.png", b"RIFF song"), "song.png is not a picture: its 9 bytes are none of PNG, JPEG"),
    "empty": (Given("nothing.png", b""), "nothing.png is not a picture: it is empty"),
    "too many pixels": (
        Given("map.png", png(1001, 1001)),
        "map.png has 1,001 x 1,001 pixels, more than the limit of 1,000,000",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_answered_with_one_sentence(browser: Browser, color_service: Service, case: str) -> None:
    file, reason = WRONG[case]
    page = visit(browser, color_service.url, classes=3).page
    choose(page, photo(0))
    expect(page.locator("#label")).to_have_text("red")
    choose(page, file)
    expect(page.locator("#sureness")).to_contain_text(f"No answer: {reason}")
    expect(page.get_by_role("status")).to_contain_text(reason)
    expect(page.locator("#label")).to_have_text("")
    expect(page.locator("tr.best")).to_have_count(0)
    choose(page, photo(1))
    expect(page.locator("#label")).to_have_text("green")


@pytest.mark.parametrize(("way", "reason"), [("drop", "is not a file"), ("paste", "holds no picture")])
def test_what_is_no_file_is_refused(browser: Browser, color_service: Service, way: str, reason: str) -> None:
    page, complaints, _ = visit(browser, color_service.url, classes=3)
    choose(page, photo(0))
    expect(page.locator("#label")).to_have_text("red")
    give(page, way)
    expect(page.locator("#hint")).to_contain_text(reason)
    expect(page.get_by_role("status")).to_contain_text(reason)
    expect(page.locator("#label")).to_have_text("red")
    give(page, way, photo(2))
    expect(page.locator("#label")).to_have_text("blue")
    expect(page.locator("#hint")).to_contain_text("Drop pictures anywhere")
    assert complaints == []


def test_a_picture_that_the_browser_cannot_show(browser: Browser, color_service: Service) -> None:
    page = visit(browser, color_service.url, classes=3).page
    choose(page, Given("scan.tif", encoded(Image.fromarray(colored(1)), "TIFF"), "image/tiff"))
    expect(page.locator("#label")).to_have_text("green")
    expect(page.locator("#preview")).to_be_hidden()


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_of_a_digit_is_given(browser: Browser, service: Service, way: str) -> None:
    page, complaints, _ = visit(browser, service.url)
    expect(page).to_have_title("Draw a digit")
    draw(page, DIGITS["1"])
    expect(page.locator("#label")).to_have_text("1")
    give(page, way, Given("seven.png", picture(SEVEN)))
    expect(page.locator("#label")).to_have_text("7")
    wait_for(lambda: min(colors_on(page, "#pad")) > 100, 15, "the picture's white paper")
    expect(page.locator("#given")).to_have_attribute(
        "aria-label", "Your picture, scaled and centred to 28 by 28 pixels"
    )
    draw(page, DIGITS["1"])
    expect(page.locator("#label")).to_have_text("1")
    assert max(colors_on(page, "#pad")) < 50
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.get_by_text("Take a photo")).to_be_hidden()
    assert complaints == []


def test_the_ten_best_of_many_classes(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, write_colors_model(tmp_path / "many.onnx", others=297)) as running:
        page, complaints, _ = visit(browser, running.url, classes=0)
        expect(page.locator("#others")).to_have_text("300 classes")
        choose(page, photo(1))
        expect(page.locator("#classes tr")).to_have_count(10)
        expect(page.locator("#classes th").first).to_have_text("green")
        shares = [float(text.rstrip("%")) for text in page.locator("#classes td:last-child").all_inner_texts()]
        assert shares == sorted(shares, reverse=True)
        expect(page.locator("#others")).to_contain_text("290 other classes: ")
        choose(page, Given("grey.png", encoded(Image.linear_gradient("L"))))
        expect(page.locator("#sureness")).to_contain_text("Unsure, only 3")
        expect(page.locator("#answer")).to_have_class("unsure")
        assert complaints == []


def test_the_page_follows_a_model_of_another_kind(browser: Browser, own_service: Service, tmp_path: Path) -> None:
    page, complaints, _ = visit(browser, own_service.url)
    expect(page.locator("#pad")).to_be_visible()
    own_service.replace_model(write_colors_model(tmp_path / "colors.onnx").read_bytes())
    wait_for(lambda: own_service.client.get("/model").json()["spec"]["classes"] == COLORS, 60, "the new model")
    choose(page, photo(2))
    expect(page.locator("#label")).to_have_text("blue")
    expect(page.locator("#pad")).to_be_hidden()
    expect(page.locator("h1")).to_have_text("Classify a picture")
    assert complaints == []


@pytest.mark.parametrize("viewport", [320, 720, 1200])
def test_photos_with_long_names_fit(browser: Browser, color_service: Service, viewport: int) -> None:
    page = visit(browser, color_service.url, classes=3).page
    page.set_viewport_size({"width": viewport, "height": 780})
    choose(page, photo(0, f"{'holiday' * 12}.png"), photo(1, "a name of many words " * 6 + ".png"))
    expect(page.locator("#results b")).to_contain_text(["red", "green"])
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport


def test_a_file_that_is_too_large_is_not_sent(browser: Browser, color_service: Service) -> None:
    page, complaints, requests = visit(browser, color_service.url, classes=3)
    page.evaluate(f'give([new File([new Uint8Array({body.MAX_BODY + 1})], "film.png")])')
    expect(page.locator("#sureness")).to_have_text(
        "No answer: film.png has 16,000,001 bytes, allowed: at most 16,000,000"
    )
    assert f"{color_service.url}/predict?images=true" not in requests
    assert complaints == []
