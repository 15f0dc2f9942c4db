"""A film that breaks off: every frame before that place is in the table, whatever the size of a batch."""
import re

import numpy as np
import pandas as pd
import pytest
from skimage.data import astronaut

from aufacs_nb.databases import DatabaseError, write_video
from aufacs_nb.estimation.estimator import AUEstimator, actions_batches


@pytest.fixture
def torn(tmp_path, monkeypatch):
    """`torn(n)`: a film whose frames can be read up to the n-th."""
    write_video(tmp_path / "film.mp4", [astronaut()] * 3, 10)

    def at(number):
        def frames(path):
            yield from ((k / 10, astronaut()) for k in range(number))
            raise DatabaseError(f"{path}: the video breaks off while decoding; copy it again")
        monkeypatch.setattr("aufacs_nb.estimation.sources.timed_frames", frames)
        return tmp_path / "film.mp4"
    return at


@pytest.fixture(scope="module")
def reader():
    return AUEstimator.from_pretrained("mesh18")


@pytest.mark.parametrize("size", [2, 5, 32])
@pytest.mark.parametrize("faces", ["main", "all"])
def test_frames_before_the_break_come_first(torn, reader, size, faces):
    came = []
    with pytest.raises(DatabaseError, match="breaks off"):
        for batch in reader.batches(torn(5), batch=size, faces=faces):
            came += batch.table.frame.tolist()
    assert came == [1, 2, 3, 4, 5]
    assert len(list(actions_of(torn(5), size))) == 5


def actions_of(film, size):
    """The rows of `actions_batches` before it raises."""
    with pytest.raises(DatabaseError, match="breaks off"):
        for batch in actions_batches(film, size):
            yield from batch.table.frame


@pytest.mark.parametrize("words, code, rows", [
    ((), 1, 5), (("--neutral", "clip"), 1, 5), (("--on-error", "raise"), 2, 5), (("--faces", "all"), 1, 5), ((), 2, 0)])
def test_predict_keeps_them_and_says_so(torn, tmp_path, capsys, words, code, rows):
    from aufacs_nb.apps.cli import main

    film, out = torn(rows), tmp_path / "au.csv"
    with pytest.raises(SystemExit) as end:
        main(["predict", str(film), "--model", "mesh18", "--out", str(out), "--quiet", *words])
    said = capsys.readouterr().err
    assert end.value.code == code and "breaks off while decoding" in said
    if code == 1:
        assert len(pd.read_csv(out)) == rows and np.isfinite(pd.read_csv(out).AU12_r).all()
    else:
        assert not out.exists() and (len(pd.read_csv(tmp_path / "au.part.csv")) if rows else 0) == rows
        assert bool(re.search(rf"the first {rows} rows are in .*au.part.csv", said)) == bool(rows)
