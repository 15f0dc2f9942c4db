"""Measure memory and time on a set as large as the published one: 210,000 registered frames of 224 px, 32 GB.

    python tools/scale_test.py [STEP ...] [--frames 210000] [--size 224] [--out data_samples/results/scale.csv]

With some STEPs, the rows of the others stay in the table.

The file of frames is made of holes, so it takes no disk; at the head of each partition stand the sample faces. People
and labels are random. Every step runs in a process of its own on one thread. `seconds` is the step without the imports,
`cpu_seconds` what it computed in that time (where the machine has other work, it waits in between);
`peak_mb` is the most memory that the process ever held, libraries included, and pages of files that it had read and not
given back. `anon_mb` is the most of it that belonged to no file, looked at fifty times a second: under pressure, the
system takes pages of files away, but not these. A step that held more than `--limit` megabytes ends the script with an
error. Nothing that is trained here is worth anything. On a memory-mapped set, a time says little about a disk: holes are read at the speed of memory.
"""
import argparse
import csv
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"Train": (0, 2 / 3), "Valid": (2 / 3, 0.8), "Test": (0.8, 1)}  # of the frames; people as in FERA 2017 (§4.1)
PEOPLE = {"Train": 41, "Valid": 20, "Test": 30}


def random_manifest(frames: int, seed: int = 0):
    "A table like that of registered FERA 2017: eight clips per person, seven frames in ten without each AU."
    import numpy as np
    import pandas as pd
    from aufacs_nb.facs import AUS, au_columns

    random, tables = np.random.default_rng(seed), []
    for partition, (low, high) in SHARES.items():
        n = round(high * frames) - round(low * frames)
        clip = np.arange(n) * min(PEOPLE[partition] * 8, max(1, n // 8)) // n
        levels = random.integers(1, 6, (n, len(AUS))) * (random.random((n, len(AUS))) < 0.3)
        tables.append(pd.DataFrame(levels.astype(np.float32), columns=au_columns()).assign(
            database="fera17", partition=partition, subject=[f"{partition[0]}{k:03d}" for k in clip // 8],
            session=[f"T{k}" for k in clip % 8], frame=np.arange(n), pose_yaw=0.0, pose_pitch=0.0, valid=True))
    return pd.concat(tables, ignore_index=True)


def make_set(folder: Path, frames: int, size: int) -> None:
    "Write frames.npy (holes, with the sample faces at the head of each partition) and manifest.parquet."
    import numpy as np
    from aufacs_nb.registration.collections import sample_registered
    from aufacs_nb.tensors import resize_frames

    table, faces = random_manifest(frames), resize_frames(sample_registered().frames, size)
    pixels = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, (frames, size, size, 3))
    for name in SHARES:
        rows = table.index[table.partition == name][:len(faces)]
        pixels[rows] = faces[:len(rows)]
    pixels.flush()
    table.to_parquet(folder / "manifest.parquet", index=False)


def partition(folder, name: str, size: int | None = None):
    "A partition of the set at its own size, or at another."
    from aufacs_nb.experiments.stages import partition_frames
    from aufacs_nb.registration.collections import open_registered

    registered = open_registered(folder)
    return partition_frames(registered, name, size or registered.frames.shape[1])


def values(part, **more):
    "Values of the `small` preset for these frames; of `tiny` where they are tiny."
    from dataclasses import replace
    from aufacs_nb.presets import SMALL, TINY

    return replace(TINY if part.frames.shape[1] < 96 else SMALL, **more)


def unit_labels(part):
    "Labels (N, 7) in [0, 1] of a partition."
    import numpy as np
    from aufacs_nb.facs import au_columns, intensity_to_unit

    return intensity_to_unit(part.manifest[au_columns()].to_numpy(np.float32))


def open_set(folder) -> int:
    "Open the set and choose its three partitions."
    return sum(len(partition(folder, name).frames) for name in SHARES)


def train_vgg16(folder, steps: int = 2) -> int:
    "The first steps of an epoch of the paper's classifier, fine-tuned from the third convolution on; random weights."
    from dataclasses import replace
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from aufacs_nb.estimation.trunk import build_classifier, train_classifier
    from aufacs_nb.presets import PAPER

    class Enough(Exception):
        "So many steps were taken."

    def count(*_):
        taken.append(1)
        if len(taken) == steps:
            raise Enough

    part, taken = partition(folder, "Train"), []
    preset = replace(PAPER, cls_size=part.frames.shape[1])
    hook = register_optimizer_step_post_hook(count)
    try:
        train_classifier(part.frames, part.manifest.AU12.to_numpy(float), None, preset, epochs=1, progress=False,
                         device="cpu", start=build_classifier(preset, None))
    except Enough:
        pass
    hook.remove()
    return len(taken) * preset.cls_batch


def draw_rows(folder) -> tuple:
    "Which frames make a batch of the paper's 25 pairs, without reading them: the median time of 200 such draws."
    sampler, seconds = pair_sampler(folder), []
    for _ in range(200):
        began = time.perf_counter()
        sampler.rows(25, same_share=0.5)
        seconds.append(time.perf_counter() - began)
    return 50, sorted(seconds)[100]


def pair_sampler(folder, **more):
    "Pairs of the Train partition."
    from aufacs_nb.databases import clip_names
    from aufacs_nb.generation.training import PairSampler

    part = partition(folder, "Train")
    return PairSampler(part.frames, unit_labels(part), part.manifest.subject.to_numpy(), values(part, **more),
                       clips=clip_names(part.manifest))


def draw_pairs(folder, batches: int = 200) -> int:
    "Batches of the paper's 25 pairs with their pictures, at the size of the frames."
    sampler = pair_sampler(folder, gen_batch=25)
    size = sampler.frames.shape[1]
    return sum(2 * len(sampler.batch(sampler.preset.gen_batch, size=size).source) for _ in range(batches))


def train_generator(folder, steps: int = 2) -> int:
    "Steps of the generator with every loss."
    from aufacs_nb.generation.training import GeneratorTrainer, train_step

    sampler = pair_sampler(folder, warmup_share=0.0)
    trainer = GeneratorTrainer(sampler, sampler.preset, steps, 1, device="cpu")
    for _ in range(steps):
        train_step(trainer)
    return 2 * steps * sampler.preset.gen_batch


def semantic(folder, pictures: int = 256) -> int:
    "Pairs of the paper's synthetic set, 5,000 per intensity per AU, and the first of its pictures."
    import pandas as pd
    from aufacs_nb.estimation.resampling import label_rows, semantic_pairs
    from aufacs_nb.facs import AUS, au_columns, intensity_to_unit
    from aufacs_nb.generation.networks import build_generator
    from aufacs_nb.generation.synthesis import synthesize

    part = partition(folder, "Train")
    pairs = pd.concat([semantic_pairs(part.manifest, au, 5000) for au in AUS], ignore_index=True)
    table = label_rows(part.manifest, pairs.assign(synthetic=True), AUS)[:pictures]
    labels = intensity_to_unit(table[au_columns()].to_numpy())
    generator = build_generator(values(part)).eval()
    return len(synthesize(generator, part.frames[table.source_row.to_numpy()], labels))


def real(folder, batches: int = 10) -> int:
    "The paper's balanced set of real frames, 5,000 per intensity per AU, and its first batches."
    from aufacs_nb.estimation.resampling import real_set

    part = partition(folder, "Train")
    chosen = real_set(part.frames, part.manifest, per_intensity=5000)
    return sum(len(chosen.frames[32 * k:32 * (k + 1)]) for k in range(batches))


def predict(folder, frames: int = 2000) -> int:
    "Estimates of the shipped classifiers."
    from aufacs_nb.estimation.storage import AUClassifiers
    from aufacs_nb.tensors import Rows

    part = partition(folder, "Test")
    return len(AUClassifiers.from_pretrained("small").predict(Rows(part.frames, range(min(frames, len(part.frames))))))


def paired(folder) -> int:
    "A whole partition at the generator's size, and the paired error of a generator on it."
    from dataclasses import replace
    from aufacs_nb.evaluation.image_quality import paired_error
    from aufacs_nb.generation.networks import build_generator
    from aufacs_nb.presets import TINY

    part = partition(folder, "Test")
    size = values(part).size
    small = partition(folder, "Test", size)
    error = paired_error(build_generator(replace(TINY, size=size)).eval(), small)
    assert error > 0, error
    return len(small.frames)


def near(folder, features: int = 20_000, width: int = 128) -> int:
    "Nearest neighbours of the features that a t-SNE is drawn of."
    import numpy as np
    from aufacs_nb.evaluation.features import neighbours

    table = partition(folder, "Train").manifest[:features]
    random = np.random.default_rng(0).normal(size=(len(table), width)).astype(np.float32)
    neighbours(random, table.AU12.to_numpy(float), table.subject.to_numpy())
    return len(table)


def list_folder(folder, links: int = 10_000) -> tuple:
    "A manifest of a folder of pictures, one name for each frame of the set; links to a few files."
    import os
    from PIL import Image
    from aufacs_nb.databases import folder_manifest
    from aufacs_nb.registration.collections import open_registered

    registered, picture = open_registered(folder), Path(folder) / "picture.png"
    with tempfile.TemporaryDirectory(dir=folder) as album:
        for k in range(len(registered.frames)):
            place = Path(album, f"person {k // links}", f"{k}.png")
            if k % links == 0:
                place.parent.mkdir()
                Image.fromarray(registered.frames[0]).save(picture := place)
            else:
                os.link(picture, place)
        began = time.perf_counter()
        return len(folder_manifest(album)), time.perf_counter() - began


STEPS = {"open": open_set, "folder of pictures": list_folder, "VGG16": train_vgg16, "rows of one batch": draw_rows, "200 batches": draw_pairs,
         "generator": train_generator, "semantic set": semantic, "real set": real, "predict": predict,
         "resize and paired error": paired, "neighbours": near}


STATUS = Path("/proc/self/status")


def status_mb(name: str) -> float:
    "What Linux says of this process under that name, in megabytes."
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024


class Anonymous(threading.Thread):
    "Looks at the memory that belongs to no file, until it is stopped; `most`: the most in MB of so many `looks`."

    def __init__(self, every: float = .02):
        super().__init__(daemon=True)
        self.every, self.most, self.looks, self.ended = every, 0.0, 0, threading.Event()

    def run(self):
        "Look, and wait."
        while STATUS.is_file() and not self.ended.wait(self.every):
            self.most = max(self.most, status_mb("RssAnon"))
            self.looks += 1

    def stop(self) -> float:
        "End, and give what was seen."
        self.ended.set()
        self.join()
        return self.most


def peak_mb() -> float:
    "The most memory that this process held so far, since it began to run this script."
    if STATUS.is_file():  # `ru_maxrss` would also count the process that started this one
        return status_mb("VmHWM")
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 1024)


def child(step: str, folder: str) -> dict:
    "One step in this process: frames that it handled, seconds, peaks."
    import torch
    import aufacs_nb.experiments.stages  # and with it everything that takes time to import
    torch.set_num_threads(1)
    watch = Anonymous()
    watch.start()
    began, busy = time.perf_counter(), time.process_time()
    done = STEPS[step](folder)
    busy = time.process_time() - busy
    frames, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - began)
    anonymous = watch.stop()
    return {"what": step, "frames": frames, "seconds": round(seconds, 5), "cpu_seconds": round(busy, 2),
            "peak_mb": round(peak_mb()), "anon_mb": round(anonymous)}


def measured(step: str, folder) -> dict:
    "One step in a process of its own."
    command = [sys.executable, __file__, "--child", step, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{step} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


SHOWN = "{what:25} {frames:8,} frames {seconds:10.4f} s ({cpu_seconds:.1f} s of a core) {peak_mb:6,} MB, {anon_mb:6,} MB of it anonymous"


def store(row: dict, path: Path) -> None:
    "Put the row of one step into the table; the rows of other steps stay."
    before = list(csv.DictReader(path.open(encoding="utf-8"))) if path.is_file() else []
    rows = [other for other in before if other["what"] != row["what"]] + [row]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, row)
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: list(STEPS).index(row["what"])))


def main(arguments=None):
    "Make the set, take the steps, write and print the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"all by default: {', '.join(STEPS)}")
    parser.add_argument("--frames", type=int, default=210_000)
    parser.add_argument("--size", type=int, default=224, help="side of the frames, pixels")
    parser.add_argument("--limit", type=int, default=6000, help="megabytes that a step may hold")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples/results/scale.csv")
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.child:
        return print(json.dumps(child(*a.child)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_set(Path(folder), a.frames, a.size)
        for step in a.steps or STEPS:
            rows.append(measured(step, folder))
            print(SHOWN.format(**rows[-1]), flush=True)
            store(rows[-1], a.out)
    over = [row["what"] for row in rows if row["peak_mb"] > a.limit]
    if over:
        raise SystemExit(f"more than {a.limit} MB: {', '.join(over)}")


if __name__ == "__main__":
    main()
