"""live.js alone in a browser, without a kernel: what it says of cameras and faces, in words that help."""
import re
import shutil

import pytest

from aufacs_nb.presets import ASSETS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = """<!doctype html><title>live</title><div id="live"></div><script type="module">
import live from "/live.js";
const heard = {}, traits = {labels: [{name: "AU12", html: "AU12"}], edges: []};
window.sent = [];
window.tell = (message, buffers = []) => heard["msg:custom"](message, buffers);
live.render({el: document.getElementById("live"), model: {
  get: (name) => traits[name], on: (name, hear) => (heard[name] = hear),
  send: (message, callbacks, buffers) => window.sent.push(message) }});
window.ready = true;
</script>"""
FAILS = """(name) => { navigator.mediaDevices.getUserMedia =
    async () => { throw new DOMException("the machine says so", name); }; }"""


@pytest.fixture(scope="module")
def browser():
    """One browser, whose camera is a test picture."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no chromium on PATH: see CONTRIBUTING.md, browser tests")
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream",
                 "--use-fake-ui-for-media-stream"]
        opened = p.chromium.launch(executable_path=BROWSER, headless=True, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """The page at an address that browsers trust with a camera; nothing listens there."""
    made = browser.new_page(viewport={"width": 390, "height": 900})
    made.route("http://localhost/", lambda route: route.fulfill(content_type="text/html", body=PAGE))
    made.route("http://localhost/live.js", lambda route: route.fulfill(path=ASSETS / "demos" / "live.js"))
    made.goto("http://localhost/")
    made.wait_for_function("window.ready")
    yield made
    made.close()


def press(page, name):
    """Press the button of that name."""
    page.get_by_role("button", name=name, exact=True).click()


def sees(page, **message):
    """Answer the newest frame that the page sent, as the kernel does."""
    page.wait_for_function("window.sent.some((each) => each.kind === 'frame' && each.id > (window.answered ?? 0))")
    told = {"kind": "seen", "faces": 1, "left": 0, "neutral": False, "values": [1.5]} | message
    page.evaluate("""(told) => {
        window.answered = window.sent.filter((each) => each.kind === 'frame').at(-1).id;
        window.tell({...told, id: window.answered}, [new DataView(new ArrayBuffer(0))]); }""", told)


@pytest.mark.parametrize("error, words", [
    ("NotAllowedError", "it was not allowed. Allow it"), ("NotFoundError", "none was found. Connect one"),
    ("NotReadableError", "another program or tab has it"), ("AbortError", "the machine says so")])
def test_a_camera_that_does_not_start_is_explained_and_can_be_tried_again(page, error, words):
    page.evaluate(FAILS, error)
    press(page, "Start the camera")
    page.get_by_text(f"No camera: {words}").wait_for(timeout=60_000)
    assert page.get_by_role("button", name="Start the camera").is_enabled()
    assert page.evaluate("window.sent") == []


def test_a_camera_that_is_unplugged_ends_and_starts_again(page):
    page.evaluate("""() => { const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
                     navigator.mediaDevices.getUserMedia = async (asked) => (window.stream = await real(asked)); }""")
    press(page, "Start the camera")
    page.get_by_text("The camera is on.").wait_for(timeout=60_000)
    page.evaluate("window.stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    page.get_by_text("The camera has gone").wait_for(timeout=60_000)
    press(page, "Start the camera")
    page.get_by_text("The camera is on.").wait_for(timeout=60_000)


def test_no_face_two_faces_and_the_neutral_are_told(page):
    note, forget = page.locator(".live-note"), page.get_by_role("button", name="Forget my neutral")
    press(page, "Start the camera")
    sees(page)
    assert note.inner_text() == "" and forget.is_disabled()
    sees(page, faces=2)
    assert note.inner_text() == "2 faces are seen. Only the one with the mesh is read."
    sees(page, left=7)
    assert note.inner_text() == "Hold still … 7"
    sees(page, values=None, faces=0, left=7)
    page.wait_for_timeout(2100)
    sees(page, values=None, faces=0, left=7)
    assert note.inner_text().startswith("No face is seen. Come closer")
    assert page.locator(".live-au > span").all_inner_texts() == ["–"]
    sees(page, neutral=True)
    assert note.inner_text() == "" and forget.is_enabled()
    forget.click()
    said = "window.sent.filter((each) => each.kind !== 'frame')"  # frames go on meanwhile
    assert forget.is_disabled() and page.evaluate(said).pop() == {"kind": "forget"}
    press(page, "Stop the camera")
    assert note.inner_text() == "" and "The camera is off" in page.locator(".live-said").inner_text()


def test_a_name_with_markup_is_shown_as_written(page):
    page.evaluate("(text) => window.tell({kind: 'say', text})", "<img src=x onerror=window.hit=1>")
    assert page.locator(".live-said").inner_text() == "<img src=x onerror=window.hit=1>"
    assert page.evaluate("window.hit") is None


def test_time_lines_take_the_colour_of_the_screen_also_while_nothing_is_drawn(page):
    page.add_style_tag(content=":root { color-scheme: light dark; --aufacs-accent: light-dark(rgb(1, 2, 3), rgb(7, 8, 9)); }"
                               + (ASSETS / "demos" / "live.css").read_text(encoding="utf-8"))
    press(page, "Start the camera")
    for level in (0, 5, 5):
        sees(page, values=[level])
        page.wait_for_timeout(120)  # lines are drawn ten times a second
    press(page, "Freeze")
    line, stroke = page.locator(".live-line path"), "e => getComputedStyle(e).stroke"
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line.get_attribute("d"))]
    assert heights[0] == 28 and heights[-1] == 2  # absent at the lower edge, E at the upper one
    for scheme, colour in (("light", "rgb(1, 2, 3)"), ("dark", "rgb(7, 8, 9)")):
        page.emulate_media(color_scheme=scheme)
        assert line.evaluate(stroke) == colour
