"""The main job as a user starts it: one command, everything in one folder, nothing left to fetch."""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from aufacs_nb.facs import au_columns
from aufacs_nb.pictures import synthetic_info

from peak import PEAK

DEMO = PEAK + """
import aufacs_nb.apps.demo as demo
from aufacs_nb.apps.cli import main
people = demo.estimate_people
def two(classifiers, generator, test, *more, **named):
    few = test.manifest.subject.isin(test.manifest.subject.unique()[:2])
    return people(classifiers, generator, test.select(few.to_numpy()), *more, **named)
demo.estimate_people = two  # each takes seconds, and six of them show nothing else
try:
    main(sys.argv[2:])
finally:
    open(sys.argv[1], "w").write(str(peak()))
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    "The folder that `aufacs demo` leaves; its standard output is kept there too, and how many kB it held beside it."
    folder = tmp_path_factory.mktemp("demo") / "out"
    words = [sys.executable, "-c", DEMO, folder.with_name("peak"), "demo", "--out", folder, "--quiet"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_the_table_is_printed_and_kept(out):
    said = (out / "said.txt").read_text()
    for word in (*au_columns(), "mean", "before", "after", "difference", "report.html"):
        assert word in said
    table = pd.read_csv(out / "icc.csv", index_col="au")
    assert list(table.index) == [*au_columns(), "mean"]
    assert (table.before_low <= table.before_value).all() and (table.after_value <= table.after_high).all()
    assert table.before_value["mean"] > 0.4, "the shipped classifiers follow unseen virtual people"
    assert (table.before_value != table.after_value).any(), "personalisation changed nothing"


def test_the_report_needs_nothing_from_outside(out):
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 6
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert page.count("SYNTHETIC") < 5 and page.index("strongest estimates") < page.index("<h2>")
    assert {"stages.png", "grid_photo.png", "grid_virtual.png", "histograms.png"} <= {path.name for path in out.iterdir()}
    assert synthetic_info(out / "grid_photo.png")["Source"] == "astronaut"


def test_the_report_says_first_what_was_found_and_names_what_it_shows(out):
    page = (out / "report.html").read_text()
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert page.index('class="summary"') < page.index("<h2>") and heads[0].endswith("The photograph: astronaut")
    assert 'name="viewport"' in page and "AU12 Lip corner puller" in page and "-0.000" not in page
    bars = re.findall(r'class="(generic|personalised)" style="width: (\d+)%"', page)
    assert len(bars) == 14 and all(0 <= int(width) <= 100 for _, width in bars)
    table = pd.read_csv(out / "au.csv")
    assert ("personalised", f"{20 * table.AU12_r[0]:.0f}") in bars
    captions = re.findall(r"<figcaption>(AU\d+ (?:absent|level [A-E]))</figcaption>", page)
    assert len(captions) == 24 and len(set(captions)) > 12, "each resampled face says what was asked of it"


def test_synthetic_faces_of_the_report_carry_the_word_in_their_pixels():
    from aufacs_nb.apps.demo import _tile

    frame = np.full((96, 96, 3), 120, np.uint8)
    marked, plain = (np.asarray(_tile(frame, synthetic)) for synthetic in (True, False))
    assert (plain == 120).all() and (marked[:-18] == 120).all() and np.ptp(marked[-18:]) > 150


def test_synthetic_pictures_say_so(out):
    for name in ("grid_photo.png", "grid_virtual.png", "resampled.png"):
        assert synthetic_info(out / name)["Generator"] == "small", name
    assert synthetic_info(out / "stages.png") == {}


def test_the_photograph_has_a_row_of_openface_columns(out):
    table = pd.read_csv(out / "au.csv")
    assert list(table.columns[:5]) == ["frame", "face_id", "timestamp", "confidence", "success"]
    assert table.success.tolist() == [1] and {f"{au}_r" for au in au_columns()} <= set(table.columns)
    assert table.AU12_r[0] > 2, "the astronaut smiles"


def test_a_photograph_without_a_face_is_refused_before_anything_takes_long(tmp_path):
    from aufacs_nb.apps.demo import run_demo
    from aufacs_nb.registration.detection import NoFaceError

    Image.fromarray(np.full((80, 80, 3), 120, np.uint8)).save(tmp_path / "wall.png")
    with pytest.raises(NoFaceError, match="wall.png"):
        run_demo(tmp_path / "out", tmp_path / "wall.png", progress=False)
    assert not list((tmp_path / "out").iterdir())


def test_it_stays_under_four_gigabytes(out):
    peak = int(out.with_name("peak").read_text()) / 1024 ** 2
    assert 0.1 < peak < 4, f"the demo took {peak:.1f} GB"
    assert Path(out, "registered", "frames.npy").stat().st_size < 100e6


DEMOS = sorted((Path(__file__).parents[1] / "nbs" / "demos").glob("*.ipynb"))


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_stored_demo_shows_itself_and_says_what_to_try(path):
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 1 and (path.parent / pictures[0]).stat().st_size < 60_000
    assert re.search(r"^1\. .*\n2\. .*\n3\. ", text, re.M), "three things to try"
