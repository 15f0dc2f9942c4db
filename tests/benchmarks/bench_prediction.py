"""Frames per second of `predict` from a 640 x 360 film on all cores, and what each stage takes alone.

    python tests/benchmarks/bench_prediction.py [--video FILE] [--rounds 3]

The default film is a clip of the sample database, repeated and set into 640 x 360. Stages are timed one after the
other on the same frames: decode, find (detection and following), register, classify. Medians of the rounds; the goal
is 20 frames a second for the whole on two cores without other work.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from aufacs_nb.databases import fera17_manifest, read_video, sample_database
from aufacs_nb.estimation.estimator import AUEstimator, registered_by
from aufacs_nb.estimation.sources import choose_faces, frame_stream
from aufacs_nb.registration.collections import FaceChoice
from aufacs_nb.databases import write_video

FRAMES, BATCH = 150, 32


def film(path: Path) -> Path:
    "The sample clip there and back again, 150 frames of 640 x 360."
    clips = fera17_manifest(sample_database())
    frames = list(read_video(clips[clips.partition == "Test"].path.iloc[0]))
    wide = []
    for frame in frames:
        canvas = Image.new("RGB", (640, 360), (90, 100, 110))
        canvas.paste(Image.fromarray(frame).resize((360, 360)), (140, 0))
        wide.append(np.asarray(canvas))
    there_and_back = wide + wide[::-1]
    write_video(path, [there_and_back[k % len(there_and_back)] for k in range(FRAMES)], 25)
    return path


def clocked(work):
    "(result, seconds) of a call."
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def one_round(estimator, path) -> dict:
    "Seconds of each stage and of the whole, per frame."
    found = {}
    items, found["decode"] = clocked(lambda: list(frame_stream(path)))
    batches = [items[i:i + BATCH] for i in range(0, len(items), BATCH)]
    choice = FaceChoice()
    faces, found["find"] = clocked(lambda: [choose_faces(batch, estimator.landmarker, choice) for batch in batches])
    pairs = [[(item.image, face) for item, face in zip(*pair) if face] for pair in zip(batches, faces)]
    registered, found["register"] = clocked(lambda: [
        registered_by(estimator.method, [image for image, _ in pair], [face for _, face in pair]) for pair in pairs])
    _, found["classify"] = clocked(lambda: [estimator.classifiers.predict(frames) for frames in registered])
    _, found["predict, whole"] = clocked(lambda: estimator.predict(path))
    return {name: seconds / len(items) for name, seconds in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    estimator = AUEstimator.from_pretrained("small")
    with tempfile.TemporaryDirectory() as folder:
        path = a.video or film(Path(folder) / "film.mp4")
        one_round(estimator, path)  # compiles and warms up
        rounds = [one_round(estimator, path) for _ in range(a.rounds)]
    ms = pd.Series({name: 1000 * statistics.median(r[name] for r in rounds) for name in rounds[0]}, name="ms a frame")
    print(f"{torch.get_num_threads()} threads of torch")
    print(ms.to_frame().assign(frames_per_second=1000 / ms).round(1).to_string())


if __name__ == "__main__":
    main()
