"""Parts of estimation where they meet: an ML-ROS set trains classifiers, the picture to point at works in a browser."""
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from aufacs_nb.facs import au_columns


@pytest.fixture
def skewed():
    """(frames, manifest): 24 frames of 4 people; AU12 is mostly absent, E once; other AUs at random."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (24, 7)).astype(float)
    labels[:, 4] = [5, 3, 3, 1] + [0] * 20
    manifest = pd.DataFrame(labels, columns=au_columns()).assign(
        valid=True, partition="Train", subject=[f"S{i % 4}" for i in range(24)])
    return rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), manifest


def test_classifiers_train_on_an_ml_ros_set(skewed):
    from aufacs_nb.estimation.classifiers import distinct_rows, train_classifiers
    from aufacs_nb.estimation.ml_ros import ml_ros_set
    from aufacs_nb.estimation.resampling import label_histogram

    frames, manifest = skewed
    with warnings.catch_warnings(action="ignore"):
        resampled = ml_ros_set(frames, manifest, share=0.5)
    before, after = label_histogram(manifest).loc[12], label_histogram(resampled).loc[12]
    assert after[5] > before[5] and after.sum() > before.sum()
    first, which = distinct_rows(resampled.manifest)
    assert len(first) == len(frames)  # clones are computed once
    np.testing.assert_array_equal(resampled.frames[first][which], resampled.frames)
    classifiers = train_classifiers(resampled, preset="tiny", progress=False)
    assert classifiers.predict(frames).shape == (24, 7)


@pytest.mark.parametrize("counts", [True, False])
def test_an_untrained_start_is_the_best_epoch_only_where_it_may_be(skewed, counts):
    """With a rate at which nothing is learned well, a start that nothing beats is kept, or an epoch is taken all the same."""
    from aufacs_nb.estimation.trunk import build_classifier, seeded, train_classifier
    from aufacs_nb.presets import get_preset
    from aufacs_nb.tensors import standardise

    frames, manifest = skewed
    preset, levels = get_preset("tiny"), manifest.AU12.to_numpy()
    with seeded(1):
        start = build_classifier(preset).eval()
    valid = (frames, train_classifier(frames, levels, None, preset, start=start, epochs=0, progress=False)[0])
    said = valid[1](standardise(frames, preset.cls_size)).softmax(-1).detach().numpy()
    truth = said @ np.arange(6)  # the start is perfect on this Valid
    model, _ = train_classifier(frames, levels, (frames, truth), preset, 0, start, 1, 0.05, False, counts)
    changed = any((a != b).any() for a, b in zip(model.state_dict().values(), start.state_dict().values()))
    assert changed != counts


def test_missing_scores_stay_out_of_every_row_but_their_own():
    from aufacs_nb.evaluation.intervals import NoScore, icc_table, two_afc_table

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (120, 7)).astype(float)
    estimates, people = labels + rng.normal(size=labels.shape), np.arange(120) // 20
    whole = icc_table(labels, estimates, people, n=50)
    labels[:, 3] = np.nan  # AU10 in DISFA
    with pytest.warns(UserWarning, match=r"AU10 \(not coded\)"):
        partly = icc_table(labels, estimates, people, n=50)
    assert isinstance(partly.loc["AU10", "icc"], NoScore) and str(partly.loc["AU10", "icc"]) == "not coded"
    others = [au for au in whole.index if au not in ("AU10", "mean")]
    assert partly.loc[others].equals(whole.loc[others])
    assert partly.loc["mean", "icc"].value == pytest.approx(np.mean([partly.loc[au, "icc"].value for au in others]))
    with pytest.warns(UserWarning, match=r"AU10 \(not coded\)$"):
        assert np.isfinite(two_afc_table(labels, estimates, people, n=50).loc["mean", "B"]).all()


@pytest.fixture
def page():
    """A page of headless chromium that lists what it asked for and what failed."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browser_path, headless=True, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 800, "height": 500})
        page.outside, page.errors = [], []
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "about:")) or page.outside.append(r.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


SPOT = """([panel, face]) => {
    const figures = [];
    const walk = view => { if (view.model.type == "Figure") figures.push(view); (view.child_views ?? []).forEach(walk); };
    [...Bokeh.index.roots].forEach(walk);
    const {frame, el, model} = figures[panel], columns = model.renderers[0].data_source.data, box = el.getBoundingClientRect();
    return [box.x + frame.x_scale.compute(columns["x" + panel][face]), box.y + frame.y_scale.compute(columns["y" + panel][face])];
}"""


def hover(page, panel, face):
    """Move the pointer onto a face of a panel; returns the thumbnail beside it."""
    page.mouse.move(790, 490)
    x, y = page.evaluate(SPOT, [panel, face])
    page.mouse.move(x + 1, y + 1, steps=3)
    tip = page.locator("div:visible:has(> img)")
    tip.wait_for(timeout=60_000)
    return tip


def test_pointing_at_a_face_shows_it(page, tmp_path):
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    from aufacs_nb.evaluation.features import Panel, interactive_embedding

    pytest.importorskip("bokeh")
    hues = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 20), (20, 220, 220)]
    faces = np.array([np.full((40, 40, 3), hue) for hue in hues], np.uint8)
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]])
    panels = [Panel(points, np.arange(5.0), "by intensity"), Panel(points[::-1], list("ababa"), "by name")]
    names = [f"<b>face</b> {i}" for i in range(5)]
    written = interactive_embedding(panels, faces, tmp_path / "faces.html", names, synthetic=[False] * 4 + [True], size=240)
    page.goto(written.as_uri())
    page.wait_for_function("Bokeh.index.roots.length && Bokeh.documents[0].is_idle")
    for panel, face in ((0, 0), (0, 3), (1, 2), (1, 4)):
        tip = hover(page, panel, face)
        text = tip.inner_text()
        assert f"<b>face</b> {face}" in text and ("SYNTHETIC" in text) == (face == 4)
        picture = tip.locator("img")
        assert picture.is_visible() and picture.evaluate("img => img.complete && img.naturalWidth") == 48
        jpeg = b64decode(picture.get_attribute("src").partition("base64,")[2])
        np.testing.assert_allclose(np.asarray(Image.open(BytesIO(jpeg)), float).mean((0, 1)), hues[face], atol=8)
        inspected = page.evaluate("Bokeh.documents[0].roots()[0].select({type: 'GlyphRenderer'})"
                                  ".map(dots => [...dots.data_source.inspected.indices])")
        assert inspected == [[face], [face]]  # the same face is ringed in every panel
    page.mouse.move(790, 490)
    page.locator("div:visible:has(> img)").wait_for(state="hidden", timeout=60_000)
    assert page.outside == [] and page.errors == []
