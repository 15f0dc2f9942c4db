"""What a user sees who hands in something wrong: one line that names the thing and the way out, and nothing lost."""
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut, coffee

from aufacs_nb.databases import fera17_manifest, sample_database


def check(said, *words, code=2):
    "A user's error: exit code 2, or 1 where there is no face; no traceback, one short message with all `words`."
    error = said.stderr
    assert said.returncode == code, said
    assert "Traceback" not in error
    for word in words:
        assert word in error, f"{word!r} is missing in: {error}"


@pytest.fixture
def database(tmp_path):
    "A copy of the sample database that a test may break."
    return shutil.copytree(sample_database(), tmp_path / "fera17")


def test_picture_without_a_face(aufacs, tmp_path):
    Image.fromarray(coffee()).save(tmp_path / "coffee.png")
    check(aufacs("predict", tmp_path / "coffee.png", "--out", tmp_path / "au.csv"), "coffee.png: no face found", "use a picture", code=1)
    assert not (tmp_path / "au.csv").exists()
    check(aufacs("personalize", tmp_path / "coffee.png", "--out", tmp_path / "me"), "coffee.png", code=1)
    assert not (tmp_path / "me").exists()


def test_truncated_and_unreadable_pictures(aufacs, tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    check(aufacs("predict", tmp_path / "cut.jpg", "--out", tmp_path / "au.csv"), "cut.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    check(aufacs("synthesize", tmp_path / "text.png", "--out", tmp_path / "x.png"), "text.png")
    check(aufacs("predict", tmp_path / "absent.jpg", "--out", tmp_path / "au.csv"), "absent.jpg")


def test_truncated_video_is_named(aufacs, tmp_path, database):
    video = sorted((database / "FERA17_Test_MV").glob("*.mp4"))[0]
    video.write_bytes(video.read_bytes()[:2000])
    check(aufacs("predict", video, "--out", tmp_path / "au.csv"), f"{video.name}: ", "copy it again")
    (tmp_path / "empty.mp4").touch()
    check(aufacs("predict", tmp_path / "empty.mp4", "--out", tmp_path / "au.csv"), "empty.mp4: not a readable video")
    assert not (tmp_path / "au.csv").exists()


def test_broken_manifest_and_folder_without_registration(aufacs, tmp_path):
    (tmp_path / "m.parquet").write_text("junk")
    check(aufacs("register", tmp_path / "m.parquet", "--out", tmp_path / "r"), "m.parquet", "aufacs manifest")
    check(aufacs("evaluate", "--data", tmp_path / "nowhere"), "nowhere: no finished registration", "aufacs register")


def test_empty_folder(aufacs, tmp_path):
    (tmp_path / "empty").mkdir()
    check(aufacs("manifest", tmp_path / "empty", "--out", tmp_path / "m.parquet"), "empty")
    check(aufacs("predict", tmp_path / "empty", "--out", tmp_path / "au.csv"), "empty")
    check(aufacs("register", tmp_path / "empty", "--out", tmp_path / "r"), "empty")


def test_label_file_with_a_wrong_value(aufacs, database, tmp_path):
    labels = sorted(database.rglob("*_AU12_Int.csv"))[0]
    lines = labels.read_text().splitlines()
    lines[4] = "5,7"
    labels.write_text("\n".join(lines))
    check(aufacs("manifest", database, "--out", tmp_path / "m.parquet"), labels.name, "line 5: intensity 7 is outside")


def test_label_file_with_a_missing_frame(aufacs, database, tmp_path):
    labels = sorted(database.rglob("*_AU04_Int.csv"))[0]
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:3] + lines[4:]))
    check(aufacs("manifest", database, "--out", tmp_path / "m.parquet"), labels.name, "line 4")


def test_targets_outside_the_range(aufacs, tmp_path):
    from aufacs_nb.facs import LabelError
    from aufacs_nb.generation.synthesis import synthesize
    from aufacs_nb.generation.runs import load_generator

    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    check(aufacs("synthesize", tmp_path / "me.png", "--out", tmp_path / "x.png", "--au", "12=9"), "12=9", "0–5")
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    for targets in (np.full(7, 1.2), np.full(7, -0.1), np.full(7, np.nan), np.zeros(5)):
        with pytest.raises(LabelError):
            synthesize(load_generator("small"), frame, targets)


@pytest.mark.parametrize("options, said", [(("--out", "x.avi"), ".gif or .mp4"),
                                           (("--out", "x.png", "--arch", "cyclegan"), "choose ganimation")])
def test_synthesis_that_cannot_be(aufacs, tmp_path, options, said):
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    check(aufacs("synthesize", tmp_path / "me.png", *options), said)


@pytest.mark.parametrize("options, said", [(("--batch", 0), "gen_batch is 0"), (("--lambda-ids", -1), "lambda_ids is -1"),
                                           (("--steps", 0), "steps is 0"), (("--arch", "nix"), "choose ganimation"),
                                           (("--precision", "half"), "one of no, bf16")])
def test_generator_training_that_cannot_be(aufacs, root, tmp_path, options, said):
    data = root / "data_samples" / "registered"
    check(aufacs("train-generator", "--data", data, "--preset", "tiny", "--out", tmp_path / "g", *options), said)
    assert not (tmp_path / "g" / "weights.safetensors").exists()


def test_weights_of_another_preset(aufacs, tmp_path):
    from aufacs_nb.presets import WeightsError, load_weights, weights_folder

    with pytest.raises(WeightsError, match="paper"):
        load_weights(weights_folder("small", "generator"), preset="paper")
    check(aufacs("predict", "x.jpg", "--model", "huge", "--out", tmp_path / "au.csv"), "huge", "small")


def test_folder_and_video_go_on_past_frames_without_a_face(aufacs, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(astronaut()).save(folder / "a.png")
    Image.fromarray(coffee()).save(folder / "b.png")
    Image.fromarray(astronaut()[:, ::-1]).save(folder / "c.png")
    said = aufacs("predict", folder, "--out", tmp_path / "au.csv", "--quiet")
    assert said.returncode == 0, said.stderr
    table = pd.read_csv(tmp_path / "au.csv")
    assert table.success.tolist() == [1, 0, 1]
    said = aufacs("register", folder, "--out", tmp_path / "r", "--quiet")
    assert said.returncode == 0 and "2 of 3" in said.stdout, said
    valid = pd.read_parquet(tmp_path / "r" / "manifest.parquet").valid
    assert valid.tolist() == [True, False, True]


def test_registration_ends_with_1_where_a_part_was_left_out(aufacs, tmp_path):
    for name, image in (("a", astronaut()), ("b", None), ("c", None)):
        (tmp_path / "some").mkdir(exist_ok=True)
        path = tmp_path / "some" / f"{name}.{'mp4' if name == 'c' else 'png'}"
        path.write_bytes(b"") if image is None else Image.fromarray(image).save(path)
    said = aufacs("register", tmp_path / "some", "--out", tmp_path / "r", "--on-error", "skip", "--quiet")
    assert said.returncode == 1 and "1 of 2 frames" in said.stdout, said
    assert [line.split(": ")[1].rpartition("/")[2] for line in said.stderr.splitlines() if "skipped: " in line] == ["c.mp4", "b.png"]


def test_registration_of_something_else_into_the_same_folder(aufacs, tmp_path):
    for name, image in (("one", astronaut()), ("two", astronaut()[:, ::-1])):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "x.png")
    assert aufacs("register", tmp_path / "one", "--out", tmp_path / "r", "--quiet").returncode == 0
    check(aufacs("register", tmp_path / "two", "--out", tmp_path / "r", "--quiet"), "another registration")


def test_partitions_never_mix():
    from aufacs_nb.registration.collections import sample_registered
    from aufacs_nb.estimation.resampling import semantic_pairs

    manifest = fera17_manifest(sample_database())
    with pytest.raises(ValueError, match="Train"):
        semantic_pairs(manifest, 12, 4, seed=0)
    people = sample_registered().manifest.groupby("partition").subject.agg(set)
    assert not people["Train"] & people["Test"]


def test_a_film_that_was_cut_off_is_named_with_the_way_out(aufacs, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(next(sample_database().rglob("*.mp4")).read_bytes()[:3000])
    for words in (("synthesize", "--au", "AU12=4", "--out", tmp_path / "o.mp4"), ("predict", "--out", tmp_path / "o.csv")):
        check(aufacs(words[0], tmp_path / "cut.mp4", *words[1:]), "cut.mp4: not a readable video", "copy it again")
        assert not (tmp_path / "o.mp4").exists()
