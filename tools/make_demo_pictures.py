"""Make the pictures of the demos, light and dark: those of their notebooks in nbs/images/demos, and of the landing page.

    python tools/make_demo_pictures.py [DEMO ...]

Each demo is opened in a real browser and used as `USES` says. The camera is a film of a virtual person. It needs chromium.
"""
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from aufacs_nb.apps.live import live_film
from aufacs_nb.pictures import to_jpeg
from aufacs_nb.presets import ASSETS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools import soak  # noqa: E402

PAGES, CARDS = ROOT / "nbs" / "images" / "demos", ASSETS / "demos" / "voila" / "templates" / "offline" / "static"
CARD, PIXELS, BYTES = (620, 388), 660_000, 58_000  # a picture of a page has at most so many pixels and bytes
REST = """() => !document.querySelector(".aufacs-busy:not([hidden])")"""


def slider(name, keys):
    "A use of a page: the handle of a slider is moved by so many steps."
    return lambda page: [page.get_by_role("slider", name=name).first.press("ArrowRight") for _ in range(keys)]


def choose(label, option):
    "A use of a page: an option of a list."
    return lambda page: page.get_by_role("combobox", name=label, exact=True).select_option(label=option)


def press(name):
    "A use of a page: a button."
    return lambda page: page.get_by_role("button", name=name, exact=True).click()


def said(text, after=0):
    "A use of a page: it says something, and some milliseconds pass."
    return lambda page: (page.get_by_text(text).first.wait_for(timeout=300_000), page.wait_for_timeout(after))


USES = {  # demo: what is done, and the class of the picture at whose height the card of the landing page begins
    "live": ([press("Start the camera"), said("frames/s", 9000), press("Freeze")], "live-picture"),
    "au_explorer": ([slider("AU12 Lip corner puller", 40), slider("AU6 Cheek raiser", 30), slider("AU1 Inner brow raiser", 25)],
                    "mesh"),
    "generator": ([choose("Face", "virtual person 2"), said("true photograph"), slider("AU4 Brow lowerer", 40)], "source"),
    "registration": ([choose("Picture", "Virtual, pose 9 (40°, 0°)"), press("Wire")], "photo"),
    "resampling_explorer": ([said("All faces are drawn.")], "before"),
    "personalization": ([press("Personalise"), said("Done.")], "photo")}


def program(page):
    "The part of the page that the demo fills, as a picture; and in it the height of the pictures, by class."
    box = page.locator(".aufacs").first.bounding_box()
    page.set_viewport_size({"width": 1280, "height": int(box["y"] + box["height"]) + 20})
    page.wait_for_timeout(500)
    box = page.locator(".aufacs").first.bounding_box()
    return Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB"), box


def card(picture, top):
    "A cut of the picture with the shape of `CARD`, from its right edge, which begins at a height."
    width = min(picture.width, 1000)
    height = width * CARD[1] // CARD[0]
    top = max(0, min(int(top), picture.height - height))
    left = picture.width - width
    return picture.crop((left, top, left + width, top + height)).resize(CARD, Image.Resampling.LANCZOS)


def encoded(picture):
    "A JPEG as good as `BYTES` allow, and its quality; None where that would be below 60."
    tried = ((to_jpeg(picture, quality=quality), quality) for quality in (88, 84, 80, 75, 70, 65, 60))
    return next((made for made in tried if len(made[0]) <= BYTES), None)


def save(pictures, paths):
    "Write JPEGs of one size; where one of them would be coarse, all become smaller."
    while not all(made := [encoded(picture) for picture in pictures]):
        size = tuple(round(.95 * side) for side in pictures[0].size)
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    for picture, path, (data, quality) in zip(pictures, paths, made):
        path.write_bytes(data)
        print(f"{path.relative_to(ROOT)}: {picture.width} × {picture.height}, {len(data) // 1000} kB, quality {quality}",
              flush=True)


def photograph(page, name, part):
    "Both pictures of a demo, light and dark."
    cards, pages = [], []
    for scheme in ("light", "dark"):
        page.evaluate("document.activeElement.blur()")
        page.emulate_media(color_scheme=scheme)
        picture, box = program(page)
        begins = page.locator(f".{part}").first.bounding_box()["y"] - box["y"] - 36
        cards.append(card(picture, begins))
        scale = min(1, (PIXELS / picture.width / picture.height) ** .5)
        size = round(picture.width * scale), round(picture.height * scale)
        pages.append(picture.resize(size, Image.Resampling.LANCZOS))
    for pictures, folder in ((cards, CARDS), (pages, PAGES)):
        save(pictures, [folder / f"{name}{dark}.jpg" for dark in ("", "_dark")])


def main(names):
    "Make the pictures of the named demos, or of all."
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        film = Path(folder) / "film.mjpeg"
        film.write_bytes(b"".join(3 * to_jpeg(frame, quality=90) for frame in live_film(size=(400, 300))))
        server = soak.Server(folder)
        try:
            server.wait()
            browser = p.chromium.launch(executable_path=soak.chromium(), args=[
                *soak.FLAGS, f"--use-file-for-fake-video-capture={film}"])
            for name in names or USES:
                uses, part = USES[name]
                page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
                page.set_default_timeout(300_000)
                page.goto(f"{server.address}voila/render/{name}.ipynb", wait_until="commit")
                page.locator(soak.PICTURES).first.wait_for(state="visible")
                for use in uses:
                    use(page)
                    page.wait_for_timeout(1000)
                    page.wait_for_function(REST)
                page.wait_for_timeout(2000)
                page.wait_for_function(REST)
                photograph(page, name, part)
                page.close(run_before_unload=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
