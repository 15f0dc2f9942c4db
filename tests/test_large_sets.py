"""Sets larger than memory: rows of a memory map give what arrays give, in batches, and the peak stays flat."""
import csv
import mmap
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from aufacs_nb.evaluation.features import neighbours
from aufacs_nb.evaluation.image_quality import IdentityCode, face_ssim, fid, paired_error
from aufacs_nb.experiments.stages import partition_frames
from aufacs_nb.facs import au_columns, intensity_to_unit
from aufacs_nb.generation.networks import build_generator
from aufacs_nb.generation.runs import train_generator
from aufacs_nb.generation.synthesis import synthesize
from aufacs_nb.presets import PAPER, TINY
from aufacs_nb.registration.collections import RegisteredFrames, sample_registered
from aufacs_nb.tensors import Rows, disk_array

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is no package of the project
from tools import scale_test


class Colours(torch.nn.Module):
    "The mean colour of each picture: features for FID."
    num_features, name = 3, "colours"

    def forward(self, pictures):
        return pictures.float().mean((2, 3))


@pytest.fixture(scope="module")
def sample():
    "Test people of the sample, once as rows of the memory map, once in memory."
    registered = sample_registered()
    rows = np.flatnonzero(registered.manifest.partition == "Test")
    manifest = registered.manifest.iloc[rows].reset_index(drop=True)
    lazy = RegisteredFrames(Rows(registered.frames, rows), manifest)
    return lazy, RegisteredFrames(np.array(registered.frames[rows]), manifest)


def test_scores_of_rows_are_those_of_arrays(sample):
    lazy, plain = sample
    generator, code = build_generator(replace(TINY, size=96)).eval(), IdentityCode.from_pretrained()
    assert paired_error(generator, lazy) == paired_error(generator, plain)
    assert (code(lazy.frames) == code(plain.frames)).all()
    turned = plain.frames[::-1]
    assert np.array_equal(face_ssim(lazy.frames, turned, batch=5), face_ssim(plain.frames, turned))
    distance = fid(lazy.frames, Rows(lazy.frames, np.arange(0, len(plain.frames), 2)), Colours(), batch=7)
    assert distance[0] == pytest.approx(fid(plain.frames, plain.frames[::2], Colours())[0], rel=1e-3, abs=1e-3)
    labels = np.random.default_rng(0).random((len(plain.frames), 7)).astype(np.float32)
    made = synthesize(generator, lazy.frames, labels, out=disk_array(plain.frames.shape))
    assert np.array_equal(made, synthesize(generator, plain.frames, labels))


def test_training_on_rows_is_training_on_arrays(sample):
    weights = []
    for part in sample:
        labels = intensity_to_unit(part.manifest[au_columns()].to_numpy(np.float32))
        made = train_generator(part.frames, labels, part.manifest.subject.to_numpy(), TINY, steps=3, progress=False,
                               device="cpu")
        weights.append(made.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("k", [1, 5, 130])
def test_neighbours_in_batches_are_those_of_the_whole_matrix(k):
    """The whole matrix of distances, with many equal ones, as the function held it before."""
    random = np.random.default_rng(0)
    features, subjects = random.integers(0, 4, (150, 3)).astype(float), random.integers(0, 6, 150)
    levels = random.integers(0, 6, 150).astype(float)
    distance = cdist(features, features)
    np.fill_diagonal(distance, np.inf)
    identity = (subjects[distance.argmin(1)] == subjects).mean()
    distance[subjects[:, None] == subjects] = np.inf
    foretold = levels[np.argsort(distance, axis=1, kind="stable")[:, :k]].mean(1)
    found = neighbours(features, levels, subjects, k, batch=40)
    assert found.identity == identity
    assert np.nan_to_num(found.intensity) == np.nan_to_num(np.corrcoef(foretold, levels)[0, 1])


def test_changes_of_a_memory_map_survive_being_given_back(tmp_path):
    np.save(tmp_path / "frames.npy", np.zeros((40, 8, 8, 3), np.uint8))
    writable = np.load(tmp_path / "frames.npy", mmap_mode="r+")
    writable[:] = 7
    assert Rows(writable, [3, 4])[0].max() == 7 and writable.min() == 7
    private = np.load(tmp_path / "frames.npy", mmap_mode="c")  # changes live in the process alone
    private[:] = 9
    assert Rows(private, [3, 4])[:].min() == 9 and private.min() == 9
    assert np.load(tmp_path / "frames.npy").max() == 7


READ = """
import resource, sys
import numpy as np
import torch
from aufacs_nb.tensors import Rows, resize_frames
torch.set_num_threads(1)
frames = np.lib.format.open_memmap(sys.argv[1], mode="r")
resize_frames(Rows(frames, np.arange(8)), 112, in_memory=0)     # whatever is made once
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[2]),) * 2)   # pages of files do not count
made = resize_frames(Rows(frames, np.arange(0, len(frames), 2)), 112, in_memory=int(sys.argv[3]))
print((made.array if hasattr(made, "array") else made).nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory of a process")
def test_a_large_file_is_resized_in_little_memory(tmp_path):
    """10,000 of 20,000 frames of 128 px (a file of holes) are written at 112 px in less memory than the result has."""
    np.lib.format.open_memmap(tmp_path / "frames.npy", mode="w+", dtype=np.uint8, shape=(20_000, 128, 128, 3)).flush()
    size = 10_000 * 112 * 112 * 3
    call = [sys.executable, "-c", READ, str(tmp_path / "frames.npy"), str(int(0.7 * size))]
    done = subprocess.run([*call, "0"], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    assert int(done.stdout) == size
    assert subprocess.run([*call, str(2 * size)], capture_output=True).returncode, "in memory it would not fit"


HELD = """
import numpy as np
from aufacs_nb.estimation.resampling import _held
most = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = most()
made = _held((6000, 160, 160, 3), (np.full((250, 160, 160, 3), k, np.uint8) for k in range(24)), in_memory=0)
print(made[255].max(), made[5999].min(), (most() - before) / made.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory of a process")
def test_a_large_synthetic_set_is_made_in_little_memory():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    first, last, grown = done.stdout.split()
    assert (first, last) == ("1", "23") and float(grown) < 0.5, done.stdout


# ---------------------------------------------------------------- tools/scale_test.py


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "The set of `tools/scale_test.py`, far smaller."
    folder = tmp_path_factory.mktemp("published")
    scale_test.make_set(folder, 600, 32)
    return folder


@pytest.mark.parametrize("step", list(scale_test.STEPS))
def test_a_step_of_the_scale_test(published, step, monkeypatch):
    monkeypatch.setattr("aufacs_nb.presets.PAPER", replace(PAPER, classifier="slim", cls_dim=4))
    monkeypatch.setattr(partition_frames, "__defaults__", (0,))  # bytes in memory: every partition stays on disk
    done = scale_test.STEPS[step](published)
    assert (done[0] if isinstance(done, tuple) else done) > 0


def test_the_scale_test_measures_and_refuses(tmp_path):
    options = ["open", "--frames", "300", "--size", "32", "--limit", "10", "--out", str(tmp_path / "scale.csv")]
    with pytest.raises(SystemExit, match="more than 10 MB: open"):
        scale_test.main(options)
    (row,) = csv.DictReader((tmp_path / "scale.csv").open())
    assert row["what"] == "open" and int(row["frames"]) == 300 and 100 < int(row["peak_mb"]) < 6000
    assert 50 < int(row["anon_mb"]) < int(row["peak_mb"]) or not Path("/proc/self/status").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the memory of a process")
def test_memory_that_belongs_to_no_file_is_told_from_memory_that_does(tmp_path):
    (tmp_path / "pages").write_bytes(bytes(80_000_000))
    seen = []

    def pages_of_no_file():  # of the system: an array might take pages that the process holds already
        pages = mmap.mmap(-1, 80_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(pages, np.uint8)[:] = 1
        return pages

    for take in (lambda: int(np.memmap(tmp_path / "pages", np.uint8, "r").sum()), pages_of_no_file):
        watch = scale_test.Anonymous(every=.001)
        watch.start()
        before = scale_test.status_mb("RssAnon")
        held, looks, end = take(), watch.looks, time.monotonic() + 60
        while watch.looks < looks + 2 and time.monotonic() < end:  # the look that began before does not count
            time.sleep(.001)
        seen.append(watch.stop() - before)
        del held
    assert seen[0] < 40 < 70 < seen[1]
