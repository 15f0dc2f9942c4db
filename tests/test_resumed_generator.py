"A generator's training that was stopped ends with the bytes of one that was not, and never goes on with other data."
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from aufacs_nb.facs import au_columns, intensity_to_unit
from aufacs_nb.folders import FolderError
from aufacs_nb.generation.runs import train_generator
from aufacs_nb.generation.training import TrainingError
from aufacs_nb.registration.collections import sample_registered


class Stopped(Exception):
    "In place of a kill."


@pytest.fixture(scope="module")
def data():
    sample = sample_registered()
    labels = intensity_to_unit(sample.manifest[au_columns()].to_numpy(np.float32))
    return sample.frames[:40, ::3, ::3].copy(), labels[:40], sample.manifest.subject[:40].to_numpy()


def train(data, out, stop=None, signalled=False):
    def callback(step, losses):
        if step == stop and signalled:
            os.kill(os.getpid(), signal.SIGINT)
        elif step == stop:
            raise Stopped
    train_generator(*data, "tiny", out=out, steps=14, checkpoint_every=4, log_every=3, callback=callback, device="cpu",
                    progress=False)


@pytest.mark.parametrize("stop, signalled", [(2, False), (5, False), (10, False), (5, True)])
def test_losses_and_weights_are_those_of_a_whole_run(stop, signalled, data, tmp_path):
    train(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt if signalled else Stopped):
        train(data, tmp_path / "part", stop, signalled)
    train(data, tmp_path / "part")
    for name in ("losses.csv", "weights.safetensors", "card.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_frames_or_labels_are_refused(data, tmp_path):
    frames, labels, who = data
    train(data, tmp_path)
    other = frames.copy()
    other[7] ^= 1
    for changed in ((other, labels, who), (frames, labels[::-1], who)):
        with pytest.raises(TrainingError, match="made with another data"):
            train(changed, tmp_path)


def test_a_second_training_in_a_folder_is_refused_and_so_is_a_folder_of_others(data, tmp_path):
    refused = []

    def second(step, losses):
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(train, data, tmp_path / "run").exception())
        raise Stopped
    with pytest.raises(Stopped):
        train_generator(*data, "tiny", out=tmp_path / "run", steps=14, callback=second, device="cpu", progress=False)
    assert isinstance(refused[0], FolderError) and "another process is writing it" in str(refused[0])
    train(data, tmp_path / "run")
    with pytest.raises(FolderError, match="not of a training of a generator") as said:
        train(data, tmp_path)
    assert "--force" not in str(said.value) and [path.name for path in tmp_path.iterdir()] == ["run"]
