"""Films and photographs that are read side by side: the table of one process, to the byte, whoever reads and whatever breaks."""
import warnings
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from aufacs_nb.apps.cli import main
from aufacs_nb.databases import write_video
from aufacs_nb.estimation import side_by_side as beside
from aufacs_nb.estimation.estimator import NO_ZERO, AUEstimator
from aufacs_nb.estimation.tables import _Parquet, save_table
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A folder with two films, one that is cut off, a folder below it, and photographs, one of them broken."
    root = tmp_path_factory.mktemp("side") / "all"
    (root / "b").mkdir(parents=True)
    frames = [render_person(sample_person(41), {12: level}, size=120) for level in (0, 3, 5)]
    for name in ("a.mp4", "b/c.mp4"):
        write_video(root / name, frames, 10)
    (root / "cut.mp4").write_bytes((root / "a.mp4").read_bytes()[:700])
    for name in ("a.png", "b/a.png", "z.png"):
        Image.fromarray(frames[2]).save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    return root


def quietly(work):
    "The result of `work()`, and the texts of its warnings."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = work()
    return made, [str(one.message) for one in caught]


@pytest.mark.parametrize("form", ["folder", "list"])
def test_the_table_is_that_of_one_process(root, form, tmp_path):
    source = root if form == "folder" else [root / "b", root / "z.png", root / "z.png", root / "nowhere.png", root / "a.mp4"]
    alone, said = quietly(lambda: AUEstimator.from_pretrained("mesh18", "cpu").predict(source, faces="all"))
    with ThreadPoolExecutor(1) as executor:
        batches, told = quietly(lambda: list(beside.read_side_by_side("mesh18", source, executor=executor, device="cpu",
                                                                 faces="all")))
    for name, tables in (("one", alone), ("two", [batch.table for batch in batches])):
        for ending in (".csv", ".parquet"):
            save_table(tables, tmp_path / f"{name}{ending}")
    for ending in (".csv", ".parquet"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()
    unread = [item.file for batch in batches for item in batch.items if item.image is None]
    assert unread == (["broken.png", "cut.mp4"] if form == "folder" else [f"{root}/nowhere.png"])
    assert len(said) == len(told) == len(unread), "everybody says what could not be read"


def test_a_command_in_two_processes(root, tmp_path, capsys):
    for jobs in (1, 2):
        with pytest.raises(SystemExit) as end:
            main(["predict", str(root), "--model", "mesh18", "--device", "cpu", "--quiet", "--out", str(tmp_path / f"{jobs}.csv"),
                  "--jobs", str(jobs)])
        said = capsys.readouterr()
        assert end.value.code == 1 and said.err.count("left out: ") == 2 and "9 of 11 rows" in said.out
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_jobs_out_of_range_are_one_line(root, tmp_path, capsys):
    for jobs in ("0", "100000"):
        with pytest.raises(SystemExit) as end:
            main(["predict", str(root / "a.png"), "--out", str(tmp_path / "x.csv"), "--jobs", jobs])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and f"is {jobs}: give a whole number from 1 to 256" in said


def test_a_film_without_a_zero_is_said_once_and_only_if_all_are(root):
    with ThreadPoolExecutor(1) as executor:
        read = lambda source: quietly(lambda: list(beside.read_side_by_side("mesh18", source, executor=executor, neutral="clip")))[1]
        assert [text for text in read([root / "a.mp4", root / "b" / "c.mp4"]) if NO_ZERO in text] == [f"2 sources: {NO_ZERO}"]


def test_a_note_names_the_film_and_not_how_many_a_process_reads(root, tmp_path):
    write_video(tmp_path / "long.mp4", [render_person(sample_person(41), {}, size=120)] * 12, 10)
    films = [root / "a.mp4", tmp_path / "long.mp4"]
    with ThreadPoolExecutor(1) as executor:
        told = quietly(lambda: list(beside.read_side_by_side("mesh18", films, executor=executor, neutral="clip")))[1]
    assert told == [f"{films[0]}: {NO_ZERO}"]


def test_a_dead_process_is_a_sentence(root, monkeypatch):
    def dies(*words):
        yield [], []
        raise BrokenProcessPool("gone")
    monkeypatch.setattr(beside, "in_processes", dies)
    with pytest.raises(OSError, match="a process that reads has died, most likely of too little memory"):
        list(beside.read_side_by_side("mesh18", root))


def test_whoever_stops_early_leaves_nothing_waiting(monkeypatch):
    class Executor:
        "Does nothing, and remembers."
        futures: list = []

        def submit(self, *words):
            "A future."
            self.futures.append(self)
            self.cancelled = 0
            return self

        def result(self):
            "Nothing was read."
            return [], []

        def cancel(self):
            "Count."
            self.cancelled += 1

    executor = Executor()
    monkeypatch.setattr(beside, "WAITING", 4)
    results = beside._submitted(executor, [()] * 9)
    next(results)
    assert len(executor.futures) == 4, "no more than are allowed are waiting"
    results.close()
    assert executor.cancelled == 3


def test_parquet_does_not_show_in_what_pieces_a_table_came(tmp_path):
    table = pd.DataFrame({"frame": np.arange(9000), "AU12_r": np.linspace(0, 5, 9000), "AU12_c": np.arange(9000) % 2})
    for step in (32, 4100, 9000):
        file = _Parquet(tmp_path / f"{step}.parquet")
        for start in range(0, 9000, step):
            file.write(table[start:start + step])
        file.close()
    assert len({(tmp_path / f"{step}.parquet").read_bytes() for step in (32, 4100, 9000)}) == 1
    assert pd.read_parquet(tmp_path / "32.parquet").equals(table)
