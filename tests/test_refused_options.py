"""Options that contradict themselves, tables of other people, and views that lack a part of a face: said, not guessed."""
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
