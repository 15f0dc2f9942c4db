"""tools/photograph_sheet.py: the sheet of a photograph, and what its readings mean."""
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from aufacs_nb.generation.ratio import au_table
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


@pytest.fixture(scope="module")
def tool(root):
    """The tool as a module."""
    sys.path.insert(0, str(root))
    import tools.photograph_sheet

    yield tools.photograph_sheet
    sys.path.remove(str(root))


def test_a_reading_is_the_share_of_what_was_meant(tool):
    meant = au_table((12,))[0, 5]
    assert tool.reading(0.4 * meant, meant) == pytest.approx(0.4)
    assert tool.reading(-meant, meant) == pytest.approx(-1)
    across = np.stack([meant[:, 1], -meant[:, 0]], 1)  # each vertex at a right angle to what was meant
    assert tool.reading(across + 0.2 * meant, meant) == pytest.approx(0.2, abs=1e-6)


def test_a_sheet_and_a_row_for_each_photograph_and_unit(tool, tmp_path, capsys):
    photo = render_person(sample_person(5_000_003), {}, size=256)
    Image.fromarray(photo).save(tmp_path / "person.png")
    Image.fromarray(np.full((90, 90, 3), 80, np.uint8)).save(tmp_path / "grey.png")
    tool.main([str(tmp_path / "grey.png"), str(tmp_path / "person.png"), "--out", str(tmp_path / "out"), "--aus", "26"])
    table = pd.read_csv(tmp_path / "out" / "readings.csv")
    assert list(table.au) == ["AU26"] and (table.photo == "person").all()
    jaw = table.iloc[0]
    assert jaw.rises and 0 < jaw.read_A < jaw.read_C < jaw.read_E and 0.3 < jaw.slope < 2
    sheet = np.asarray(Image.open(tmp_path / "out" / "person.jpg"))
    assert sheet.shape[1] > 4 * tool.SIDE and sheet.shape[0] > tool.SIDE
    said = capsys.readouterr().out
    assert "grey" in said and "AU26" in said


def test_virtual_people_are_read_beside_their_true_pictures(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--out", str(tmp_path)])
    tool.main(["--people", "1", "--out", str(tmp_path), "--aus", "26"])
    jaw = pd.read_csv(tmp_path / "readings.csv").iloc[0]
    assert jaw.true_rises and jaw.rises and 0.5 < jaw.true_slope / jaw.slope < 2
    assert "true_slope" in capsys.readouterr().out
