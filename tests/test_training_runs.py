"""Trainings of classifiers that are stopped, shared by processes, larger than memory, or that begin with a file."""
import os
import runpy
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aufacs_nb.estimation import classifiers, trunk, vgg16
from aufacs_nb.estimation.resampling import ResampledSet
from aufacs_nb.estimation.trunk import train_classifier
from aufacs_nb.facs import AUS, au_columns
from aufacs_nb.folders import FolderError
from aufacs_nb.generation.training import TrainingError
from aufacs_nb.presets import PAPER, TINY, ClassifierValues, WeightsError
from peak import PEAK

SLIM = replace(TINY, cls_batch=4, cls_augment=True)
PLAIN = ClassifierValues(classifier="vgg16", cls_size=32, cls_batch=4)  # Adam at one rate, a frozen prefix
RANDOM = np.random.default_rng(0)
FRAMES, LEVELS = RANDOM.integers(0, 256, (13, 32, 32, 3), dtype=np.uint8), np.arange(13) % 6
VALID = RANDOM.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), np.arange(8) % 6


class PulledPlug(Exception):
    "There is no more power."


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(one, two) -> bool:
    "Have two networks the same bytes?"
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def start():
    "A network that has learned something before."
    with trunk.seeded(1):
        return trunk.SlimVGG(32, 4)


# ---------------------------------------------------------------- stopped

@pytest.mark.parametrize("first, second", [(("out", None), ("out", "other")), (("out", "checkpoint"), ("b", "checkpoint"))])
def test_a_second_training_of_classifiers_in_a_folder_is_refused(first, second, tmp_path, monkeypatch):
    table = pd.DataFrame({"registration": ["mesh"] * len(FRAMES)})
    place = lambda name: name and tmp_path / name
    train = lambda out, checkpoint: classifiers.train_classifiers(
        ResampledSet(FRAMES, table), preset=SLIM, progress=False, device="cpu", out=place(out), checkpoint=place(checkpoint))
    refused = []

    def networks(*_):
        "Work during which somebody else comes, and then another of this run's processes."
        monkeypatch.setattr(classifiers, "_networks", lambda *_: (_ for _ in ()).throw(PulledPlug))
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(train, *second).exception())
            monkeypatch.setenv("RANK", "1")
            refused.append(other.submit(train, *second).exception())
        raise PulledPlug
    monkeypatch.setattr(classifiers, "_networks", networks)
    with pytest.raises(PulledPlug):
        train(*first)
    assert isinstance(refused[0], FolderError) and "another process is writing it" in str(refused[0])
    assert isinstance(refused[1], PulledPlug), "of several processes the first alone asks"
    assert not list(tmp_path.rglob(".*"))


def test_classifiers_are_not_trained_into_a_folder_of_others(tmp_path):
    (tmp_path / "film.mp4").touch()
    with pytest.raises(FolderError, match="not of a training of classifiers") as said:
        classifiers.train_classifiers(ResampledSet(FRAMES, pd.DataFrame({"registration": ["mesh"]})), preset=SLIM, out=tmp_path)
    assert "--force" not in str(said.value)


def test_checkpoints_of_all_networks_know_their_data(tmp_path, monkeypatch):
    "What was stopped is gone on with only on the same frames, labels and Valid frames."
    table = pd.DataFrame(np.tile(LEVELS[:, None], (1, 7)).astype(float), columns=au_columns()).assign(
        subject="a", registration="mesh")
    preset = replace(SLIM, cls_trunk_epochs=1, cls_epochs=0)
    monkeypatch.setattr(classifiers, "_finished", lambda *_: (_ for _ in ()).throw(PulledPlug))  # before they go

    def train(frames, table):
        with pytest.raises(PulledPlug):
            classifiers.train_classifiers(ResampledSet(frames, table), preset=preset, progress=False, device="cpu",
                                          checkpoint=tmp_path / "checkpoint")
    train(FRAMES, table)
    train(FRAMES, table)
    for frames, labels, said in ((255 - FRAMES, table, "frames"), (FRAMES, table.assign(AU12=0.0), "table")):
        with pytest.raises(FolderError, match=said):
            train(frames, labels)


@pytest.mark.parametrize("preset", [SLIM, PLAIN], ids=["slim", "paper's way"])
def test_stopped_after_two_epochs_and_resumed(preset, tmp_path, monkeypatch):
    "Weights, schedule, moments, dropout, augmentation, the best epoch: all go on as if nothing had been."
    options = dict(preset=preset, seed=5, start=start() if preset is PLAIN else None, epochs=5, lr=3e-3, progress=False,
                   device="cpu", valid=VALID)
    whole, history = train_classifier(FRAMES, LEVELS, **options)
    save = trunk._save_epoch

    def pull(*arguments):
        save(*arguments)
        if len(arguments[3]) == 2:
            raise PulledPlug
    monkeypatch.setattr(trunk, "_save_epoch", pull)
    with pytest.raises(PulledPlug):
        train_classifier(FRAMES, LEVELS, **options, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0002.safetensors", "latest.json"]
    monkeypatch.setattr(trunk, "_save_epoch", save)
    torch.manual_seed(99)  # another process would have other random states
    resumed, after = train_classifier(FRAMES, LEVELS, **options, checkpoint=tmp_path)
    assert same(whole, resumed) and history.equals(after) and len(after) == 5
    again, _ = train_classifier(FRAMES, LEVELS, **options, checkpoint=tmp_path)  # done: only read
    assert same(whole, again)


def test_stopped_while_an_epoch_is_written(tmp_path, monkeypatch):
    "The tensors are there, the note that names them is not: the epoch before counts."
    options = dict(preset=SLIM, epochs=3, lr=3e-3, progress=False, device="cpu")
    whole, _ = train_classifier(FRAMES, LEVELS, **options)
    write = trunk.write_atomically

    def pull(path, how):
        if path.name == "latest.json" and (tmp_path / "epoch_0002.safetensors").exists():
            raise PulledPlug
        return write(path, how)
    monkeypatch.setattr(trunk, "write_atomically", pull)
    with pytest.raises(PulledPlug):
        train_classifier(FRAMES, LEVELS, **options, checkpoint=tmp_path)
    monkeypatch.setattr(trunk, "write_atomically", write)
    assert (tmp_path / "epoch_0001.safetensors").exists()
    assert same(whole, train_classifier(FRAMES, LEVELS, **options, checkpoint=tmp_path)[0])


@pytest.mark.parametrize("changed, said", [
    (dict(seed=6), "seed 5 → 6"), (dict(epochs=2), "epochs 1 → 2"), (dict(lr=1e-3), "lr 0.003 → 0.001"),
    (dict(preset=replace(SLIM, dropout=0.9)), "dropout 0.3 → 0.9"),
    (dict(frames=FRAMES[:12], intensities=LEVELS[:12]), "frames 13 → 12"),
    (dict(intensities=LEVELS[::-1].copy()), "labels "), (dict(precision="bf16"), "bf16 False → True")])
def test_another_run_is_refused(changed, said, tmp_path):
    options = dict(frames=FRAMES, intensities=LEVELS, preset=SLIM, seed=5, epochs=1, lr=3e-3, progress=False,
                   device="cpu")
    train_classifier(**options, checkpoint=tmp_path)
    with pytest.raises(TrainingError, match="another run") as error:
        train_classifier(**{**options, **changed}, checkpoint=tmp_path)
    assert said in str(error.value) and str(tmp_path / "latest.json") in str(error.value)


# ---------------------------------------------------------------- shared by processes

SHARED = """
import sys, numpy as np, torch
from safetensors.torch import save_file
from aufacs_nb.estimation import trunk
from aufacs_nb.presets import ClassifierValues
torch.set_num_threads(1)
rng, batch, out = np.random.default_rng(0), int(sys.argv[1]), sys.argv[2]
frames, levels = rng.integers(0, 256, (23, 32, 32, 3), dtype=np.uint8), rng.integers(0, 6, (23, 2)).astype(float)
levels[::3, 1] = np.nan                                      # not coded: the processes have unlike numbers of labels
with trunk.seeded(1):
    start = trunk.SlimVGG(32, 4, dropout=0.0, n_outputs=12)
for name, layer in start.features.named_children():          # like VGG16, without batch normalisation
    if isinstance(layer, torch.nn.BatchNorm2d):
        start.features[int(name)] = torch.nn.Identity()
seen, average = [], trunk.average_gradients
def watched(team, model):
    average(team, model)
    seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
trunk.average_gradients = watched
order = torch.randperm
trunk.torch.randperm = lambda n, generator=None: order(n, generator=torch.Generator().manual_seed(7))
preset = ClassifierValues(classifier="vgg16", cls_size=32, cls_batch=batch)
model, history = trunk.train_classifier(frames, levels, (frames, levels), preset, 3, start, 1, 1e-3, False,
                                        start_counts=False, device="cpu")
team = trunk._team("cpu")
rank = team.process_index
with trunk.seeded(rank):
    agreed = trunk._agree(team, trunk.SlimVGG(32, 4).to(memory_format=torch.channels_last)).state_dict()
tensors = {f"{step}/{name}": grad for step, grads in enumerate(seen) for name, grad in grads.items()}
tensors["loss"] = torch.tensor(history.loss.to_numpy())
for name, state in (("w", model.state_dict()), ("agreed", agreed)):
    tensors |= {f"{name}/{key}": value.contiguous() for key, value in state.items()}
save_file(tensors, f"{out}_{rank}.safetensors")
"""


def test_two_processes_take_the_gradients_of_one(tmp_path, monkeypatch):
    "The last batch is smaller and some labels are missing, so the parts of the two are unlike."
    script = tmp_path / "train.py"
    script.write_text(SHARED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    team = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # as `accelerate launch` does
    command, numbers = [sys.executable, str(script), "3", str(tmp_path / "two")], ("RANK", "LOCAL_RANK")
    processes = [subprocess.Popen(command, env=team | dict.fromkeys(numbers, str(rank)), text=True,
                                  stderr=subprocess.PIPE) for rank in (0, 1)]
    for place, name in ((trunk, "average_gradients"), (torch, "randperm"), (sys, "argv")):
        monkeypatch.setattr(place, name, getattr(place, name))  # what the script changes comes back
    sys.argv = [str(script), "6", str(tmp_path / "one")]
    runpy.run_path(str(script))
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("one_0", "two_0", "two_1"))
    assert one.keys() == first.keys()
    assert sum(key.endswith("classifier.4.bias") for key in one) == 6  # four steps, two networks
    for key, value in one.items():
        scale = value.abs().max().clamp_min(1e-6)
        limit = 2e-2 if key.startswith("w/") else 1e-4  # Adam makes the sign of a gradient near 0 a whole step
        assert ((first[key] - value).abs().max() / scale) < limit, key
        assert torch.equal(first[key], second[key]), key


# ---------------------------------------------------------------- what VGG16 begins with

class Small(nn.Module):
    "Layers with VGG16's names, few of each."

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
        self.classifier = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)], nn.Linear(2, 1000))


@pytest.fixture
def small_vgg16(monkeypatch, tmp_path):
    "torchvision's function makes a small network, its cache is empty, and it fetches nothing."
    def fetch(weights, dropout):
        if weights is not None:
            raise OSError("no route to host")
        return Small()
    monkeypatch.setattr("torchvision.models.vgg16", fetch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_vgg16_from_a_file(small_vgg16, ending, tmp_path):
    source, path = Small(), tmp_path / f"weights.{ending}"
    save_file(source.state_dict(), path) if ending == "safetensors" else torch.save(source.state_dict(), path)
    vgg16.check_init(str(path), PAPER)
    made = vgg16.vgg16_classifier(str(path))
    assert torch.equal(made.features[4].weight, source.features[4].weight) and made.classifier[-1].out_features == 6
    assert torch.equal(made.classifier[3].bias, source.classifier[3].bias)


@pytest.mark.parametrize("tensors, said", [
    ({"features.0.weight": torch.zeros(2, 3, 3, 3)}, "it has no features.0.bias"),
    ({"features.0.weight": torch.zeros(9, 3, 3, 3)}, "size mismatch"), (None, "no readable weights")])
def test_a_file_that_is_no_vgg16(small_vgg16, tensors, said, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"nothing") if tensors is None else torch.save(tensors, path)
    with pytest.raises(WeightsError, match="weights.pth") as error:
        vgg16.check_init(str(path), "paper")
    assert said in str(error.value)


def test_a_pickle_that_would_run_code_is_refused(small_vgg16, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())
    torch.save({"features.0.weight": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="no readable weights"):
        vgg16.check_init(str(tmp_path / "weights.pth"), "paper")
    assert not (tmp_path / "ran").exists()


def test_init_is_asked_for_before_anything_is_read(small_vgg16, tmp_path):
    "There is neither a set nor a network here; what is missing first is what VGG16 begins with."
    with pytest.raises(WeightsError, match="vgg16-397923af.pth.*--init FILE.*--init random"):
        classifiers.train_classifiers(None, preset="paper")
    with pytest.raises(WeightsError, match="no such file"):
        classifiers.train_classifiers(None, preset="paper", init=str(tmp_path / "nowhere.pth"))
    with pytest.raises(WeightsError, match="Leave --init out"):
        classifiers.train_classifiers(None, preset="tiny", init=str(tmp_path / "nowhere.pth"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").touch()
    with pytest.raises(AttributeError):  # it has what it needs, and now asks for the set
        classifiers.train_classifiers(None, preset="paper")


def test_random_weights_have_no_frozen_prefix(small_vgg16):
    preset, classes = ClassifierValues(classifier="vgg16"), torch.zeros(3, dtype=torch.int64)
    assert all(p.requires_grad for p in trunk._start(preset, None, classes, "random").parameters())
    assert classifiers._frozen_start(None, preset, "random", 0) is None


# ---------------------------------------------------------------- larger than memory

HUGE = PEAK + """
import json, resource, sys, numpy as np, pandas as pd, torch
from dataclasses import replace
from types import SimpleNamespace
from aufacs_nb.estimation import classifiers, resampling, trunk
from aufacs_nb.facs import AUS, au_columns
from aufacs_nb.folders import FolderError
from aufacs_nb.generation.networks import build_generator
from aufacs_nb.presets import TINY
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))  # a copy fails here, and does not fill the machine
folder, n, size = sys.argv[1], 210_000, 224
in_file = lambda: float(dict(line.split(":", 1) for line in open("/proc/self/status"))["RssFile"].split()[0]) / 1e6
gigabytes = lambda: peak() / 1e6
frames = np.lib.format.open_memmap(folder + "/frames.npy", "w+", np.uint8, (n, size, size, 3))  # sparse
labels = np.random.default_rng(0).integers(0, 6, (n, 7))
table = pd.DataFrame(labels, columns=au_columns()).assign(valid=True, partition="Train", subject="S1")
found = {"opened": gigabytes()}
real = resampling.real_set(frames, table, per_intensity=5000)             # 210,000 rows, 31.6 GB
assert len(real.frames) == n and real.frames[:3].shape == (3, size, size, 3)
found["real set"] = gigabytes()
written = resampling.real_set(frames, table, per_intensity=5, out=folder + "/real")
found["real set written"] = gigabytes()
generator = build_generator(TINY).eval()
resampling.semantic_resample(frames, table, generator, per_intensity=3, progress=False, out=folder + "/synthetic")
found["semantic set written"] = gigabytes()
preset = replace(TINY, cls_trunk_epochs=0, cls_augment=True, cls_batch=4)
steps, step = [], trunk._Training.step
class Enough(Exception): pass
def few(training, rows, epoch):
    if len(steps) == 8: raise Enough
    steps.append(step(training, rows, epoch))
    return steps[-1]
trunk._Training.step = few
whole = replace(preset, cls_trunk_epochs=1)
for train, *what in ((classifiers.train_classifiers, real, None, None, preset),
                     (trunk.train_trunk, frames, labels, None, whole)):
    steps.clear()
    try: train(*what, progress=False, device="cpu")
    except Enough: pass
    assert len(steps) == 8
found["first steps"] = gigabytes()
from aufacs_nb.estimation.storage import AUClassifiers
heads = AUClassifiers({12: trunk.build_classifier(preset).eval()}, preset)
before = in_file()
heads.predict(np.load(folder + "/frames.npy", mmap_mode="r")[:1500])  # 226 MB of the file
found["read and kept"] = in_file() - before
print(json.dumps(found))
"""


def test_a_set_of_thirty_gigabytes_is_never_copied(run_python, tmp_path):
    import json

    found = json.loads(run_python(f"import sys; sys.argv = ['', {str(tmp_path)!r}]\n" + HUGE).splitlines()[-1])
    print(found)
    assert found["first steps"] < 3 and found["read and kept"] < 0.1, found  # gigabytes


def test_every_way_to_hold_the_frames_trains_the_same(tmp_path):
    "An array, a memory map, rows of one, a set that stayed on disk."
    from aufacs_nb.estimation.resampling import ResampledSet, gather
    from aufacs_nb.tensors import Rows

    np.save(tmp_path / "frames.npy", FRAMES)
    on_disk, order = np.load(tmp_path / "frames.npy", mmap_mode="r"), np.array([3, 3, 0, 7, 12, 1, 5, 6])
    ways = [FRAMES[order], Rows(on_disk, order), gather(on_disk, order, 0), trunk.Pixels(on_disk, SLIM).select(order)]
    assert [type(way).__name__ for way in ways] == ["ndarray", "Rows", "Rows", "Pixels"]
    train = lambda way: train_classifier(way, LEVELS[order], None, SLIM, 1, epochs=1, progress=False, device="cpu")[0]
    made = [train(way) for way in ways]
    assert all(same(made[0], other) for other in made[1:])
    table = pd.DataFrame({"au": 12, "intensity": LEVELS[order]})
    stored = ResampledSet.open(ResampledSet(ways[1], table).save(tmp_path / "set"))
    np.testing.assert_array_equal(stored.frames, FRAMES[order])
