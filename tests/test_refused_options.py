"""Options that contradict themselves, tables of other people, and views that lack a part of a face: said, not guessed."""
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from aufacs_nb.apps import cli, everyday


@pytest.fixture
def album(tmp_path):
    "A folder with one grey picture."
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save((folder := tmp_path / "album").mkdir() or folder / "a.png")
    return folder


def refusal(*words) -> str:
    "What `aufacs` says when it refuses."
    found = CliRunner().invoke(cli.app, list(map(str, words)))
    assert isinstance(found.exception, ValueError), found.output
    return str(found.exception)


@pytest.mark.parametrize("option", ["--au", "--shows"])
def test_an_action_unit_is_asked_for_once(option):
    assert everyday.parse_targets(["12=3", "6=1"], option=option) == {12: 3, 6: 1}
    with pytest.raises(ValueError, match=f"{option} 12=3 and {option} AU12=4: say two things"):
        everyday.parse_targets(["12=3", "6=1", "AU12=4"], option=option)


def test_a_neutral_frame_is_named_once(tmp_path):
    said = refusal("normalize", "--data", tmp_path, "--out", tmp_path / "x", "--neutral", "F1=2", "--neutral", "F1=3")
    assert "--neutral F1=2 and --neutral F1=3" in said


@pytest.mark.parametrize("change", [lambda table: table[["pose_yaw", "path"]], lambda table: table.assign(valid=True),
                                    lambda table: table.assign(pose_yaw_of_mine=1), lambda table: table.iloc[:, ::-1]])
def test_only_a_manifest_is_replaced_by_a_manifest(album, tmp_path, change):
    out = tmp_path / "table.parquet"
    for _ in range(2):  # the second one replaces the first
        assert CliRunner().invoke(cli.app, ["manifest", str(album), "--out", str(out)]).exit_code == 0
    change(pd.read_parquet(out)).to_parquet(out)
    before = out.read_bytes()
    assert "was not made by this package" in refusal("manifest", album, "--out", out) and out.read_bytes() == before
    assert CliRunner().invoke(cli.app, ["manifest", str(album), "--out", str(out), "--force"]).exit_code == 0


@pytest.mark.parametrize("columns", ["AU01,AU02", "AU01,AU02,AU01_c,AU02_c", "AU12,pspi", "AU12,landmarks",
                                     "AU12,camera,illumination,expression"])
def test_the_manifests_of_all_readers_are_known(columns):
    from aufacs_nb.databases import MANIFEST_COLUMNS

    assert cli._MANIFEST.fullmatch(",".join([*MANIFEST_COLUMNS, columns]))


def test_a_frontal_view_says_what_it_lacks():
    def said(yaw, pitch):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            everyday._say_missing(Path("me.png"), SimpleNamespace(yaw=yaw, pitch=pitch, share=.6))
        return " ".join(str(each.message) for each in told)

    assert said(39., -39.) == ""
    assert "the far cheek" in said(55., 0.) and "60% of the face" in said(55., 0.) and "me.png" in said(55., 0.)
    assert "brows and forehead" in said(0., -50.)


REFUSED = """
predict nothing.jpg
predict photo.jpg --out au.doc
predict photo.jpg --plot au.doc
predict photo.jpg --overlay au.mp4
predict photo.jpg --model smal
predict photo.jpg --neutral nothing.jpg
predict photo.jpg --neutral clip --face 1
predict photo.jpg --device gpu
predict photo.jpg --faces some
predict photo.jpg --landmarks 5
predict photo.jpg --jobs 0
predict photo.jpg --on-error stop
predict photo.jpg --bogus
personalize nothing.jpg --out new
personalize film.mp4 --out new
personalize photo.jpg --out photo.jpg
personalize photo.jpg --out new --generator rati
actions nothing.jpg
actions photo.jpg --out a.doc
demo --photo nothing.jpg
demo --out photo.jpg
live --port 0
synthesize nothing.jpg --out a.png
synthesize photo.jpg --out a.doc
synthesize photo.jpg --out a.png --au 99=3
synthesize photo.jpg --out a.png --arch rato
synthesize photo.jpg --out a.png --model smal
simulate fera17 --out photo.jpg --subjects x
manifest nothing
manifest . --out m.doc
manifest . --database fera
register nothing --out new
register photo.jpg --out new --method 3d
register photo.jpg --out new --fill white
register photo.jpg --out new --size 0
normalize --data nothing --out new
normalize --data . --out new --method median
normalize --data . --out new --neutral F001
train-prnet --out new --preset smal
train-generator --data nothing --out new
train-generator --data . --out new --preset smal
train-generator --data . --out new --arch gan
train-generator --data . --out photo.jpg
resample --data nothing --out new
resample --data . --out new --method unreal
resample --data . --out new --preset smal
resample --data . --out new --method real --arch flow
train-classifiers --data nothing --valid . --out new
train-classifiers --data . --valid nothing --out new
train-classifiers --data . --valid . --out photo.jpg
train smal
train small --resampling some
train small --out photo.jpg
evaluate --data nothing
evaluate --data . --out e.doc
evaluate --data . --model smal
reproduce table-9
reproduce table-1 --preset smal
reproduce table-1 --data nothing.toml
reproduce table-1 --executor threads
reproduce table-1 --missing guessed
reproduce table-1 --out photo.jpg
""".strip().splitlines()
ONE_AFTER_THE_OTHER = """
import contextlib, io, sys
from aufacs_nb.apps.cli import main
for words in sys.stdin.read().splitlines():
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            main(words.split())
            code = 0
        except SystemExit as end:
            code = end.code
    if code != 2 or "torch" in sys.modules:
        sys.exit(f"{words}: {code}, torch: {'torch' in sys.modules}; {said.getvalue()}")
print("all refused")
"""


def test_what_is_mistyped_is_refused_before_torch_is_loaded(tmp_path):
    "Every command, in one process, one after the other: the first that is not refused, or brings torch, is named."
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "film.mp4").touch()
    done = subprocess.run([sys.executable, "-c", ONE_AFTER_THE_OTHER], input="\n".join(REFUSED), cwd=tmp_path, text=True,
                          capture_output=True, timeout=300)
    assert done.stdout.strip() == "all refused", done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"photo.jpg", "film.mp4"}
    commands = {command.name for command in cli.app.registered_commands} | {group.name for group in cli.app.registered_groups}
    assert {words.split()[0] for words in REFUSED} == commands
