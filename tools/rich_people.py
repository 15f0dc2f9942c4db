"""Photograph rich virtual people and register what is seen: the frames from which readers of 18 AUs are made.

    python tools/rich_people.py --shards runs/rich [--people 1000] [--seed 0] [--workers 2]

Every person is photographed in two lights, FRAMES pictures in each. The first of a light shows the face at rest, with
nothing before it; the others show what `simulation.rich.rich_moment` draws: 18 AUs in company and alone, speech and
one-sided actions, with glasses, hands, mugs, microphones and smear as in `simulate --script rich`. One file for each
person holds the registered picture, the registered mesh and the truth of every frame in which a face was found. An
interrupted run goes on where it stopped.
"""
import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core for each worker; set before NumPy is loaded

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from aufacs_nb.files import write_atomically
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.registration.frontal import frontal_pixels, register_face
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person, sample_scene
from aufacs_nb.simulation.rich import ALL_AUS, rich_moment
from aufacs_nb.simulation.things import HELD, WORN, draw_thing, make_things

LIGHTS, FRAMES = 2, 13              # of a person; frames of each light
SIZE, MESH, PICTURE = 256, 224, 128  # pixels: of the photograph, of the registered mesh and of the registered picture
HEAD, GAZE = (12, 9, 6), (8, 6)     # spread of yaw, pitch, roll and of gaze, degrees
SMEARED, SMEAR = .15, .4            # share of smeared frames, and how far things move while the shutter is open, cm


@lru_cache(1)
def landmarker() -> FaceLandmarker:
    "One for each process."
    torch.set_num_threads(1)
    return FaceLandmarker.from_pretrained()


def moment(rng, frame: int, worn) -> dict:
    "What a frame shows: levels, speech, sides, what is held, and smear; the first of a light is at rest."
    levels, speech, sides = rich_moment(rng)
    held, angle = draw_thing(rng, HELD), rng.uniform(0, 2 * np.pi)
    smear = min(1.2, rng.exponential(SMEAR)) * (rng.random() < SMEARED)
    if frame == 0:
        levels, speech, sides, held, smear = dict.fromkeys(ALL_AUS, 0), {}, {}, ("", 0), 0.
    return {"levels": levels, "speech": speech, "sides": sides, "worn": worn, "held": held,
            "smear": (smear * np.cos(angle), smear * np.sin(angle))}


def photograph(person, rng, scene, shown: dict, frame: int) -> np.ndarray:
    "The picture (SIZE, SIZE, 3) of a `moment`."
    (worn, worn_seed), (held, held_seed) = shown["worn"], shown["held"]
    return render_person(person, {au: level for au, level in shown["levels"].items() if level},
                         *rng.normal(0, HEAD), scene=scene, size=SIZE, seed=frame, gaze=tuple(rng.normal(0, GAZE)),
                         speech=shown["speech"], asymmetry=shown["sides"], motion=shown["smear"],
                         things=make_things(person, worn, held, (worn_seed, held_seed)))


def frames_of(person, rng):
    "(picture, moment, light) of all frames of a person."
    for light in range(LIGHTS):
        scene, worn = sample_scene(int(rng.integers(1 << 30)), "wide"), draw_thing(rng, WORN)
        for frame in range(FRAMES):
            shown = moment(rng, frame, worn)
            yield photograph(person, rng, scene, shown, frame), shown, light


def row(face, picture, shown: dict, light: int) -> dict:
    "What is kept of a frame."
    seen = register_face(picture, face.landmarks, PICTURE)
    return {"vertices": np.float32(frontal_pixels(face.landmarks, MESH)), "picture": seen.image,
            "pose": np.float32([seen.yaw, seen.pitch, seen.roll]), "light": light,
            "labels": [shown["levels"][au] for au in ALL_AUS], "neutral": not any(shown["levels"].values()),
            "worn": shown["worn"][0], "held": shown["held"][0], "smear": np.float32(np.hypot(*shown["smear"])),
            "speech": bool(shown["speech"]), "score": np.float32(face.score)}


def make_person(path: Path, seed: int, number: int) -> None:
    "Write the shard of a person: arrays with one row for each frame in which a face was found."
    rng, person = np.random.default_rng([seed, number, 18]), sample_person(seed * 1_000_003 + number)
    shots = list(frames_of(person, rng))
    faces = landmarker().find_batch([picture for picture, _, _ in shots])
    rows = [row(face, *shot) for face, shot in zip(faces, shots) if face]
    first = [k % FRAMES == 0 for k, face in enumerate(faces) if face]
    shard = {name: np.array([each[name] for each in rows]) for name in rows[0]} if rows else {}

    def write(part):
        with open(part, "wb") as file:
            np.savez(file, **shard, rest=np.array(first, bool))

    write_atomically(path, write)


def render(folder: Path, seed: int, people: int, workers: int, make=make_person) -> list:
    "The shards of all people, those that are missing made first, by `make(path, seed, number)` in processes."
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}_{number:05d}.npz" for number in range(people)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        work = [pool.submit(make, paths[number], seed, number) for number in missing]
        for done in tqdm(as_completed(work), total=len(work), desc="people", unit=""):
            done.result()
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("runs/rich"), help="Folder of the files.")
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="Processes that render.")
    a = parser.parse_args()
    start = time.time()
    paths = render(a.shards, a.seed, a.people, a.workers)
    print(f"{a.shards}: {len(paths)} people after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
