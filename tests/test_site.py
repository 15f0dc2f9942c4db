"""The site: its sources are what the notebooks hold, and what is built can be read, searched and reached on a phone too.

`make docs` builds it (`make test` does so first); without it the tests of the built pages are skipped. Screenshots are left in
`screenshots/`.
"""
import functools
import http.server
import io
import os
import re
import shutil
import sys
import threading
from html import unescape
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from axe import violations
from PIL import Image

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_docs"
sys.path.insert(0, str(ROOT / "tools"))
import make_site  # noqa: E402
from check_notebooks import notebooks  # noqa: E402

LOOKED_AT = ("index", "gallery", "demos", "3_estimation/13_estimator", "experiments/claims", "api/aufacs_nb.facs", "guides/my_film")
built = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site in _docs/: make docs")


# Its sources

def cell(source, outputs=(), **metadata):
    """A code cell."""
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": metadata}


def test_directives_and_hidden_cells_are_not_shown():
    assert make_site.shown(cell("#| default_exp facs")) is None and make_site.shown(cell("#| hide\nimport os")) is None
    assert make_site.shown(cell("#| export\n#| slow\nx = 1"))["source"] == "x = 1"
    assert make_site.shown(cell("#| echo: false\nx = 1"))["metadata"]["tags"] == ["remove-input"]
    assert make_site.shown(cell("x = 1", jupyter={"source_hidden": True}))["metadata"]["tags"] == ["hide-input"]


def test_links_lead_where_they_led_and_a_dead_one_is_named():
    page = PurePosixPath("nbs/3_estimation/13_estimator.ipynb")
    assert make_site.target("../0_start/01_facs.ipynb", page) == "../0_start/01_facs.ipynb"
    assert make_site.target("../../CITATION.cff", page) == "../files/CITATION.cff"
    assert make_site.target("#What-Limits-It", page) == "#what-limits-it"
    assert make_site.target("https://doi.org/10.1/X#Y", page) == "https://doi.org/10.1/X#Y"
    assert "/tree/main/tests" in make_site.target("../../tests", page)
    with pytest.raises(make_site.SiteError, match=r"13_estimator\.ipynb: links to \.\./no_such\.ipynb"):
        make_site.target("../no_such.ipynb", page)


def test_pictures_from_elsewhere_are_not_fetched():
    page = PurePosixPath("nbs/index.ipynb")
    assert make_site.relink("[![Tests](https://x.org/a.svg)](https://x.org/a) b", page) == "[Tests](https://x.org/a) b"


def test_a_picture_says_what_the_prose_before_it_says():
    picture = cell("draw()", [{"output_type": "display_data", "data": {"image/png": "AA"}, "metadata": {}}])
    book = {"cells": [{"cell_type": "markdown", "source": "# T\n\nA *smile* of [her](../index.ipynb). More.", "metadata": {}}, picture]}
    alt = make_site.staged(book, PurePosixPath("nbs/0_start/01_facs.ipynb"))["cells"][1]["metadata"]["mystnb"]["image"]["alt"]
    assert alt == "A smile of her."


def test_a_solution_is_folded_with_what_it_shows():
    picture = {"output_type": "display_data", "data": {"image/png": "AA"}, "metadata": {}}
    hidden = cell("draw()", [picture], jupyter={"source_hidden": True})
    heading = {"cell_type": "markdown", "source": "## Exercises\n\n**1.** Draw.", "metadata": {}}
    title = {"cell_type": "markdown", "source": "# T\n\n> Before all Exercises.", "metadata": {}}
    book = {"cells": [title, hidden, heading, cell("x = 1"), hidden]}
    before, plain, solution = [c["metadata"] for c in make_site.staged(book, PurePosixPath("nbs/0_start/01_facs.ipynb"))["cells"]
                               if c["cell_type"] == "code"]
    assert before["tags"] == ["hide-input"] and plain["tags"] == []
    assert solution["tags"] == ["hide-cell"] and set(solution["mystnb"]) == {"image", "code_prompt_show", "code_prompt_hide"}


def test_only_what_changed_is_written_again(tmp_path):
    make_site.write({"a.md": "a", "b/c.md": "c"}, tmp_path)
    before = (tmp_path / "a.md").stat().st_mtime_ns
    make_site.write({"a.md": "a", "d.md": "d"}, tmp_path)
    assert (tmp_path / "a.md").stat().st_mtime_ns == before and not (tmp_path / "b" / "c.md").exists()


def test_the_menu_holds_every_notebook_once():
    names = [p.relative_to("nbs").with_suffix("").as_posix() for p in notebooks(ROOT)]
    folder = lambda page: page.rpartition("/")[0] + "/" if "/" in page else ""
    listed = [folder(page) + line for page, text in make_site.menu(names).items() for line in text.splitlines()
              if re.fullmatch(r"[\w/]+", line)]
    assert sorted(n for n in listed if n in names) == sorted(n for n in names if n != "index" and not n.startswith("demos/"))


def test_docstrings_keep_their_marks(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import extras
    assert extras.as_rst("`x`: N * k, |a|, see `LabelError`s") == (
        r"``x``: N \* k, \|a\|, see :py:obj:`LabelError <aufacs_nb.facs.LabelError>`\ s")
    assert extras.as_rst("as `a` and `b`, `c`.") == "as ``a`` and ``b``, ``c``."


@pytest.mark.parametrize("folder", ["nbs/images/demos", "aufacs_nb/assets/demos/voila/templates/offline/static"])
def test_every_demo_has_a_picture_for_light_pages_and_one_for_dark_pages(folder):
    for demo in (ROOT / "nbs" / "demos").glob("*.ipynb"):
        light, dark = (Image.open(ROOT / folder / f"{demo.stem}{kind}.jpg").convert("L") for kind in ("", "_dark"))
        assert light.size == dark.size and np.percentile(light, 90) > 240 and np.percentile(dark, 10) < 30, demo.stem
        assert np.mean(light) > np.mean(dark) + 40, demo.stem


@pytest.mark.parametrize("size, there", [((840, 200), (420, 100)), ((420, 900), (420, 300)), ((100, 100), (420, 300))])
def test_a_thumbnail_has_no_margins_that_would_glare_on_a_dark_page(size, there):
    Image.new("RGB", size, "navy").save(picture := io.BytesIO(), "PNG")
    small = np.asarray(Image.open(io.BytesIO(make_site.thumbnail(picture.getvalue()))))
    assert small.shape[1::-1] == there and small.max() < 160


def test_a_picture_with_a_sister_for_dark_pages_brings_her_along(tmp_path):
    (tmp_path / "nbs" / "demos").mkdir(parents=True)
    (tmp_path / "nbs" / "images" / "demos").mkdir(parents=True)
    for name in ("a.jpg", "a_dark.jpg", "b.jpg"):
        (tmp_path / "nbs" / "images" / "demos" / name).touch()
    text = "![A face](../images/demos/a.jpg)\n\n![A mesh](../images/demos/b.jpg)"
    shown = make_site.relink(text, PurePosixPath("nbs/demos/a.ipynb"), tmp_path)
    assert re.findall(r"images/demos/(\S+)", shown) == ["a.jpg", "a_dark.jpg", "b.jpg"]
    assert re.findall(r":class: (\S+)", shown) == ["only-light", "only-dark"] and shown.count(":alt: A face") == 2


# The built pages

def links_and_anchors(text):
    """Where the links and pictures of a page lead, and the names that a link can end at."""
    text = re.sub(r"(?s)(<(script|style)\b[^>]*>).*?</\2>|<!--.*?-->", r"\1", text)
    links, anchors = set(), set()
    for tag, attributes in re.findall(r"<([a-zA-Z][\w-]*)\s([^<>]*)>", text):
        for key, value in re.findall(r'(?<![\w-])(href|src|id|name)="([^"]+)"', attributes):
            (anchors if key in ("id", "name") else set() if tag == "link" else links).add(unescape(value))
    return links, anchors


def test_links_and_anchors_are_read_as_a_browser_does():
    text = """<link href="x.css"><script src="a.js">"<a href='no'>"</script><!-- <a href="no"> --><a class="c" href="b?x=1&amp;y#z"
        data-href="no" id="here">&lt;a href="no"&gt;</a><img src="p.png" alt="a name"><input name="there"><a href="">"""
    assert links_and_anchors(text) == ({"a.js", "b?x=1&y#z", "p.png"}, {"here", "there"})


@built
def test_every_notebook_and_every_module_has_its_page():
    pages = [SITE / p.relative_to("nbs").with_suffix(".html") for p in notebooks(ROOT)]
    pages += [SITE / "api" / f"{name}.html" for name in make_site.public_modules() if name.count(".") == 2]
    assert [p for p in pages if not p.exists()] == []


@built
def test_no_directive_is_left_in_a_listing():
    raw = [p.name for p in SITE.rglob("*.html") if "_static" not in p.parts
           and re.search(r"<span></span><span class=\"c1\">#\|", p.read_text(encoding="utf-8"))]
    assert raw == []


@built
def test_links_within_the_site_end_somewhere():
    pages = {str(p): links_and_anchors(p.read_text(encoding="utf-8")) for p in SITE.rglob("*.html") if "_static" not in p.parts}
    exists, dead = functools.cache(os.path.exists), set()
    for page, (links, _) in pages.items():
        for link in links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = os.path.normpath(os.path.join(os.path.dirname(page), unquote(parts.path))) if parts.path else page
            anchor = unquote(parts.fragment)
            if not exists(goal) or (anchor and goal in pages and anchor not in pages[goal][1]):
                dead.add(f"{os.path.relpath(page, SITE)} → {link}")
    assert len(pages) > 200 and sorted(dead)[:10] == []


@built
def test_a_notebook_can_be_opened_in_colab_and_binder():
    text = (SITE / "0_start" / "01_facs.html").read_text(encoding="utf-8")
    assert "colab.research.google.com/github/aufacs-nb/aufacs_nb/blob/main/nbs/0_start/01_facs.ipynb" in text
    assert re.search(r"mybinder\.org/v2/gh/aufacs-nb/aufacs_nb/main\?urlpath=\S*nbs/0_start/01_facs\.ipynb", text)


@pytest.fixture(scope="module")
def address():
    """The site, served on a free port of this machine."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Headless chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        (pytest.fail if os.environ.get("AUFACS_REQUIRE_BROWSER") == "1" else pytest.skip)(
            "no chromium on PATH: see CONTRIBUTING.md, browser tests")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, headless=True, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@built
def test_pages_fit_the_screen_and_can_be_used_by_everyone(browser, address):
    page, outside, wrong = browser.new_page(), [], {}
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
    (ROOT / "screenshots").mkdir(exist_ok=True)
    for name in LOOKED_AT:
        page.goto(f"{address}{name}.html")
        for width, scheme in ((1280, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
            overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            found = violations(page) + ([f"{overflow} px wider than the screen"] if overflow > 0 else [])
            wrong |= {f"{name}, {width} px, {scheme}": found} if found else {}
            if name in ("index", "gallery"):
                page.screenshot(path=ROOT / "screenshots" / f"site_{name}_{width}_{scheme}.png")
    page.close()
    assert (wrong, outside) == ({}, [])


@built
def test_no_page_is_wider_than_a_phone(browser, address):
    """Without scripts, which take most of a page's time and change no width; the test above has them."""
    context, wide = browser.new_context(viewport={"width": 390, "height": 900}, java_script_enabled=False), {}
    page = context.new_page()
    for path in sorted(SITE.rglob("*.html")):
        name = path.relative_to(SITE).as_posix()
        if not name.startswith(("_static/", "api/")):
            page.goto(address + name, wait_until="domcontentloaded")
            wide[name] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    assert len(wide) > 80 and {name: over for name, over in wide.items() if over > 0} == {}


@built
def test_search_finds_a_word_and_its_page(browser, address):
    page = browser.new_page()
    page.goto(f"{address}search.html?q=personalisation")
    page.wait_for_selector("#search-results li a")
    assert any("personalization" in a.get_attribute("href") for a in page.locator("#search-results li a").all())
    page.close()


CUT_OFF = """() => [...document.querySelectorAll(".highlight pre")].filter(
    e => e.checkVisibility() && e.scrollWidth > e.clientWidth && e.textContent.split("\\n").every(line => line.length <= 120)).map(
  e => e.textContent.slice(0, 200))"""


@built
def test_lines_of_code_of_120_characters_fit_a_desktop_and_the_headings_are_behind_their_button(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    for name in ("3_estimation/13_estimator", "6_apps/09_cli", "index"):
        page.goto(f"{address}{name}.html")
        for width in (1920, 1680, 1600, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(CUT_OFF) == [], f"{name}, {width} px"
    heading = page.get_by_role("link", name="What it scores").locator("visible=true")
    assert heading.count() == 0
    page.get_by_role("button", name="Toggle secondary sidebar").click()
    heading.click()
    assert page.url.endswith("#what-it-scores")
    page.close()


@built
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_demos_have_the_colours_of_the_page(scheme, browser, address):
    page, seen = browser.new_page(color_scheme=scheme), "[...document.querySelectorAll('article img')].filter(e => e.checkVisibility())"
    for name, count in (("demos", 6), ("demos/live", 1)):
        page.goto(f"{address}{name}.html")
        page.wait_for_function("scheme => document.documentElement.dataset.theme === scheme", arg=scheme)
        sources = page.evaluate(f"{seen}.map(e => e.src)")
        assert len(sources) == count and all(("_dark.jpg" in source) == (scheme == "dark") for source in sources), sources
    page.close()
