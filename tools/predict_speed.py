"""How many frames a second does an estimator read, which part takes how long, and how long does one photograph take?

    python tools/predict_speed.py [--model mesh18] [--film FILE] [--rounds 5] [--threads N] [--frames 320]
                                  [--out data_samples/results/speed.csv]

The default film is 640 × 360, H.264, of a virtual person who talks, smiles and moves the head (half a minute to draw;
--keep FILE keeps it for the next time). Each round reads it through `AUEstimator.stream` and then takes the way apart
on the same frames:

    decode     the film to RGB pixels
    find       detection, and following from frame to frame
    cut        of this: pictures cut for FaceMesh, once for each frame
    FaceMesh   of this: the network, once for each frame
    register   the mesh turned to the front (for a model of pixels: the registered frame)
    read       the AUs of what was registered
    table      what is left of the whole: pose and gaze, rows, columns

Printed are milliseconds per frame, medians of the rounds, by the clock and of the processor. The processor's time adds
up the cores and hardly changes when others work on the machine; the clock's does, so read both. The parts are taken
one after the other; in the whole, pictures are cut and read side by side on as many cores as `--threads` says
(PyTorch's number by default). At the end `python -m aufacs_nb predict` reads one photograph, imports included. `--out`
puts all of it into a table, in place of earlier rows of this model; run it while nothing else runs.

What others publish of their speed on processors is in `data_samples/results/speed_published.csv`, each with its source.
Compare with care: machines and films differ.
"""
import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from aufacs_nb.databases import timed_frames, write_video
from aufacs_nb.files import counted, write_atomically
from aufacs_nb.estimation.estimator import AUEstimator, meshes_of, pictures_of, registered_by
from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.registration.collections import FaceChoice, Stretch, find_stretch
from aufacs_nb.registration.detection import FaceMesh, cut_all, square_from_landmarks
from aufacs_nb.registration.tracking import STRETCH
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person
from aufacs_nb.tensors import one_thread

SIZE = 640, 360


def talking_head(frames: int):
    "Iterate over frames of a virtual person, 640 × 360, who talks, smiles, frowns and moves the head."
    person, wave = sample_person(5), lambda k, period: max(0., np.sin(k / period))
    for k in range(frames):
        levels = {26: 2 * abs(np.sin(k / 5)), 12: 4 * wave(k, 40), 1: 3 * wave(k, 23), 4: 3 * wave(k + 60, 31)}
        pose = 20 * np.sin(k / 30), 8 * np.sin(k / 47), 8 * np.sin(k / 37)
        yield render_person(person, levels, *pose, size=SIZE, seed=k)


def clocked(work) -> tuple:
    "(result, (seconds by the clock, seconds of the processor)) of a call."
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - clock, time.process_time() - processor)


def followed(landmarker, images, times, film) -> list:
    "The face of one person in each frame, or None, as `stream` finds it."
    choice, faces = FaceChoice(), []
    for start in range(0, len(images), STRETCH):
        some = slice(start, start + STRETCH)
        stretch = Stretch(str(film), list(range(len(images))[some]), images[some], times[some])
        faces += choice.choose(stretch, find_stretch(landmarker, stretch))
    return faces


def registered(reader, images, faces) -> list:
    "What the reader reads of each face: its frontal mesh, with its registered picture if that is wanted, or that alone."
    if isinstance(reader, MeshReader):
        return [(meshes_of([face]), pictures_of(reader, [image], [face])) for image, face in zip(images, faces)]
    return [registered_by("mesh", [image], [face]) for image, face in zip(images, faces)]


def read(reader, turned) -> list:
    "The AUs of what was registered, face by face, as the estimator reads them."
    with one_thread():
        if isinstance(reader, MeshReader):
            return [reader.predict(mesh, pictures=picture) for mesh, picture in turned]
        return [reader.predict(picture) for picture in turned]


def one_round(estimator, film) -> dict:
    "{part: (seconds by the clock, of the processor)} per frame."
    reader, mesh, took = estimator.classifiers, estimator.landmarker.mesh, {}
    frames, took["decode"] = clocked(lambda: list(timed_frames(film)))
    times, images = map(list, zip(*frames))
    faces, took["find"] = clocked(lambda: followed(estimator.landmarker, images, times, film))
    images, faces = zip(*[pair for pair in zip(images, faces) if pair[1]])
    squares = [square_from_landmarks(face.landmarks) for face in faces]
    parts = [slice(start, start + 8) for start in range(0, len(faces), 8)]
    cuts, took["· cut"] = clocked(lambda: [cut_all(images[k], squares[k], FaceMesh.SIZE) for k in parts])
    _, took["· FaceMesh"] = clocked(lambda: [mesh(some) for some in cuts])
    turned, took["register"] = clocked(lambda: registered(reader, images, faces))
    _, took["read"] = clocked(lambda: read(reader, turned))
    _, took["whole"] = clocked(lambda: list(estimator.stream(film)))
    rest = np.subtract(took["whole"], np.sum([took[name] for name in ("decode", "find", "register", "read")], 0))
    took = {name: np.array(seconds) / len(frames) for name, seconds in (took | {"table": rest}).items()}
    return {name: took[name] for name in (*(each for each in took if each != "whole"), "whole")}


def from_the_shell(photo: np.ndarray, model: str, folder: Path) -> tuple:
    "Seconds by the clock and of the processor of `aufacs predict` for one photograph, imports included."
    Image.fromarray(photo).save(folder / "photo.png")
    command = [sys.executable, "-m", "aufacs_nb", "predict", folder / "photo.png", "--model", model, "--out",
               folder / "au.csv", "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, (seconds, _) = clocked(lambda: subprocess.run(list(map(str, command)), check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def keep_rows(path: Path, table: pd.DataFrame, model: str) -> None:
    "Write a table of seconds by part as rows of `model` to a CSV file whose rows of other models stay."
    rows = table.round({"clock": 5, "processor": 5}).rename_axis("part").reset_index()
    rows.insert(0, "model", model)
    others = pd.read_csv(path).query("model != @model") if path.is_file() else rows[:0]
    whole = pd.concat([others, rows]) if len(others) else rows
    write_atomically(path, lambda part: whole.to_csv(part, index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mesh18")
    parser.add_argument("--film", type=Path, help="instead of the virtual person's")
    parser.add_argument("--keep", type=Path, help="where the virtual person's film is kept, or taken from")
    parser.add_argument("--frames", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a table (CSV) that gets the rows of this model, in seconds")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    estimator = AUEstimator.from_pretrained(a.model)
    with tempfile.TemporaryDirectory() as folder:
        film = a.film or a.keep or Path(folder) / "head.mp4"
        if not film.is_file():
            write_video(film, talking_head(a.frames), 30)
        one_round(estimator, film)  # compiles and warms up
        rounds = [one_round(estimator, film) for _ in range(a.rounds)]
        photo = next(image for _, image in timed_frames(film))
        shell = [from_the_shell(photo, a.model, Path(folder)) for _ in range(a.rounds)]
    table = pd.DataFrame({name: [statistics.median(one[name][k] for one in rounds) for k in (0, 1)]
                          for name in rounds[0]}, index=["clock", "processor"]).T
    load = round(os.getloadavg()[0], 1)
    print(f"{a.model}, {photo.shape[1]} × {photo.shape[0]}, {a.threads} of {os.cpu_count()} cores, load {load}: "
          f"milliseconds per frame, median of {counted(a.rounds, 'round')}")
    print((1000 * table).round(2).to_string())
    best = min(one["whole"][0] for one in rounds)
    print(f"{1 / table.clock['whole']:.0f} frames a second by the clock (best round {1 / best:.0f}), "
          f"{1 / table.processor['whole']:.0f} per second of one core")
    table.loc["photograph"] = clock, processor = list(map(statistics.median, zip(*shell)))
    print(f"one photograph from the shell: {clock:.1f} s by the clock (best {min(shell)[0]:.1f}), {processor:.1f} s of "
          "the processor")
    if a.out:
        size = f"{photo.shape[1]} x {photo.shape[0]}"
        keep_rows(a.out, table.assign(size=size, frames=a.frames, rounds=a.rounds, cores=a.threads, load=load), a.model)


if __name__ == "__main__":
    main()
