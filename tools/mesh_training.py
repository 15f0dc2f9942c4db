"""Make the weights of `mesh18`: render rich virtual people, find their meshes, fit and judge a `MeshReader`.

    python tools/mesh_training.py --out aufacs_nb/assets/mesh18 --shards runs/mesh18 [--people 400] [--workers 2]

Every person is photographed in two lights; the first frame of a light is neutral, the others show what
`simulation.rich.rich_moment` draws: 18 AUs in company and alone, speech, one-sided actions. The neutral frame of one
light is the zero of the other. Meshes are kept in --shards, one file for each person, so that an interrupted run goes
on where it stopped. Every tenth person is for tests alone; of the others every seventh chooses which AUs gain by the
zero of a clip. `--curve` fits fewer people, too, and says what more of them would bring.

The penalties are not those that read FaceMesh's meshes of rendered pictures best: with small ones a reader learns the
quirks of that pair. The head model's exact meshes are another source of landmarks. `--penalties` prints what readers
with several penalties say of either source, of people of neither's training; the defaults are good for both.
"""
import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core for each worker; set before NumPy is loaded

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich_people import render

from aufacs_nb.estimation.mesh import ALL_AUS, MeshReader, fit_mesh_reader
from aufacs_nb.estimation.zero import calm_zero, said_by
from aufacs_nb.evaluation.intervals import icc_table
from aufacs_nb.evaluation.scores import mean_icc
from aufacs_nb.files import write_atomically
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.registration.frontal import frontal_pixels, head_pose
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person, sample_scene
from aufacs_nb.simulation.face_model import facemesh_vertices, head_vertices, sample_identity
from aufacs_nb.simulation.rich import rich_moment

LIGHTS, FRAMES, SIZE = 2, 13, 224   # of a person; frames of each light; pixels
HEAD, GAZE = (12, 9, 6), (8, 6)     # spread of yaw, pitch, roll and of gaze, degrees
TEST, CHOOSE = 10, 7                # every how-manieth person is for tests, and of the rest for the choice of AUs


@lru_cache(1)
def landmarker() -> FaceLandmarker:
    "One for each process."
    torch.set_num_threads(1)
    return FaceLandmarker.from_pretrained()


def photograph(person, rng, scene, neutral: bool, frame: int) -> tuple:
    "A picture (SIZE, SIZE, 3) and the levels (18,) that it shows."
    levels, speech, sides = (dict.fromkeys(ALL_AUS, 0), {}, 0.) if neutral else rich_moment(rng)
    shown = {au: level for au, level in levels.items() if level}
    picture = render_person(person, shown, *rng.normal(0, HEAD), scene=scene, size=SIZE, seed=frame,
                            gaze=tuple(rng.normal(0, GAZE)), speech=speech, asymmetry=sides)
    return picture, [levels[au] for au in ALL_AUS]


def make_person(path: Path, seed: int, number: int) -> None:
    "Write the shard of a person: vertices, labels, light, neutral and pose of the frames with a face."
    rng, person = np.random.default_rng([seed, number]), sample_person(seed * 1_000_003 + number)
    rows = []
    for light in range(LIGHTS):
        scene = sample_scene(int(rng.integers(1 << 30)), "wide")
        rows += [(*photograph(person, rng, scene, frame == 0, frame), light, frame == 0) for frame in range(FRAMES)]
    pictures, labels, lights, neutral = zip(*rows)
    found = landmarker().find_batch(list(pictures))
    seen = [k for k, face in enumerate(found) if face]
    meshes = [frontal_pixels(found[k].landmarks, SIZE) for k in seen]
    poses = [head_pose(found[k].landmarks) for k in seen]
    shard = {"vertices": np.array(meshes, np.float32).reshape(-1, 468, 3),
             "pose": np.array(poses, np.float32).reshape(-1, 3), "labels": np.array(labels)[seen],
             "light": np.array(lights)[seen], "neutral": np.array(neutral)[seen]}

    def write(path):
        with open(path, "wb") as file:
            np.savez(file, **shard)

    write_atomically(path, write)


def gather(paths) -> dict:
    "Frames of everybody with a neutral frame in both lights, as arrays; `other`: row of the other light's neutral."
    parts, start = [], 0
    for person, path in enumerate(paths):
        shard = dict(np.load(path))
        rest = {int(shard["light"][k]): k for k in np.flatnonzero(shard["neutral"])}
        if len(rest) == LIGHTS:
            other = np.array([rest[1 - light] for light in shard["light"].tolist()])
            parts.append({**shard, "other": start + other, "person": np.full(len(other), person)})
            start += len(other)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def select(data: dict, mask) -> dict:
    "The frames of some people, with `other` counted anew."
    place = np.cumsum(mask) - 1
    return {**{name: values[mask] for name, values in data.items()}, "other": place[data["other"][mask]]}


def read_three_ways(reader: MeshReader, data: dict) -> dict:
    "Estimates (N, 18) without a zero, with a neutral photograph, and with the zero of the clip for every AU."
    said, plain = said_by(reader, data["vertices"]), reader.predict(data["vertices"])
    clip = np.zeros_like(said)
    for person in np.unique(data["person"]):
        own = data["person"] == person
        clip[own] = calm_zero(plain[own], said[own])
    return {"none": plain, "photo": reader.predict(data["vertices"], zero=said[data["other"]]),
            "clip": reader.predict(data["vertices"], zero=clip)}


def exact_meshes(people: int, seed: int) -> dict:
    "As `gather`, meshes as they are, without a camera: a neutral one and FRAMES - 1 rich ones of each person."
    rng, rows = np.random.default_rng([seed, 1]), []
    for person in range(people):
        identity, first = sample_identity(seed * 1_000_003 + 500_000 + person), len(rows)
        for frame in range(FRAMES):
            levels, speech, sides = (dict.fromkeys(ALL_AUS, 0), {}, 0.) if frame == 0 else rich_moment(rng)
            head = head_vertices(identity, {au: n for au, n in levels.items() if n}, speech=speech, asymmetry=sides)
            mesh = frontal_pixels(facemesh_vertices(head) * [1, -1, -1], SIZE)
            rows.append((mesh, [levels[au] for au in ALL_AUS], person, first, frame == 0))
    return dict(zip(("vertices", "labels", "person", "other", "neutral"), map(np.array, zip(*rows))))


def fit(data: dict, alphas, **card) -> MeshReader:
    "A reader of frames; `clip_aus` is still empty."
    return fit_mesh_reader(data["vertices"], data["labels"], data["person"], data["other"], alphas, SIZE, **card)


def penalties(known: dict, sources: dict) -> pd.DataFrame:
    "Mean ICC without a zero and with a photograph, for several penalties and sources of meshes of other people."
    rows = []
    for alpha in (.001, .01, .1, .3, 1, 3, 10):
        reader = fit(known, (alpha, alpha))
        rows.append({"alpha": alpha} | {f"{source}, {way}": round(float(mean_icc(data["labels"], found)), 3)
                                        for source, data in sources.items()
                                        for way, found in read_three_ways(reader, data).items() if way != "clip"})
    return pd.DataFrame(rows)


def report(reader: MeshReader, data: dict) -> pd.DataFrame:
    "One row for each AU: ICC with interval three ways; with a photograph mean estimates at each level and at rest."
    ways = read_three_ways(reader, data)
    ways["clip"] = np.where(np.isin(ALL_AUS, reader.clip_aus), ways["clip"], ways["none"])
    table = pd.DataFrame({way: icc_table(data["labels"], found, data["person"], aus=ALL_AUS).icc
                          for way, found in ways.items()})
    for level in range(6):
        means = [found[truth == level].mean() if (truth == level).any() else np.nan
                 for found, truth in zip(ways["photo"].T, data["labels"].T)]
        table[f"at {level}"] = np.append(means, np.nanmean(means)).round(2)
    rest = ways["photo"][data["neutral"]].mean(0)
    return table.assign(rest=np.append(rest, rest.mean()).round(2))


def curve(data: dict, test: dict, alphas) -> pd.DataFrame:
    "Mean ICC over the people of `test`, with a neutral photograph and without, for readers of ever fewer people."
    people, rows = np.unique(data["person"]), []
    for share in (1 / 8, 1 / 4, 1 / 2, 1):
        part = select(data, np.isin(data["person"], people[:int(len(people) * share)]))
        ways = read_three_ways(fit(part, alphas), test)
        rows.append({"people": len(np.unique(part["person"])), "frames": len(part["labels"])} |
                    {way: round(float(mean_icc(test["labels"], ways[way])), 3) for way in ("none", "photo")})
    return pd.DataFrame(rows)


def train(paths, alphas, **card) -> tuple:
    "A reader, its report on people that it never saw, the frames it was fitted on, and those of the others."
    data = gather(paths)
    test = data["person"] % TEST == 0
    asked = ~test & (data["person"] % CHOOSE == 0)
    choosing = select(data, asked)
    ways = read_three_ways(fit(select(data, ~test & ~asked), alphas), choosing)
    gain = icc_table(choosing["labels"], ways["none"], choosing["person"], ways["clip"], ALL_AUS).difference
    known = select(data, ~test)
    counts = {"people": len(np.unique(known["person"])), "frames": len(known["labels"])}
    reader = fit(known, alphas, trained_on=counts, **card)
    reader = replace(reader, clip_aus=tuple(au for au, change in zip(ALL_AUS, gain) if change.low > 0))
    return reader, report(reader, select(data, test)), known, select(data, test)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the weights; the part is named `mesh`.")
    parser.add_argument("--shards", type=Path, default=Path("runs/mesh18"), help="Where meshes are kept.")
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--alphas", type=float, nargs=2, default=(1., .3),
                        help="Penalties of the regressions of meshes and of differences.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="Processes that render.")
    parser.add_argument("--curve", action="store_true", help="Print a learning curve, too.")
    parser.add_argument("--penalties", action="store_true", help="Print what other penalties would bring, too.")
    a = parser.parse_args()
    start = time.time()
    paths = render(a.shards, a.seed, a.people, a.workers, make_person)
    command = f"python tools/mesh_training.py --people {a.people} --seed {a.seed}"
    command += " --alphas {:g} {:g}".format(*a.alphas)
    reader, table, known, test = train(paths, tuple(a.alphas), command=command, seed=a.seed)
    shown = table.map(lambda value: f"{value:.2f}" if isinstance(value, (float, np.floating)) else str(value))
    print(shown.to_string(), f"AUs that gain by the zero of a clip: {reader.clip_aus}", sep="\n")
    exact = exact_meshes(30, a.seed)
    on_exact = {way: round(float(mean_icc(exact["labels"], found)), 3)
                for way, found in read_three_ways(reader, exact).items() if way != "clip"}
    print(f"mean ICC on exact meshes of 30 other people: {on_exact}")
    if a.curve:
        print(curve(known, test, tuple(a.alphas)).to_string(index=False))
    if a.penalties:
        print(penalties(known, {"found": test, "exact": exact}).to_string(index=False))
    scores = {way: {name: [round(float(number), 3) for number in entry] for name, entry in table[way].items()}
              for way in ("none", "photo", "clip")}
    counts = {"people": len(np.unique(test["person"])), "frames": len(test["labels"])}
    reader.save(a.out / "mesh", tested_on=counts, icc=scores, icc_on_exact_meshes=on_exact)
    print(f"{a.out / 'mesh'}: written after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
