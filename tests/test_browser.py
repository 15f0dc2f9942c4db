"""The demos in a real browser: one server over all of them, headless chromium drives them, nothing leaves this machine.

Skipped where chromium is not installed, unless AUFACS_REQUIRE_BROWSER=1 says that it must be. Every test leaves screenshots
of a desktop and of a 390-px screen in `screenshots/`.
"""
import hashlib
import io
import os
import re
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from axe import violations
from PIL import Image

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools import soak

DEMOS, FLAGS = soak.DEMOS, soak.FLAGS
SCREENSHOTS = ROOT / "screenshots"
REQUIRED = os.environ.get("AUFACS_REQUIRE_BROWSER") == "1"
READY = 180_000  # ms for a demo's kernel to start, load weights and draw, on two busy cores
CHANGE = 30_000  # ms for one picture to follow one slider
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
NOT_OURS = "/labextensions/jupyterlab-jupytext/"  # an extension of the notebook editor, which voila loads and cannot use


def missing(what):
    """Skip, or fail where a browser is required."""
    (pytest.fail if REQUIRED else pytest.skip)(f"{what}: see CONTRIBUTING.md, browser tests")


def is_local(url):
    """Does this request stay on this machine?"""
    parts = urlsplit(url)
    return parts.scheme in ("blob", "data", "about") or parts.hostname in ("127.0.0.1", "localhost")


def status(server, method, path, **headers):
    """HTTP status of a request to the server with these headers."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers=headers)
    return connection.getresponse().status


@pytest.fixture(scope="module")
def chromium():
    """Path of the browser."""
    return soak.chromium() or missing("no chromium on PATH")


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    """The one server of all tests, gone at the end; neither it nor its kernels tried to reach another machine."""
    pytest.importorskip("voila") if not REQUIRED else __import__("voila")
    folder = tmp_path_factory.mktemp("voila")
    knocks = folder / "knocks"
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT / "tests" / "guard"), "AUFACS_KNOCKS": str(knocks)}):
        started = soak.Server(folder)
    try:
        yield started.wait()
    finally:
        started.stop()
    assert not knocks.exists(), f"the demos tried to reach {sorted(set(knocks.read_text().split()))}"


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """One browser for all tests, whose camera shows a virtual person."""
    playwright = pytest.importorskip("playwright.sync_api") if not REQUIRED else __import__(
        "playwright.sync_api", fromlist=["sync_playwright"])
    from aufacs_nb.apps.live import live_film
    from aufacs_nb.pictures import to_jpeg

    film = tmp_path_factory.mktemp("camera") / "film.mjpeg"  # chromium plays such a file at 30 frames a second
    film.write_bytes(b"".join(3 * to_jpeg(frame, quality=90) for frame in live_film(size=(400, 300))))
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, headless=True,
                                   args=[*FLAGS, f"--use-file-for-fake-video-capture={film}"])
        yield opened
        opened.close()


def save_picture(image, path):
    """Write a uint8 array as a file for the file chooser, in the format that its name says; returns its path."""
    Image.fromarray(image).save(path)
    return path


class Demo:
    """One page in a browser profile of its own, which refuses, and lists, every request to another machine."""

    def __init__(self, browser, server, folder):
        self.server, self.folder, self.outside, self.errors = server, folder, [], []
        self.context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        self.context.route("**/*", self.gate)
        self.page = page = self.context.new_page()
        page.on("websocket", lambda socket: is_local(socket.url) or self.outside.append(socket.url))
        page.on("console", lambda line: line.type == "error" and NOT_OURS not in line.text and self.errors.append(line.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def gate(self, route):
        """Let a request through that stays on this machine."""
        if is_local(route.request.url):
            return route.continue_()
        self.outside.append(route.request.url)
        return route.abort()

    def open(self, name):
        """Load a notebook and wait for its first picture."""
        self.name = name
        self.page.goto(f"{self.server.address}voila/render/{name}.ipynb", timeout=READY)
        end, shown = time.monotonic() + READY / 1000, self.page.locator("img.jupyter-widgets, .live-picture").first
        while not shown.is_visible():
            failed = re.findall(r"'evalue': (.{0,300})", self.server.log.read_text())
            assert not failed and time.monotonic() < end, f"{name} does not start: {failed}"
            self.page.wait_for_timeout(100)
        return self

    def picture(self, part):
        """Digest of the bytes behind the `img` of class `part`."""
        script = "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"
        image = bytes(self.page.locator(f"img.{part}").first.evaluate(script))
        assert image[:2] == b"\xff\xd8", f"{part} is not a JPEG"
        return hashlib.sha256(image).hexdigest()

    def wait_for_change(self, part, before, limit=CHANGE):
        """Wait until the picture `part` differs from `before`; the seconds that it took."""
        start = time.monotonic()
        while self.picture(part) == before:
            assert time.monotonic() < start + limit / 1000, f"{self.name}: picture {part} did not change"
            self.page.wait_for_timeout(50)
        return time.monotonic() - start

    def settle(self, limit=CHANGE):
        """Wait until no picture changes any more: the kernel may still be drawing for earlier positions of a slider."""
        end, before, sources = time.monotonic() + limit / 1000, None, []
        while sources != before:
            assert time.monotonic() < end, f"{self.name}: the pictures do not come to rest"
            before = sources
            self.page.wait_for_timeout(1000)
            sources = self.page.locator("img.jupyter-widgets").evaluate_all("all => all.map(e => e.src)")

    def choose(self, label, option):
        """Choose an option of the drop-down list called `label`."""
        self.page.get_by_role("combobox", name=label, exact=True).select_option(label=option)

    def chosen(self, label):
        """What that list says."""
        return self.page.get_by_role("combobox", name=label, exact=True).evaluate(
            "e => e.selectedOptions[0].text").replace("\xa0", " ")

    def push(self, label, keys=6, key="ArrowRight"):
        """Press a key on the handle of the slider with this name, which must show that it has the keyboard."""
        handle = self.page.get_by_role("slider", name=label)
        handle.focus()
        assert handle.evaluate("e => getComputedStyle(e).outlineStyle") == "solid", f"{label}: the focus is not seen"
        for _ in range(keys):
            handle.press(key)

    def upload(self, path, button):
        """Choose a file with an upload button."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name=button).click()
        chooser.value.set_files(path)

    def check(self, suffix=""):
        """Screenshots of desktop and phone, on both nothing cut off and nothing for axe; no request outside, no error."""
        self.settle()
        SCREENSHOTS.mkdir(exist_ok=True)
        for width, name in ((1280, ""), (390, "_390")):
            self.page.set_viewport_size({"width": width, "height": 1000})
            self.page.wait_for_timeout(200)
            scroller = "(document.querySelector('#rendered_cells') ?? document.documentElement)"
            wide, tall = self.page.evaluate(f"[{scroller}.scrollWidth, {scroller}.scrollHeight]")
            assert wide <= width, f"{self.name} is {wide} px wide on a screen of {width}"
            assert violations(self.page) == [], f"{self.name} at {width} px"
            self.page.set_viewport_size({"width": width, "height": min(tall, 3500)})
            self.page.screenshot(path=SCREENSHOTS / f"{self.name}{suffix}{name}.png")
        self.page.set_viewport_size({"width": 1280, "height": 1000})
        assert self.outside == [], f"{self.name} asked for {self.outside}"
        assert self.errors == [], f"{self.name}, in the browser's console: {self.errors}"


@pytest.fixture
def demo(request, browser, server, tmp_path):
    """A fresh page; the kernels of its notebooks end with it."""
    made = Demo(browser, server, tmp_path)
    yield made
    SCREENSHOTS.mkdir(exist_ok=True)
    made.page.screenshot(path=SCREENSHOTS / f"{request.node.name}_end.png")
    made.page.close(run_before_unload=True)
    made.context.close()


def test_landing_page(demo, server):
    """A card with a picture for each demo."""
    demo.name = "index"
    demo.page.goto(server.address)
    cards, pictures = demo.page.locator("li h2 a"), demo.page.locator("li img")
    names = {path.stem for path in DEMOS.glob("*.ipynb")}
    assert {Path(card.get_attribute("href")).stem for card in cards.all()} == names
    assert len(pictures.all()) == len(names)
    assert all(picture.evaluate("e => e.naturalWidth > 300 && e.alt.length > 10") for picture in pictures.all())
    demo.check()


def test_requests_from_elsewhere_are_refused(server):
    """Foreign names of the host, goodbyes and websockets of foreign pages, and paths out of the folder."""
    here, foreign = f"127.0.0.1:{server.port}", {"Origin": "http://evil.example"}
    for path in ("/", "/voila/render/live.ipynb", "/voila/static/live.jpg", "/api/kernels/x/channels"):
        assert status(server, "GET", path, Host="evil.example") == 403
    assert status(server, "GET", "/", Host=f"localhost:{server.port}") == 200
    for origin in ({}, foreign):
        assert status(server, "POST", "/voila/api/shutdown/x", Host=here, **origin) == 403
    assert server.log.is_file(), "what the next requests ask for"
    for way in ("../log.txt", "..%2flog.txt", "%2e%2e/log.txt", "....//log.txt", "/etc/passwd"):
        for start in ("/voila/files/", "/voila/static/", "/voila/tree/", "/files/"):
            assert status(server, "GET", start + way, Host=here) in (403, 404), start + way


def kernel_of(page):
    """The name of the kernel behind a page."""
    return re.search(r'"kernelId":\s*"([\w-]+)"', page.content())[1]


def test_au_explorer_and_two_visitors(demo, browser, server, tmp_path):
    """Sliders move three faces; a photograph becomes the source, says so, and nobody else sees it; its kernel ends."""
    data = pytest.importorskip("skimage.data")
    demo.open("au_explorer")
    parts = ("mesh", "truth", "generated")
    before, start = {part: demo.picture(part) for part in ("neutral", *parts)}, demo.picture("neutral")
    demo.push("AU12 Lip corner puller", keys=10)
    for part in parts:
        demo.wait_for_change(part, before[part])
    demo.page.get_by_role("button", name="AU12 Lip corner puller").hover()
    demo.page.get_by_text("Zygomaticus major").first.wait_for(state="visible")
    demo.check()
    name = "<img src=x onerror=window.hit=1>.jpg"
    demo.upload(save_picture(data.astronaut(), demo.folder / name), "Use my photo")
    demo.wait_for_change("neutral", start)
    demo.page.get_by_text(f"{name} is shown.").wait_for(timeout=CHANGE)
    assert demo.chosen("Face") == f"Yours: {name}" and demo.page.evaluate("window.hit") is None
    source = demo.picture("neutral")
    demo.upload(save_picture(data.coffee(), demo.folder / "coffee.jpg"), "Use my photo")
    demo.page.get_by_text("coffee.jpg: no face").wait_for(timeout=CHANGE)
    with (demo.folder / "huge.jpg").open("wb") as file:
        file.truncate(21_000_000)
    demo.upload(demo.folder / "huge.jpg", "Use my photo")
    demo.page.get_by_text("at most 20 MB").wait_for(timeout=CHANGE)
    assert demo.picture("neutral") == source
    channels, here = f"/api/kernels/{kernel_of(demo.page)}/channels", f"127.0.0.1:{server.port}"
    for origin, answer in ((f"http://{here}", 101), ("http://evil.example", 403)):
        assert status(server, "GET", channels, Host=here, Origin=origin, **WEBSOCKET) == answer, origin
    other = Demo(browser, server, tmp_path).open("au_explorer")
    assert other.picture("neutral") == start and name not in other.page.content()
    demo.choose("Face", "Virtual person 1")
    demo.wait_for_change("neutral", source)
    ended = server.ended()
    other.page.goto(server.address)
    end = time.monotonic() + 20
    while server.ended() == ended:
        assert time.monotonic() < end, "the kernel of a closed page is still there"
        demo.page.wait_for_timeout(100)
    other.context.close()


def test_resampling_explorer(demo):
    """The number of frames and the method change counts at once, the sheet too; missing faces come later."""
    demo.open("resampling_explorer")
    demo.page.get_by_text("All faces are drawn.").wait_for(timeout=READY)
    counts, sheet = demo.picture("counts"), demo.picture("sheet")
    demo.push("Frames per intensity", keys=1)
    seconds = demo.wait_for_change("counts", counts)
    demo.wait_for_change("sheet", sheet)
    print(f"the page answered after {seconds:.2f} s")  # the notebook bounds the processor's time
    demo.check()
    sheet = demo.picture("sheet")
    demo.page.get_by_role("button", name="Real").click()
    demo.wait_for_change("sheet", sheet)
    assert demo.page.get_by_role("button", name="Real").get_attribute("aria-pressed") == "true"


def test_generator(demo):
    """A slider moves every way that is ticked; a virtual person has a true picture; an answer brings the next pair."""
    demo.open("generator")
    demo.page.get_by_text("which face shows").wait_for(timeout=READY)
    parts = ("geometric", "GANimation", "photo-ratio", "photo-moved")
    before = {part: demo.picture(part) for part in parts}
    demo.push("AU4 Brow lowerer", keys=8)
    for part in parts:
        demo.wait_for_change(part, before[part])
    source = demo.picture("source")
    demo.choose("Face", "virtual person 2")
    demo.wait_for_change("source", source)
    for title in ("true picture", "true photograph"):
        demo.page.get_by_text(title, exact=True).wait_for(timeout=CHANGE)
    left = demo.picture("left")
    demo.page.get_by_role("button", name="the left one").click()
    demo.page.get_by_text("2 of 20").wait_for(timeout=CHANGE)
    demo.wait_for_change("left", left)
    demo.check()


def test_personalization(demo):
    """Another frame changes the photograph; the button shows that it works, runs the bar and redraws the plot."""
    from aufacs_nb.databases import sample_database

    demo.open("personalization")
    photo, plot = demo.picture("photo"), demo.picture("plot")
    demo.push("Frame", keys=1)
    demo.wait_for_change("photo", photo)
    demo.page.get_by_role("button", name="Personalise").click()
    demo.page.locator(".aufacs-busy:not([hidden])").wait_for(timeout=CHANGE)
    widths, end = set(), time.monotonic() + READY / 1000
    while demo.picture("plot") == plot:
        assert time.monotonic() < end, f"personalisation did not finish; widths of the bar: {sorted(widths)}"
        widths.add(demo.page.locator(".progress-bar").first.evaluate("e => parseFloat(e.style.width) || 0"))
        demo.page.wait_for_timeout(50)
    demo.page.get_by_text("Done.").wait_for(timeout=CHANGE)
    widths.add(demo.page.locator(".progress-bar").first.evaluate("e => parseFloat(e.style.width) || 0"))
    assert min(widths) == 0 and max(widths) == 100, f"the bar ran from 0 to 100, not over {sorted(widths)}"
    demo.page.locator(".aufacs-busy[hidden]").wait_for(state="attached", timeout=CHANGE)
    demo.check()
    plot = demo.picture("plot")
    demo.upload(sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0], "Use a film of your own")
    demo.wait_for_change("plot", plot)
    demo.page.get_by_text("mean estimate").wait_for(timeout=CHANGE)


def portrait(path):
    """A rendered face with an alpha channel, as a PNG file; returns its path."""
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person

    image = render_person(sample_person(11), {12: 3}, yaw=20, size=(360, 440))
    return save_picture(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]), path)


def test_registration(demo):
    """A picture, an angle, a fill and an uploaded file each change their own views; a file without a face is refused."""
    demo.open("registration")
    parts = ("photo", "view", "places", "flat", "frontal", "uv", "poses")
    before = {part: demo.picture(part) for part in parts}
    demo.choose("Picture", "Virtual, pose 9 (40°, 0°)")
    for part in parts:
        demo.wait_for_change(part, before[part])
    before = {part: demo.picture(part) for part in parts}
    demo.push("Yaw", keys=8)
    demo.wait_for_change("view", before["view"])
    demo.page.get_by_role("button", name="Wire").click()
    demo.wait_for_change("photo", before["photo"])
    demo.page.get_by_role("button", name="Mirror").click()
    for part in ("frontal", "poses"):
        demo.wait_for_change(part, before[part])
    assert (demo.picture("flat"), demo.picture("places")) == (before["flat"], before["places"])
    demo.check()
    before = demo.picture("photo")
    demo.upload(portrait(demo.folder / "portrait.png"), "Use my picture")
    demo.wait_for_change("photo", before)
    demo.settle()
    before = demo.picture("photo")
    demo.upload(save_picture(np.full((300, 400), 128, np.uint8), demo.folder / "fog.png"), "Use my picture")
    demo.page.get_by_text("fog.png: no face found").wait_for(timeout=CHANGE)
    assert demo.picture("photo") == before and demo.chosen("Picture") == "portrait.png"


def agreement(table):
    """r of each action unit of the film that the camera shows, at the start of the film that fits them best."""
    from aufacs_nb.apps.live import LIVE_AUS, live_truth

    times = table.timestamp - table.timestamp.iloc[0]
    found = []
    for start in np.arange(0, 6, 0.05):
        truth = pd.DataFrame([live_truth(seconds + start) for seconds in times])
        found.append([np.corrcoef(truth[au], table[f"AU{au:02d}_r"])[0, 1] for au in LIVE_AUS])
    return pd.Series(max(found, key=np.mean), [f"AU{au}" for au in LIVE_AUS]).round(2)


def test_live(demo):
    """The bars follow a virtual person before the camera, whose truth is known; the numbers are saved by the browser."""
    demo.open("live")
    button = lambda name: demo.page.get_by_role("button", name=name, exact=True)
    button("Start the camera").click()
    demo.page.get_by_text("frames/s").wait_for(timeout=CHANGE)
    demo.page.wait_for_timeout(1500)
    button("Clear").click()
    demo.page.wait_for_timeout(8000)
    said = demo.page.get_by_text("frames/s").inner_text()
    with demo.page.expect_download() as saved:
        button("Save CSV").click()
    table = pd.read_csv(io.StringIO(Path(saved.value.path()).read_text()))
    r = agreement(table)
    rate = (len(table) - 1) / np.ptp(table.timestamp)
    print(f"{said}; {rate:.1f} frames a second; r {r.to_dict()}, mean {r.mean():.2f}")
    assert table.success.all() and r.mean() > 0.7 and r.min() > 0.4
    assert rate > 5  # 10 and more where nothing else runs
    button("Hold still: this is my neutral").click()
    demo.page.get_by_text("This face is your neutral now.").wait_for(timeout=CHANGE)
    button("Freeze").click()
    demo.page.wait_for_timeout(300)
    number = lambda: demo.page.locator(".live-au > span").all_inner_texts()
    frozen = number()
    demo.page.wait_for_timeout(600)
    assert number() == frozen and any(float(value) > 0 for value in frozen)
    demo.check()
    button("Stop the camera").click()
    assert demo.page.evaluate("document.querySelectorAll('video').length") == 0
