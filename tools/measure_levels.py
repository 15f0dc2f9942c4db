"""What does an intensity mean? Virtual people whom no reader knows show every AU at every level.

    python tools/measure_levels.py --model face18 [--shards runs/levels] [--out data_samples/results] [--workers 2]

photographs 60 people as follows, and 24 others who show emotions. Every person is photographed at rest in one light,
which is the zero of all frames in other light. No person is one of those that `tools/rich_people.py` or
`tools/mesh_training.py` made for training: their seeds are small numbers, these start at FIRST.

- alone: every AU at A to E; company: every AU with those it is seen with; rest: nothing at all
- moments: the same five rich moments of a person, once straight and even, then turned, in other light, with something
  before the face
- emotions: six prototypes at C to E
- layouts: virtual DISFA and UNBC Pain, as `aufacs simulate --script rich` writes them, read from their files

Skins, ages and sexes are compared over all frames but those at rest. What the reader says goes into `levels.csv` and
`levels_*.csv`, which nbs/experiments/intensities.ipynb shows. Intervals are drawn over people. Photographs are kept in
--shards, one file for each person, so that a run that was stopped goes on and another --model reads the same frames.
"""
import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # one core for each worker; set before NumPy is loaded

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from aufacs_nb.databases import manifest
from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.estimation.sources import found_faces
from aufacs_nb.estimation.zero import calm_zero, for_aus
from aufacs_nb.evaluation.intervals import DRAWN, icc_table
from aufacs_nb.facs import AU_SETS, LEVELS, au_columns
from aufacs_nb.files import counted, write_atomically
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.registration.frontal import frontal_pixels, register_face
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import DOMAINS, render_person, sample_scene
from aufacs_nb.simulation.rich import TOGETHER, possible_levels, rich_moment
from aufacs_nb.simulation.simulate import plan_clips, read_plan, read_truth, simulate_disfa, simulate_unbc, truth_path
from aufacs_nb.simulation.things import glasses, hand, microphone, mug
from aufacs_nb.simulation.time_courses import ALL_AUS

ROOT = Path(__file__).resolve().parents[1]
FIRST, PEOPLE, ACTORS = 90_000_000, 60, 24     # seed of the first person, people, and people who show emotions
COMPANY, RESTS, MOMENTS = 30, 6, 5             # frames of each person, and moments that every condition repeats
SIZE, MESH, PICTURE = 256, 224, 128            # pixels: of the photograph, of the registered mesh and picture
HEAD, GAZE = (8, 6, 4), (8, 6)                 # spread of yaw, pitch, roll and of gaze, degrees
GOAL, REST_GOAL = .3, .5                       # levels that a mean may be off; what a face at rest reads at most
DRAWS = 1000                                   # of the bootstrap over people

WIDE = DOMAINS["wide"]
LIGHTS = {"wide": WIDE,
          "even": replace(WIDE, ambient=(.55, .7), key=(.3, .45), azimuth=(0, 25)),
          "hard": replace(WIDE, ambient=(.15, .25), key=(.8, 1.), azimuth=(15, 45)),
          "from the side": replace(WIDE, ambient=(.15, .3), key=(.8, 1.), azimuth=(60, 75)),
          "dark": replace(WIDE, ambient=(.08, .14), key=(.08, .15), noise=(.015, .03))}
BINS = {"0-10": (0, 10), "10-20": (10, 20), "20-30": (20, 30), "30-45": (30, 45)}    # degrees, either way
BEFORE = {"glasses": glasses, "sunglasses": partial(glasses, dark=True), "microphone": microphone, "mug": mug,
          "hand at the mouth": lambda person, seed: hand(person, "mouth", 15 + seed % 60, seed % 5, seed % 2 > 0)}
SMEAR = .8                                     # cm that the face moves while the shutter is open
STRAIGHT = "straight, nothing before it"
CONDITIONS = [("pose", STRAIGHT), *(("yaw", name) for name in list(BINS)[1:]),
              *(("pitch", name) for name in list(BINS)[1:]), *(("light", name) for name in list(LIGHTS)[1:]),
              *(("before the face", name) for name in [*BEFORE, "smear"])]
# As EMFACS has them, less AU16, which we lack, and with AU25 where the jaw parts the lips.
EMOTIONS = {"surprise": (1, 2, 5, 25, 26), "joy": (6, 12), "anger": (4, 5, 7, 23), "disgust": (9, 15),
            "sadness": (1, 4, 15), "fear": (1, 2, 4, 5, 20, 25, 26)}
SKINS = {"light": (0, .4), "medium": (.4, .6), "dark": (.6, 1.01)}  # `Palette.melanin`
AGES = {"18-35": (0, 35), "35-55": (35, 55), "55-80": (55, 81)}     # `Identity.years`
TRAITS = ("melanin", "age", "sex")
LAYOUT_PEOPLE, LAYOUT_FRAMES, LAYOUT_SEED = 14, 36, 90_018
LAYOUTS = {"disfa": partial(simulate_disfa, size=(512, 384)), "unbc": partial(simulate_unbc, sessions=1)}
WAYS = ("none", "photograph")


class Shot(NamedTuple):
    "What one photograph shows, and under which circumstances."
    kind: str                    # neutral, rest, alone, company, moments or emotion
    factor: str = ""             # of moments: what is varied
    name: str = ""               # of moments: how; of emotions: which
    levels: dict = {}
    head: tuple = (0., 0., 0.)   # yaw, pitch, roll, degrees
    gaze: tuple = (0., 0.)
    light: str = "wide"
    scene: int = 0               # seed
    before: str = ""
    thing: int = 0               # seed
    speech: dict = {}
    sides: dict = {}
    smear: tuple = (0., 0.)      # cm


def turned(rng) -> dict:
    "A head that is turned a little, and eyes that wander."
    return {"head": tuple(rng.normal(0, HEAD).tolist()), "gaze": tuple(rng.normal(0, GAZE).tolist())}


def shown(levels: dict) -> dict:
    "Intensities of all 18 AUs that lids and lips allow, the lips parted where jaw or upper lip part them."
    return possible_levels(dict.fromkeys(ALL_AUS, 0) | levels, {})


def in_company(rng, au: int, level: int) -> dict:
    "An AU at a level among those of one group that it is seen in, each of them at most a level off."
    groups = [group for group in TOGETHER if au in group and len(group) > 1]
    others = groups[rng.integers(len(groups))]
    return shown({other: int(np.clip(level + rng.integers(-1, 2), 1, 5)) for other in others} | {au: level})


def level_shots(rng, number: int, scenes) -> list:
    "Every AU alone at every level, some in company, and the face at rest."
    pairs = [(au, level) for au in ALL_AUS for level in range(1, 6)]
    first = number * COMPANY
    some = [pairs[k * 7 % len(pairs)] for k in range(first, first + COMPANY)]  # 7: neighbours are other AUs
    asked = [("alone", shown({au: level})) for au, level in pairs]
    asked += [("company", in_company(rng, au, level)) for au, level in some]
    asked += [("rest", shown({}))] * RESTS
    return [Shot(kind, levels=levels, scene=int(rng.choice(scenes)), **turned(rng)) for kind, levels in asked]


def circumstances(rng, factor: str, name: str, scene: int) -> dict:
    "Fields of a `Shot` that a condition fixes."
    seed, way = int(rng.integers(1 << 30)), rng.choice([-1, 1], 2)
    yaw, pitch = rng.uniform(0, 10, 2)
    yaw = rng.uniform(*BINS[name]) if factor == "yaw" else yaw
    pitch = rng.uniform(*BINS[name]) if factor == "pitch" else pitch
    head = (float(yaw * way[0]), float(pitch * way[1]), float(rng.normal(0, 4)))
    angle = rng.uniform(0, 2 * np.pi)
    smear = (SMEAR * np.cos(angle), SMEAR * np.sin(angle)) if name == "smear" else (0., 0.)
    return {"head": head, "gaze": tuple(rng.normal(0, GAZE).tolist()), "scene": scene, "thing": seed, "smear": smear,
            "light": name if factor == "light" else "wide",
            "before": name if factor == "before the face" and name != "smear" else ""}


def moment_shots(rng, scenes) -> list:
    "The same rich moments under every condition."
    shots = []
    for _ in range(MOMENTS):
        levels, speech, sides = rich_moment(rng)
        scene = int(rng.choice(scenes))
        shots += [Shot("moments", factor, name, levels, speech=speech, sides=sides,
                       **circumstances(rng, factor, name, scene)) for factor, name in CONDITIONS]
    return shots


def emotion_shots(rng, scenes) -> list:
    "Six prototypes at C, D and E."
    return [Shot("emotion", LEVELS[level], name, shown(dict.fromkeys(aus, level)), scene=int(rng.choice(scenes)),
                 **turned(rng)) for name, aus in EMOTIONS.items() for level in (3, 4, 5)]


def shots_of(number: int) -> list:
    "All photographs of a person; the first are neutral, in light of their own. Numbers from PEOPLE on show emotions."
    rng = np.random.default_rng([FIRST, number])
    scenes = rng.integers(1 << 30, size=5).tolist()
    neutral = [Shot("neutral", levels=shown({}), scene=scene, **turned(rng)) for scene in scenes[:2]]
    if number >= PEOPLE:
        return neutral + emotion_shots(rng, scenes[2:])
    return neutral + level_shots(rng, number, scenes[2:]) + moment_shots(rng, scenes[2:])


def photograph(person, shot: Shot, seed: int) -> np.ndarray:
    "The picture (SIZE, SIZE, 3) of a `Shot`; seed: of its noise."
    things = BEFORE[shot.before](person, shot.thing) if shot.before else ()
    return render_person(person, {au: level for au, level in shot.levels.items() if level}, *shot.head,
                         scene=sample_scene(shot.scene, LIGHTS[shot.light]), size=SIZE, gaze=shot.gaze, seed=seed,
                         asymmetry=shot.sides, speech=shot.speech, things=things, motion=shot.smear)


@lru_cache(1)
def landmarker() -> FaceLandmarker:
    "One for each process."
    torch.set_num_threads(1)
    return FaceLandmarker.from_pretrained()


def registered(pictures, faces) -> dict:
    "Registered meshes and pictures of the frames with a face, and which those are."
    seen = [k for k, face in enumerate(faces) if face]
    marks = [faces[k].landmarks for k in seen]
    meshes = np.array([frontal_pixels(each, MESH) for each in marks], np.float32).reshape(-1, 468, 3)
    views = [register_face(pictures[k], each, PICTURE).image for k, each in zip(seen, marks)]
    return {"found": np.array(seen, int), "vertices": meshes,
            "pictures": np.array(views, np.uint8).reshape(-1, PICTURE, PICTURE, 3)}


def write_shard(path: Path, **arrays) -> None:
    "Arrays to `path`, whole or not at all."
    def write(part):
        with open(part, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


def make_person(path: Path, number: int) -> None:
    "Photograph a person; everything but the pictures can be had again from `shots_of`."
    person, shots = sample_person(FIRST + number), shots_of(number)
    pictures = [photograph(person, shot, k) for k, shot in enumerate(shots)]
    write_shard(path, **registered(pictures, landmarker().find_batch(pictures)), melanin=person.palette.melanin,
                age=person.identity.years, sex=person.identity.traits["sex"])


def make_layout(path: Path, name: str, seed: int = LAYOUT_SEED, subjects: int = LAYOUT_PEOPLE,
                frames: int = LAYOUT_FRAMES) -> None:
    "Write a virtual database beside `path`, and there what FaceMesh finds in its files, with the labels in them."
    root = LAYOUTS[name](path.with_suffix(""), subjects=subjects, frames=frames, seed=seed, script="rich",
                         progress=False)
    plan, parts = read_plan(root), []
    table = manifest(root, name)
    for clip in plan_clips(plan):
        truth, own = read_truth(truth_path(root, plan, clip)), table[table.subject == clip.subject]
        source = own.path.iloc[0] if own.path.nunique() == 1 else own.path.tolist()
        items, faces = zip(*found_faces(source, landmarker()))
        part = registered([item.image for item in items], [own[0] if own else None for own in faces])
        kept = part.pop("found")
        free = (truth["held"] == "") & (np.abs(truth["smear"]).max(1) == 0)
        parts.append(part | {"labels": own[au_columns(AU_SETS[name])].to_numpy(float)[kept], "free": free[kept],
                             "light": truth["light"][kept], "rest": ~truth["intensity"].any(1)[kept],
                             "subject": np.full(len(kept), clip.subject)})
    write_shard(path, **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def render(folder: Path, workers: int) -> None:
    "Make all shards that are missing."
    jobs = [(make_person, folder / f"person_{number:05d}.npz", number) for number in range(PEOPLE + ACTORS)]
    jobs = [(make_layout, folder / f"{name}.npz", name) for name in LAYOUTS] + jobs
    missing = [job for job in jobs if not job[1].is_file()]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        work = [pool.submit(*job) for job in missing]
        for done in tqdm(as_completed(work), total=len(work), desc="people", unit=""):
            done.result()


def open_reader(name_or_folder):
    "The reader of faces, else the reader of meshes, of that name or folder; or WeightsError."
    try:
        from aufacs_nb.estimation.pixels import FaceReader
        return FaceReader.from_pretrained(name_or_folder)
    except WeightsError:
        return MeshReader.from_pretrained(name_or_folder)


def read_person(reader, number: int, shard) -> pd.DataFrame:
    "One row for each photograph: what it is, `true` and estimated levels; NaN where no face was found."
    shots, seen, found = shots_of(number), (shard["vertices"], MESH), shard["found"]
    zero = reader.said(*seen, pictures=shard["pictures"])[0]     # of the first neutral photograph with a face
    assert shots[found[0]].kind == "neutral", f"person {number}: no face in the neutral photographs"
    ways = {"none": reader.predict(*seen, pictures=shard["pictures"]),
            "photograph": reader.predict(*seen, zero=zero, pictures=shard["pictures"])}
    rows = pd.DataFrame([shot[:3] for shot in shots], columns=["kind", "factor", "name"]).assign(person=number)
    rows = rows.assign(pitch=[shot.head[1] for shot in shots], **{name: float(shard[name]) for name in TRAITS})
    blocks = {"true": np.array([[shot.levels[au] for au in ALL_AUS] for shot in shots], float)}
    for way, read in ways.items():
        blocks[way] = np.full((len(shots), len(ALL_AUS)), np.nan)
        blocks[way][found] = read
    wide = [pd.DataFrame(values, columns=[f"{block} {au}" for au in au_columns(ALL_AUS)])
            for block, values in blocks.items()]
    return pd.concat([rows, *wide], axis=1)[lambda table: table.kind != "neutral"]


def values_of(rows: pd.DataFrame, block: str) -> np.ndarray:
    "The columns (n, 18) of a block: true, none or photograph."
    return rows[[f"{block} {au}" for au in au_columns(ALL_AUS)]].to_numpy(float)


def draw_counts(people: int, n: int = DRAWS, seed: int = 0) -> np.ndarray:
    "How often each person is in each draw, (1 + n, people); first everybody once."
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), n)
    return np.vstack([np.ones(people, int), drawn])


def drawn_means(values, code, counts) -> np.ndarray:
    "The mean of values (n,) of people `code` (n,) in every draw, (1 + n,); NaN where nobody has any."
    total, size = (counts @ np.bincount(code, weights, counts.shape[1]) for weights in (values, np.ones(len(values))))
    with np.errstate(invalid="ignore"):
        return np.where(size > 0, total / size, np.nan)


def ends(drawn, name: str) -> dict:
    "A score and the ends of its interval, as three columns; drawn: (1 + n,), the first of everybody."
    known = drawn[1:][~np.isnan(drawn[1:])]
    low, high = np.quantile(known, (.025, .975)) if len(known) > len(drawn) / 2 else (np.nan, np.nan)
    return {name: drawn[0], f"{name} low": low, f"{name} high": high}


def level_table(rows: pd.DataFrame) -> pd.DataFrame:
    "Mean estimates at every true level: alone, in company, both, and in moments of all conditions."
    straight = (rows.kind == "moments") & (rows["name"] == STRAIGHT)
    sets = {"alone": rows.kind == "alone", "company": (rows.kind == "company") | straight}
    sets |= {"both": sets["alone"] | sets["company"], "moments": rows.kind == "moments"}
    counts, table = draw_counts(rows.person.nunique()), []
    code = np.unique(rows.person, return_inverse=True)[1]
    for context, mask in sets.items():
        truth = values_of(rows, "true")
        for way in WAYS:
            read = values_of(rows, way)
            for k, au in enumerate(au_columns(ALL_AUS)):
                for level in range(6):
                    own = mask.to_numpy() & (truth[:, k] == level) & ~np.isnan(read[:, k])
                    said = read[own, k]
                    spread = np.quantile(said, (.1, .9)) if len(said) else (np.nan, np.nan)
                    table.append({"context": context, "zero": way, "au": au, "level": level, "frames": len(said),
                                  **ends(drawn_means(said, code[own], counts), "mean"), "p10": spread[0],
                                  "p90": spread[1]})
    return pd.DataFrame(table)


def rest_table(rows: pd.DataFrame) -> pd.DataFrame:
    "What faces at rest read: mean, ninth decile and share below REST_GOAL of each AU, and of all at once."
    rest = rows[(rows.kind == "rest") & rows["none AU01"].notna()]
    code, table = np.unique(rest.person, return_inverse=True)[1], []
    counts = draw_counts(rest.person.nunique())
    for way in WAYS:
        read = values_of(rest, way)
        for au, said in [*zip(au_columns(ALL_AUS), read.T), ("all", read.max(1))]:
            table.append({"zero": way, "au": au, "frames": len(said), "mean": said.mean(),
                          "p90": np.quantile(said, .9),
                          **ends(drawn_means((said < REST_GOAL).astype(float), code, counts), "below")})
    return pd.DataFrame(table)


def drawn_scores(rows: pd.DataFrame, way: str, metric: str, people, counts) -> np.ndarray:
    "A metric of `DRAWN` of each AU, and their mean as the last, in every draw: (19, 1 + n)."
    seen = rows[rows[f"{way} AU01"].notna()]
    if seen.empty:
        return np.full((len(ALL_AUS) + 1, len(counts)), np.nan)
    code = np.searchsorted(people, seen.person)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.array([DRAWN[metric](counts, code, truth, read, 1)
                           for truth, read in zip(values_of(seen, "true").T, values_of(seen, way).T)])
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.vstack([scores, np.where(known, scores, 0).sum(0) / known.sum(0)])


def bins_of(rows: pd.DataFrame) -> dict:
    "{factor: {bin: mask of rows}}, the first bin of each the one that others are compared with."
    straight = rows["name"] == STRAIGHT
    named = {factor: {name: (rows.factor == factor) & (rows["name"] == name) for f, name in CONDITIONS if f == factor}
             for factor in dict.fromkeys(factor for factor, _ in CONDITIONS[1:])}
    first = {"yaw": "0-10", "pitch": "0-10", "before the face": "nothing"}
    bins = {factor: ({first[factor]: straight} if factor in first else {}) | own for factor, own in named.items()}
    between = lambda trait, edges: {name: (rows[trait] >= low) & (rows[trait] < high)
                                    for name, (low, high) in edges.items()}
    steep = (rows.factor == "pitch") & (rows.pitch.abs() >= 20)
    bins["pitch of 20-45"] = {"up": steep & (rows.pitch < 0), "down": steep & (rows.pitch > 0)}
    bins |= {"skin": between("melanin", SKINS), "age": between("age", AGES)}
    return bins | {"sex": {"women": rows.sex <= .5, "men": rows.sex > .5}}


def failure_table(rows: pd.DataFrame) -> pd.DataFrame:
    "ICC and mean absolute error by circumstances and people, and by how much they differ from the first bin."
    moving, table = rows[rows.kind.isin(["alone", "company", "moments"])], []
    people = np.unique(moving.person)
    counts = draw_counts(len(people))
    for factor, bins in bins_of(moving).items():
        for way in WAYS:
            first = None
            for name, mask in bins.items():
                own = moving[mask]
                drawn = {metric: drawn_scores(own, way, metric, people, counts) for metric in ("icc", "mae")}
                first = first or drawn
                for k, au in enumerate([*au_columns(ALL_AUS), "mean"]):
                    if way == "photograph" or au == "mean":
                        table.append({"factor": factor, "bin": name, "zero": way, "au": au,
                                      "people": own.person.nunique(), "frames": len(own),
                                      "found": own["none AU01"].notna().mean(), **ends(drawn["icc"][k], "icc"),
                                      **ends(drawn["icc"][k] - first["icc"][k], "icc change"),
                                      **ends(drawn["mae"][k], "mae"),
                                      **ends(drawn["mae"][k] - first["mae"][k], "mae change")})
    return pd.DataFrame(table)


def layout_ways(reader, shard) -> dict:
    "Estimates (n, 18) of a layout's frames without a zero, with a photograph in other light, and with the clip's zero."
    seen, pictures = (shard["vertices"], MESH), shard["pictures"]
    said, plain = reader.said(*seen, pictures=pictures), reader.predict(*seen, pictures=pictures)
    ways = {"none": plain, "photograph": plain.copy(), "clip": plain.copy()}
    for subject in np.unique(shard["subject"]):
        own = np.flatnonzero(shard["subject"] == subject)
        part, views = (shard["vertices"][own], MESH), pictures[own]
        calm = for_aus(calm_zero(plain[own], said[own]), reader.aus, reader.clip_aus)
        ways["clip"][own] = reader.predict(*part, zero=calm, pictures=views)
        rest, light = own[shard["rest"][own]], shard["light"]
        shots = [next((k for k in rest if light[k] != light[frame]), rest[0]) for frame in own]
        ways["photograph"][own] = reader.predict(*part, zero=said[shots], pictures=views)
    return ways


def as_coded(read, aus, database: str) -> np.ndarray:
    "Estimates (n, 18) of the AUs that a database codes, as it codes them: UNBC's closed eyes are 0 or 1."
    coded = read[:, [ALL_AUS.index(au) for au in aus]].astype(float)
    if database == "unbc":
        coded[:, aus.index(43)] = coded[:, aus.index(43)] >= 3.5
    return coded


def layout_table(reader, folder: Path) -> pd.DataFrame:
    "ICC with intervals of the AUs that DISFA and UNBC code, on virtual people in their layouts."
    table = []
    for database in LAYOUTS:
        shard, aus = dict(np.load(folder / f"{database}.npz")), AU_SETS[database]
        ways = layout_ways(reader, shard)
        for frames, mask in (("all", np.full(len(shard["free"]), True)), ("nothing before the face", shard["free"])):
            for way, read in ways.items():
                found = icc_table(shard["labels"][mask], as_coded(read, aus, database)[mask], shard["subject"][mask],
                                  aus=aus, n=DRAWS).icc
                table += [{"database": database, "shown": frames, "zero": way, "au": au, "frames": int(mask.sum()),
                           "people": len(np.unique(shard["subject"])), "icc": score.value, "icc low": score.low,
                           "icc high": score.high} for au, score in found.items()]
    return pd.DataFrame(table)


def strongest_are(read, aus) -> np.ndarray:
    "Of each frame the share of the prototype's AUs among as many AUs that read (n, 18) strongest."
    columns = [ALL_AUS.index(au) for au in aus]
    return np.isin(np.argsort(-read, 1, kind="stable")[:, :len(aus)], columns).mean(1)


def emotion_scores(read, name: str) -> dict:
    "{what: value of each frame (n,)} of an emotion: what each AU reads, and whether the prototype's lead."
    column = {au: read[:, ALL_AUS.index(au)] for au in ALL_AUS}
    scores = {au: column[int(au[2:])] for au in au_columns(ALL_AUS)}
    scores["members lead"] = strongest_are(read, EMOTIONS[name])
    if name == "joy":
        scores |= {"AU12 from A on": column[12] >= 1, "AU06 from A on": column[6] >= 1,
                   "AU10 below AU12": column[10] < column[12],
                   "all three": (column[12] >= 1) & (column[6] >= 1) & (column[10] < column[12])}
    return scores


def emotion_table(rows: pd.DataFrame) -> pd.DataFrame:
    "What the six prototypes read, at C to E and at each of them, with intervals."
    acted, table = rows[(rows.kind == "emotion") & rows["none AU01"].notna()], []
    people = np.unique(acted.person)
    counts = draw_counts(len(people))
    for name in EMOTIONS:
        for levels in (["C", "D", "E"], ["C"], ["D"], ["E"]):
            own = acted[(acted["name"] == name) & acted.factor.isin(levels)]
            code = np.searchsorted(people, own.person)
            for way in WAYS:
                table += [{"emotion": name, "levels": "".join(levels), "zero": way, "what": what, "frames": len(own),
                           **ends(drawn_means(np.asarray(values, float), code, counts), "value")}
                          for what, values in emotion_scores(values_of(own, way), name).items()]
    return pd.DataFrame(table)


def run_table(model: str, reader, rows: pd.DataFrame) -> pd.DataFrame:
    "What was read by what, as names and values."
    facts = {"model": model, "made by": reader.card.get("command", ""), "people": PEOPLE, "actors": ACTORS,
             "first seed": FIRST, "frames": len(rows), "frames with a face": int(rows["none AU01"].notna().sum()),
             "layout people": LAYOUT_PEOPLE, "layout frames": LAYOUT_FRAMES, "draws": DRAWS}
    return pd.DataFrame({"what": list(facts), "value": list(map(str, facts.values()))})


def measure(model: str, folder: Path) -> dict:
    "{name of the file: table}."
    reader = open_reader(model)
    rows = pd.concat([read_person(reader, number, dict(np.load(folder / f"person_{number:05d}.npz")))
                      for number in tqdm(range(PEOPLE + ACTORS), desc="read", unit="")], ignore_index=True)
    people = rows[rows.person < PEOPLE]
    return {"levels": level_table(people), "levels_rest": rest_table(people), "levels_failures": failure_table(people),
            "levels_layouts": layout_table(reader, folder), "levels_emotions": emotion_table(rows),
            "levels_run": run_table(model, reader, rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="face18", help="Name of shipped weights, or a folder of weights.")
    parser.add_argument("--shards", type=Path, default=Path("runs/levels"), help="Where photographs are kept.")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "results", help="Folder of the tables.")
    parser.add_argument("--workers", type=int, default=2, help="Processes that render.")
    parser.add_argument("--render", action="store_true", help="Photograph only, and read nothing yet.")
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.shards.mkdir(parents=True, exist_ok=True)
    render(a.shards, a.workers)
    for name, table in ({} if a.render else measure(a.model, a.shards)).items():
        a.out.mkdir(parents=True, exist_ok=True)
        table.round(3).to_csv(a.out / f"{name}.csv", index=False)
        print(f"{a.out / name}.csv: {counted(len(table), 'row')}")


if __name__ == "__main__":
    main()
