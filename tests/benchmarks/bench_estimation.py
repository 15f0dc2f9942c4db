"""How fast seven AUs are trained and one person is personalised, against the loops that one would write first.

    python tests/benchmarks/bench_estimation.py [--repeats 3]

Training: the slim network's second stage (one network per AU behind a frozen prefix, two augmented epochs, 40 frames
per level of each AU). One way goes through the AUs one after the other, from pixels. The other computes hidden maps once
and uses one process per core. Beside them stands the trunk of `small`, whose seven heads share all of it and every frame.

Personalisation: a loop over AUs and epochs from pixels, against `personalize`, for the layers and pictures of `small`
and for those of the paper. The plain ways get all cores, `personalize` takes one. All times are medians.
"""
import argparse
import time
import warnings
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from aufacs_nb.estimation.classifiers import train_classifiers
from aufacs_nb.estimation.storage import AUClassifiers, layers
from aufacs_nb.estimation.trunk import N_CLASSES, Pixels, build_classifier, single_head, train_classifier, train_trunk
from aufacs_nb.tensors import standardise
from aufacs_nb.experiments.conditions import PAPER_WAY
from aufacs_nb.facs import AUS, au_columns
from aufacs_nb.estimation.personalization import first_trained, personal_generator, personal_images, personalize
from aufacs_nb.experiments.stages import partition_frames
from aufacs_nb.presets import SMALL
from aufacs_nb.registration.collections import sample_registered
from aufacs_nb.estimation.resampling import real_set


def median_time(work, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def plain_training(balanced, preset, trunk):
    "One AU after the other, each epoch from pixels through the whole network."
    for i, au in enumerate(AUS):
        rows = np.flatnonzero(balanced.manifest.au == au)
        inputs = Pixels(balanced.frames[rows], preset)
        train_classifier(inputs, balanced.manifest.intensity.to_numpy()[rows], None, preset, i,
                         single_head(trunk, i), progress=False)


def training(repeats: int) -> dict:
    preset = replace(SMALL, cls_epochs=2)
    sample = partition_frames(sample_registered(), "Train", 224)
    with warnings.catch_warnings(action="ignore"):
        balanced = real_set(sample.frames, sample.manifest, per_intensity=40)
    trunk = build_classifier(preset, n_outputs=N_CLASSES * len(AUS))
    every, labels = balanced.frames[::len(AUS)], balanced.manifest[au_columns()].to_numpy()[::len(AUS)]
    shared = replace(preset, cls_members=1, cls_trunk_epochs=2)
    ways = {"plain": lambda: plain_training(balanced, preset, trunk),
            "maps": lambda: train_classifiers(balanced, None, None, preset, progress=False, trunk=trunk),
            "maps, 2 processes": lambda: train_classifiers(balanced, None, None, preset, progress=False, trunk=trunk,
                                                           n_jobs=2),
            "one trunk": lambda: train_trunk(every, labels, None, shared, progress=False)}
    ways["maps, 2 processes"]()  # the workers' start is paid once a session
    return {name: median_time(work, repeats) for name, work in ways.items()} | {"frames": len(balanced.frames)}


def plain_personalisation(classifiers, generator, frame):
    "For each AU and epoch: standardise the pictures, run the whole network, one step of Adam."
    preset = classifiers.preset
    pictures, _ = personal_images(generator, frame)
    everything = pictures.reshape(-1, *pictures.shape[2:])
    for i, au in enumerate(AUS):
        model = deepcopy(classifiers.models[au])
        behind = layers(model)[first_trained(model, preset.per_layers):]
        optimiser = torch.optim.Adam(behind.parameters(), preset.per_lr)
        frames = everything if preset.per_pictures == "all" else pictures[i]
        targets = torch.randint(0, 6, (len(frames),))
        for _ in range(preset.per_epochs):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(standardise(frames, preset.cls_size)), targets).backward()
            optimiser.step()


def personalisation(repeats: int) -> dict:
    classifiers = AUClassifiers.from_pretrained("small")
    generator, frame = personal_generator("small"), np.asarray(sample_registered().frames[0])
    paper = replace(classifiers.preset, **PAPER_WAY)
    found = {}
    for name, preset in (("small", classifiers.preset), ("paper", paper)):
        chosen = AUClassifiers(classifiers.models, preset, classifiers.card, classifiers.calibration)
        found[f"{name}, plain"] = median_time(lambda: plain_personalisation(chosen, generator, frame), repeats)
        found[f"{name}, ours"] = median_time(lambda: personalize(chosen, generator, frame), repeats)
    found["pictures alone"] = median_time(lambda: personal_images(generator, frame), repeats)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    trained, fitted = training(a.repeats), personalisation(a.repeats)
    frames = trained.pop("frames")
    print(f"training seven AUs, {frames} frames, two epochs (goal: 2 times plain)")
    table = pd.DataFrame({"s": trained})
    print(table.assign(times_plain=table.s["plain"] / table.s).round(2).to_string(), "\n")
    print("one person, seven AUs, 30 epochs (goal: 3 times plain)")
    print(pd.Series(fitted, name="s").round(2).to_string())
    for name in ("small", "paper"):
        print(f"{name}: {fitted[f'{name}, plain'] / fitted[f'{name}, ours']:.1f} times plain")


if __name__ == "__main__":
    main()
