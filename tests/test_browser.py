"""The five demos in a real browser: voila serves them, headless chromium drives them, nothing leaves this machine.

Skipped where chromium is not installed, unless AUFACS_REQUIRE_BROWSER=1 says that it must be.
Every test leaves a screenshot in `screenshots/`.
"""
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DEMOS = Path(os.environ.get("AUFACS_DEMOS", ROOT / "nbs" / "demos"))
SCREENSHOTS = ROOT / "screenshots"
REQUIRED = os.environ.get("AUFACS_REQUIRE_BROWSER") == "1"
READY = 180_000  # ms for a demo's kernel to start, load weights and draw, on two busy cores
CHANGE = 30_000  # ms for one picture to follow one slider
NOT_OURS = "/labextensions/jupyterlab-jupytext/"  # an extension of the notebook editor, which voila loads and cannot use
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def missing(what):
    """Skip, or fail where a browser is required."""
    (pytest.fail if REQUIRED else pytest.skip)(f"{what}: see CONTRIBUTING.md, browser tests")


def is_local(url):
    """Does this request stay on this machine?"""
    parts = urlsplit(url)
    return parts.scheme in ("blob", "data", "about") or parts.hostname in ("127.0.0.1", "localhost")


def free_port():
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url, process, log, limit=90):
    """Poll `url` until it answers; fail with the server's log after `limit` seconds or when the server has gone."""
    for _ in range(limit * 4):
        if process.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.25)
    pytest.fail(f"voila did not answer at {url}:\n{log.read_text()[-3000:]}")


def stop(process):
    """End the server: politely first, so that it ends its kernels, then its whole process group."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


@pytest.fixture(scope="module")
def chromium():
    """Path of the browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None) or missing("no chromium on PATH")


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    """Address of a voila server over the demos, on a free port, gone at the end."""
    pytest.importorskip("voila") if not REQUIRED else __import__("voila")
    port, log = free_port(), tmp_path_factory.mktemp("voila") / "log.txt"
    share = ROOT / "nbs" / "demos" / "share"
    environment = {**os.environ, "JUPYTER_PATH": os.pathsep.join(filter(None, [str(share), os.environ.get("JUPYTER_PATH")]))}
    command = [sys.executable, "-m", "voila", str(DEMOS), f"--port={port}", "--no-browser", "--Voila.ip=127.0.0.1",
               "--template=offline", "--show_tracebacks=True"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/", process, log)
        yield f"http://127.0.0.1:{port}/voila/render/"
    finally:
        stop(process)


def save_picture(image, path):
    """Write a uint8 array as a file for the file chooser, in the format that its name says; returns its path."""
    Image.fromarray(image).save(path)
    return path


class Demo:
    """One demo in one page: open it, move its widgets, read its pictures."""

    def __init__(self, page, address, outside, errors, folder):
        self.page, self.address, self.outside, self.errors, self.folder = page, address, outside, errors, folder

    def open(self, name):
        """Load a notebook and wait for its first picture."""
        self.name = name
        self.page.goto(self.address + name + ".ipynb", timeout=READY)
        self.page.wait_for_selector("img.jupyter-widgets", timeout=READY)
        return self

    def picture(self, part):
        """Digest of the bytes behind the `img` of class `part`."""
        script = "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"
        image = bytes(self.page.locator(f"img.{part}").first.evaluate(script))
        assert image[:2] == b"\xff\xd8", f"{part} is not a JPEG"
        return hashlib.sha256(image).hexdigest()

    def wait_for_change(self, part, before, limit=CHANGE):
        """Wait until the picture `part` differs from `before`."""
        end = time.monotonic() + limit / 1000
        while self.picture(part) == before:
            assert time.monotonic() < end, f"{self.name}: picture {part} did not change"
            self.page.wait_for_timeout(100)

    def settle(self, limit=CHANGE):
        """Wait until no picture changes any more: the kernel may still be drawing for earlier positions of a slider."""
        end, before, sources = time.monotonic() + limit / 1000, None, []
        while sources != before:
            assert time.monotonic() < end, f"{self.name}: the pictures do not come to rest"
            before = sources
            self.page.wait_for_timeout(2000)
            sources = self.page.locator("img.jupyter-widgets").evaluate_all("all => all.map(e => e.src)")

    def choose(self, label, option):
        """Choose an option of the drop-down list below the title `label`."""
        boxes = self.page.locator(".widget-vbox", has_text=label, has=self.page.locator("select"))
        boxes.last.locator("select").select_option(label=option)

    def push(self, label, keys=6, key="ArrowRight"):
        """Press a key on the handle of the slider with this label."""
        handle = self.page.locator(".widget-slider", has_text=label).locator(".noUi-handle").first
        handle.focus()
        for _ in range(keys):
            handle.press(key)

    def upload(self, path, button=0):
        """Choose a file in an upload button of the page, the first unless another is asked for."""
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("button.widget-upload").nth(button).click()
        chooser.value.set_files(path)

    def screenshot(self, suffix=""):
        """Keep the page, at rest, as a PNG; nothing outside this machine was asked for, and no script failed."""
        self.settle()
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}{suffix}.png")
        assert self.outside == [], f"{self.name} asked for {self.outside}"
        assert self.errors == [], f"{self.name}, in the browser's console: {self.errors}"


@pytest.fixture
def demo(request, chromium, server, tmp_path):
    """A fresh browser on a new user data dir that refuses, and lists, every request to another machine."""
    playwright = pytest.importorskip("playwright.sync_api") if not REQUIRED else __import__(
        "playwright.sync_api", fromlist=["sync_playwright"])
    outside = []

    def gate(route):
        if is_local(route.request.url):
            return route.continue_()
        outside.append(route.request.url)
        return route.abort()

    with playwright.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=chromium, headless=True, args=FLAGS,
            viewport={"width": 1280, "height": 1000})
        browser.route("**/*", gate)
        page = browser.pages[0]
        page.on("websocket", lambda socket: is_local(socket.url) or outside.append(socket.url))
        errors = []
        page.on("console", lambda line: line.type == "error" and NOT_OURS not in line.text and errors.append(line.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield Demo(page, server, outside, errors, tmp_path)
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{request.node.name}_end.png")
        browser.close()


def test_au_explorer(demo):
    """Sliders move the three faces; a photograph becomes the source; a picture without a face is refused in words."""
    data = pytest.importorskip("skimage.data")
    demo.open("au_explorer")
    parts = ("mesh", "truth", "generated")
    before = {part: demo.picture(part) for part in parts}
    demo.push("Lip corner puller", keys=10)
    for part in parts:
        demo.wait_for_change(part, before[part])
    demo.screenshot()
    source, generated = demo.picture("neutral"), demo.picture("generated")
    demo.upload(save_picture(data.astronaut(), demo.folder / "astronaut.jpg"))
    demo.wait_for_change("neutral", source)
    demo.wait_for_change("generated", generated)
    demo.screenshot("_photo")
    source = demo.picture("neutral")
    demo.upload(save_picture(data.coffee(), demo.folder / "coffee.jpg"))
    demo.page.get_by_text("coffee.jpg").first.wait_for(timeout=CHANGE)
    assert demo.picture("neutral") == source
    demo.screenshot("_no_face")


def test_resampling_explorer(demo):
    """The number of frames and the method change counts and sheet."""
    demo.open("resampling_explorer")
    counts, sheet = demo.picture("counts"), demo.picture("sheet")
    demo.push("Frames per intensity", keys=2)
    demo.wait_for_change("counts", counts)
    demo.wait_for_change("sheet", sheet)
    demo.screenshot()
    sheet = demo.picture("sheet")
    demo.page.get_by_role("button", name="Real").click()
    demo.wait_for_change("sheet", sheet)
    demo.screenshot("_real")


def test_generator(demo):
    """A slider moves every way that is ticked; a virtual person has a true picture; an answer brings the next pair."""
    demo.open("generator")
    demo.page.get_by_text("which face shows").wait_for(timeout=READY)
    parts = ("geometric", "GANimation", "photo-ratio", "photo-moved")
    before = {part: demo.picture(part) for part in parts}
    demo.push("Lip corner puller", keys=8)
    for part in parts:
        demo.wait_for_change(part, before[part])
    demo.screenshot()
    source = demo.picture("source")
    demo.page.locator("select").first.select_option(label="virtual person 2")
    demo.wait_for_change("source", source)
    for title in ("true picture", "true photograph"):
        demo.page.get_by_text(title, exact=True).wait_for(timeout=CHANGE)
    demo.screenshot("_truth")
    left = demo.picture("left")
    demo.page.get_by_role("button", name="the left one").click()
    demo.page.get_by_text("2 of 20").wait_for(timeout=CHANGE)
    demo.wait_for_change("left", left)


def test_personalization(demo):
    """Another frame changes the photograph; the button runs the bar from left to right and redraws the plot."""
    from aufacs_nb.databases import sample_database

    demo.open("personalization")
    photo, plot = demo.picture("photo"), demo.picture("plot")
    demo.push("Frame", keys=1)
    demo.wait_for_change("photo", photo)
    demo.screenshot("_before")
    demo.page.get_by_role("button", name="Personalise").click()
    widths, end = set(), time.monotonic() + READY / 1000
    while demo.picture("plot") == plot:
        assert time.monotonic() < end, f"personalisation did not finish; widths of the bar: {sorted(widths)}"
        widths.add(demo.page.locator(".progress-bar").first.evaluate("e => parseFloat(e.style.width) || 0"))
        demo.page.wait_for_timeout(50)
    demo.page.get_by_text("Done.").wait_for(timeout=CHANGE)
    widths.add(demo.page.locator(".progress-bar").first.evaluate("e => parseFloat(e.style.width) || 0"))
    assert min(widths) == 0 and max(widths) == 100, f"the bar ran from 0 to 100, not over {sorted(widths)}"
    demo.screenshot()
    plot = demo.picture("plot")
    demo.upload(sorted((sample_database() / "FERA17_Test_MV").glob("*.mp4"))[0], button=1)
    demo.wait_for_change("plot", plot)
    demo.page.get_by_text("mean estimate").wait_for(timeout=CHANGE)
    demo.screenshot("_film")


def portrait(path):
    """A rendered face with an alpha channel, as a PNG file; returns its path."""
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person

    image = render_person(sample_person(11), {12: 3}, yaw=20, size=(360, 440))
    return save_picture(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]), path)


def test_registration(demo):
    """A picture, an angle, a fill and an uploaded file each change their own views; a file without a face is refused."""
    demo.page.set_viewport_size({"width": 1280, "height": 1240})
    demo.open("registration")
    parts = ("photo", "view", "places", "flat", "frontal", "uv", "poses")
    before = {part: demo.picture(part) for part in parts}
    demo.choose("Picture", "Virtual, pose 9 (40°, 0°)")
    for part in parts:
        demo.wait_for_change(part, before[part])
    demo.screenshot()
    before = {part: demo.picture(part) for part in parts}
    demo.push("Yaw", keys=8)
    demo.wait_for_change("view", before["view"])
    demo.page.get_by_role("button", name="Wire").click()
    demo.wait_for_change("photo", before["photo"])
    demo.page.get_by_role("button", name="Mirror").click()
    for part in ("frontal", "poses"):
        demo.wait_for_change(part, before[part])
    assert (demo.picture("flat"), demo.picture("places")) == (before["flat"], before["places"])
    before = demo.picture("photo")
    demo.upload(portrait(demo.folder / "portrait.png"))
    demo.wait_for_change("photo", before)
    demo.settle()
    before = demo.picture("photo")
    demo.upload(save_picture(np.full((300, 400), 128, np.uint8), demo.folder / "fog.png"))
    demo.page.get_by_text("fog.png: no face found").wait_for(timeout=CHANGE)
    assert demo.picture("photo") == before
    assert demo.page.locator("select").first.evaluate("e => e.selectedOptions[0].text") == "portrait.png"
    demo.screenshot("_no_face")
