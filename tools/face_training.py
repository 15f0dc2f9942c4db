"""Make the weights of `face18` from nothing: rich virtual people, a network of pixels, ridges of meshes, their mean.

    python tools/face_training.py --out aufacs_nb/assets/face18 --work runs/face18 [--people 800] [--epochs 10]

photographs rich virtual people (`tools/rich_people.py`, RICH/<seed>_<number>.npz), trains `estimation.pixels.PixelNetwork` on
eight tenths of them, lets a tenth choose the weight and the AUs that gain by the zero of a clip, and judges by the last
tenth, of which nobody knew anything. The neutral frame of one light is the zero of the other. The people who choose set
rest and gain of every AU, too, and so it was for the shipped weights. With `--shown 16` other people do so, who show
every AU alone, some in company, and nothing, as those of `tools/measure_levels.py` do, in clear view. A run that was
stopped goes on: people that are there are not photographed again, epochs that were done are not done again. `--weight`
takes a weight of pixels as given. `--rescale face18 --shown 16` trains nothing: it sets rest and gain of a reader anew,
and what clips gain.

With the default numbers that takes about half an hour on two cores: a quarter of an hour for the photographs, which use
both, and 17 minutes for the network, which uses one.

The end prints a table: ICC with interval three ways (no zero, a neutral photograph, the calm frames of the person), with
a photograph also the ICC of frames without hands, mugs, microphones and smear, the mean estimate at each true level,
and what faces at rest read.
"""
import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core for each worker; set before NumPy is loaded

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure_levels import Shot, level_shots, photograph, registered, shown, turned, write_shard
from rich_people import LIGHTS, MESH, landmarker, render

from aufacs_nb.estimation.mesh import ALL_AUS
from aufacs_nb.estimation.pixels import SIDE, FaceReader, fit_face_reader, rescaled, train_pixels
from aufacs_nb.estimation.zero import calm_zero, gaining_aus
from aufacs_nb.evaluation.intervals import icc_table
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.tensors import resize_frames

PART = {"test": 0, "choosing": 5}   # number of a person modulo 10; the others are known to the network
SHOWN = 16                          # people who set the scale
FIRST_SHOWN = 600_000               # added to the seed of a person who sets the scale: nobody else has it


def make_shown(path: Path, seed: int, number: int) -> None:
    "Write the shard of a person who sets the scale: two neutral photographs, then `level_shots` in two other lights."
    rng = np.random.default_rng([seed, FIRST_SHOWN, number])
    person = sample_person(seed * 1_000_003 + FIRST_SHOWN + number)
    scenes = rng.integers(1 << 30, size=4).tolist()
    shots = [Shot("neutral", levels=shown({}), scene=scene, **turned(rng)) for scene in scenes[:2]]
    shots += level_shots(rng, number, scenes[2:])
    pictures = [photograph(person, shot, k) for k, shot in enumerate(shots)]
    part = registered(pictures, landmarker().find_batch(pictures))
    kept = [shots[k] for k in part.pop("found")]
    write_shard(path, vertices=part["vertices"], picture=part["pictures"],
                labels=np.array([list(shot.levels.values()) for shot in kept]),
                neutral=np.array([shot.kind == "neutral" for shot in kept]))


def gather_shown(paths) -> dict | None:
    "Frames of the people who set the scale, as `rescaled` takes them; None of nobody."
    parts, start = [], 0
    for path in paths:
        shard = dict(np.load(path))
        assert shard["neutral"][0], f"{path}: no face in the first neutral photograph"
        moving = np.flatnonzero(~shard["neutral"])
        rows = np.append(0, moving)   # the first neutral photograph is everybody's zero
        parts.append({"vertices": shard["vertices"][rows], "pictures": shard["picture"][rows],
                      "labels": shard["labels"][rows], "neutral": np.full(len(rows), start)})
        start += len(rows)
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]} if parts else None


def gather(paths, part: str) -> dict:
    "Frames of some people with a neutral frame in both lights, as arrays; `neutral`: row of the other light's neutral."
    parts, start = [], 0
    for path in paths:
        number = int(path.stem.split("_")[1])
        if part != {0: "test", 5: "choosing"}.get(number % 10, "known"):
            continue
        shard = dict(np.load(path))
        rest = {int(shard["light"][k]): k for k in np.flatnonzero(shard["rest"])}
        if len(rest) == LIGHTS:
            if part == "known":
                shard["picture"] = np.asarray(resize_frames(shard["picture"], SIDE))
            other = start + np.array([rest[1 - light] for light in shard["light"].tolist()])
            names = {"vertices": "vertices", "pictures": "picture", "labels": "labels", "rest": "rest", "held": "held",
                     "smear": "smear", "worn": "worn", "pose": "pose"}
            parts.append({name: shard[key] for name, key in names.items()} |
                         {"neutral": other, "person": np.full(len(other), number)})
            start += len(other)
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def read_three_ways(reader: FaceReader, data: dict) -> dict:
    "Estimates (N, 18) without a zero, with a neutral photograph, and with the zero of the clip for every AU."
    ways = {"none": np.zeros((len(data["labels"]), len(ALL_AUS)), np.float32)}
    ways |= {"photo": ways["none"].copy(), "clip": ways["none"].copy()}
    for person in np.unique(data["person"]):
        own = np.flatnonzero(data["person"] == person)
        seen = data["vertices"][own], MESH
        said, pictures = reader.said(*seen, data["pictures"][own]), data["pictures"][own]
        ways["none"][own] = plain = reader.predict(*seen, pictures=pictures)
        ways["photo"][own] = reader.predict(*seen, zero=said[data["neutral"][own] - own[0]], pictures=pictures)
        ways["clip"][own] = reader.predict(*seen, zero=calm_zero(plain, said), pictures=pictures)
    return ways


def report(reader: FaceReader, data: dict, ways: dict) -> pd.DataFrame:
    "One row for each AU, see the description above."
    clip = np.where(np.isin(ALL_AUS, reader.clip_aus), ways["clip"], ways["none"])
    free = (data["held"] == "") & (data["smear"] == 0)
    table = pd.DataFrame({way: icc_table(data["labels"], found, data["person"], aus=ALL_AUS).icc
                          for way, found in {**ways, "clip": clip}.items()})
    table["photo, free"] = icc_table(data["labels"][free], ways["photo"][free], data["person"][free], aus=ALL_AUS).icc
    for level in range(6):
        means = [found[truth == level].mean() if (truth == level).any() else np.nan
                 for found, truth in zip(ways["photo"].T, data["labels"].T)]
        table[f"at {level}"] = np.append(means, np.nanmean(means)).round(2)
    for way in ("none", "photo"):
        rest = ways[way][data["rest"]].mean(0)
        table[f"rest, {way}"] = np.append(rest, rest.mean()).round(2)
    return table


def trained(paths, choosing: dict, work: Path, epochs: int, seed: int, weight, card: dict) -> FaceReader:
    "A reader from nothing but frames; its scale is set by the people who choose."
    start = time.time()

    def tell(network, epoch):
        print(f"epoch {epoch} of {epochs} after {time.time() - start:.0f} s", flush=True)

    known = gather(paths, "known")
    network = train_pixels(known["pictures"], known["labels"], known["neutral"], epochs, seed, work, after_epoch=tell)
    card["trained_on"] = {"people": len(np.unique(known["person"])), "frames": len(known["labels"])}
    card["calibrated_on"] = {"people": len(np.unique(choosing["person"])), "frames": len(choosing["labels"])}
    return fit_face_reader(network, known, choosing, size=MESH, weight=weight, card=card)


def finished(reader: FaceReader, showing: dict | None, choosing: dict, card: dict) -> FaceReader:
    "The reader with the scale of those who show it, if there are any, and the AUs that gain by the zero of a clip."
    if showing:
        reader = rescaled(reader, showing, MESH)
        card["calibrated_on"] = {"people": len(np.unique(showing["neutral"])), "frames": len(showing["labels"])}
    ways = read_three_ways(reader, choosing)
    gain = gaining_aus(choosing["labels"], ways["none"], ways["clip"], choosing["person"], ALL_AUS)
    return replace(reader, clip_aus=gain, card={**reader.card, **card})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the weights; the part is named `face`.")
    parser.add_argument("--work", type=Path, default=Path("runs/face18"), help="Where finished epochs are kept.")
    parser.add_argument("--rich", type=Path, default=Path("runs/rich"), help="Where photographed people are kept.")
    parser.add_argument("--shown-shards", type=Path, default=Path("runs/shown"), help="Of those who set the scale.")
    parser.add_argument("--people", type=int, default=800)
    parser.add_argument("--shown", type=int, default=0, help=f"People who set the scale, {SHOWN} are a good number.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--weight", type=float, help="Of pixels; without it the least that is enough.")
    parser.add_argument("--rescale", metavar="READER", help="A reader whose scale is set anew, by name or folder.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="Processes that photograph.")
    a = parser.parse_args()
    if a.rescale and not a.shown:
        parser.error(f"--rescale wants people who set the scale; give their number, such as --shown {SHOWN}.")
    torch.set_num_threads(1)
    a.work.mkdir(parents=True, exist_ok=True)
    start = time.time()
    paths = render(a.rich, a.seed, a.people, a.workers)
    showing = gather_shown(render(a.shown_shards, a.seed, a.shown, a.workers, make_shown)) if a.shown else None
    command = f"python tools/face_training.py --people {a.people} --epochs {a.epochs} --seed {a.seed}"
    command += f" --shown {a.shown}" if a.shown else ""
    command += "" if a.weight is None else f" --weight {a.weight:g}"
    card, choosing, test = {"command": command, "seed": a.seed}, gather(paths, "choosing"), gather(paths, "test")
    reader = (FaceReader.from_pretrained(a.rescale) if a.rescale else
              trained(paths, choosing, a.work, a.epochs, a.seed, a.weight, card))
    reader = finished(reader, showing, choosing, card)
    table = report(reader, test, read_three_ways(reader, test))
    shown = table.map(lambda value: f"{value:.2f}" if isinstance(value, (float, np.floating)) else str(value))
    print(shown.to_string(), f"AUs that gain by the zero of a clip: {reader.clip_aus}", sep="\n")
    print(f"weight of pixels {reader.weight}, from {reader.card['icc_by_weight']}")
    scores = {way: {name: [round(float(number), 3) for number in entry] for name, entry in table[way].items()}
              for way in ("none", "photo", "clip", "photo, free")}
    counts = {"people": len(np.unique(test["person"])), "frames": len(test["labels"])}
    reader.save(a.out / "face", tested_on=counts, icc=scores)
    print(f"{a.out / 'face'}: written after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
