"""Render true pairs: virtual people, the same instant again and again with other action units, registered to the front.

For every person `instants` scenes (pose of the head, light, camera), and of each scene `variants` photographs that
differ in nothing but the levels of the 18 AUs that the head can show. The first is neutral. Each photograph is found
by FaceMesh and registered by itself, as a user's are; where no face is found the variant is missing (an instant without
its neutral picture is missing whole).

    from tools.render_true_pairs import render_people, load_frames   # with the repository's root on the path
    frames = render_people(range(2), seed=0, instants=2, variants=12, size=128)

`render_people` and `load_frames` return one dictionary, which is also what a training gets from `gpu_check.py`:

    frames    (N, size, size, 3) uint8, black outside the face and where it was hidden
    labels    (N, 18) float32 in [0, 1], intensity / 5, columns as in `names`
    names     (18,) int, the AU numbers; the paper's seven are PAPER_COLUMNS of them
    person    (N,) int; instant (N,) int, counted within the person: a true pair shares both
    variant   (N,) int, 0 is the neutral picture
    vertices  (N, 468, 3) float16, the registered mesh in pixels of the frame
    held_out  people (int) that no training may see; empty from `render_people`

Variants: neutral; single units of the paper's seven; mixtures of these; single other units; and, at the end, a company
of units whose other than the paper's seven stay the same while the seven change (so that `PairRows` of seven labels
find pairs among them, too). Levels are drawn evenly between 0.6 and 5.

As a program it writes one shard a person, <out>/person_0000.npz, held-out people first, until the time is over:

    python tools/render_true_pairs.py --out SHARDS --people 220 --held-out 16 --workers 14 --seconds 150
"""
import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # one core a worker
    if __name__ in ("__main__", "__mp_main__"):
        os.environ[_threads] = "1"

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def import_numba() -> None:
    "Numba refuses a NumPy newer than it knows, even by one number: then tell it an older one, once."
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if "NumPy" not in str(error):
            raise
        version, np.__version__ = np.__version__, "2.2.0"
        for name in [name for name in sys.modules if name.split(".")[0] == "numba"]:
            del sys.modules[name]
        try:
            import numba  # noqa: F401
        finally:
            np.__version__ = version


import_numba()
from aufacs_nb.facs import AU_NAMES, AUS  # noqa: E402
from aufacs_nb.files import counted  # noqa: E402

ALL_AUS = tuple(AU_NAMES)
PAPER_COLUMNS = [ALL_AUS.index(au) for au in AUS]
OTHERS = tuple(au for au in ALL_AUS if au not in AUS)
SHEETS = 5   # people on the contact sheet
PHOTO = 256  # side of the photographs, pixels
COMPANY = (  # (others that stay, those of the seven that come and go)
    ((2,), (1,)), ((2, 5), (1,)), ((2, 5, 26), (1,)), ((2, 5, 25), (1,)), ((7,), (4,)), ((7, 23), (4,)),
    ((9,), (10, 4)), ((9, 7), (10, 4, 6)), ((25,), (12, 6)), ((25,), (6, 12)), ((25, 26), (12, 6)), ((7,), (6, 12)),
    ((15,), (17, 4)), ((15,), (1, 4, 17)), ((24,), (17, 14)), ((23,), (17, 14)), ((20, 25), (12, 10)),
    ((20, 25, 26), (4, 1)), ((43,), (4, 6, 10)), ((5, 25, 26), (1, 4)), ((7, 25), (10, 12)), ((2,), (14, 17)))
KEYS = ("frames", "labels", "person", "instant", "variant", "vertices")


def draw_level(rng) -> float:
    "An intensity, 0.6 to 5."
    return float(rng.uniform(0.6, 5.0))


def settle(levels: dict) -> dict:
    "Levels {au: 0.6–5} without what cannot be together: closed eyes with raised lids, pressed lips with parted ones."
    kept = dict(levels)
    if 43 in kept:
        kept.pop(5, None)
    if 25 in kept or 26 in kept:
        kept.pop(24, None)
    return kept


def draw_variants(rng, variants: int) -> list:
    "Levels {au: intensity} of each variant of one instant, the neutral one first."
    rest = variants - 1
    company, others, mixed = rest * 3 // 11, rest * 2 // 11, rest * 2 // 11
    singles = rng.permutation(np.resize(rng.permutation(AUS), rest - company - others - mixed))
    drawn = [{}] + [{int(au): draw_level(rng)} for au in singles]
    drawn += [{int(au): draw_level(rng) for au in rng.choice(AUS, rng.integers(2, 5), replace=False)}
              for _ in range(mixed)]
    drawn += [{int(au): draw_level(rng)} for au in rng.permutation(OTHERS)[:others]]
    stay, come = COMPANY[rng.integers(len(COMPANY))]
    standing = {au: draw_level(rng) for au in stay}
    for _ in range(company):
        moving = {au: draw_level(rng) for au in come if rng.random() < 0.75}
        if rng.random() < 0.3:
            moving[int(rng.choice(AUS))] = draw_level(rng)
        drawn.append(settle(standing | moving))
    return drawn


def photograph_instant(person, rng, variants: int) -> tuple:
    "Photographs (uint8) of one instant and the levels {au: intensity} that each shows."
    from aufacs_nb.simulation.camera import render_person, sample_scene

    yaw, pitch, roll = (float(np.clip(rng.normal(0, s), -m, m)) for s, m in ((12, 30), (7, 15), (5, 12)))
    gaze = tuple(rng.normal(0, (5, 3)).clip(-12, 12))
    scene, levels = sample_scene(int(rng.integers(1 << 30)), "wide"), draw_variants(rng, variants)
    return [render_person(person, aus, yaw, pitch, roll, scene, PHOTO, gaze=gaze) for aus in levels], levels


def register_instant(landmarker, photographs, size: int) -> list:
    "`Registered` of each photograph, None where no face was found."
    from aufacs_nb.registration.frontal import register_face

    faces = landmarker.find_batch(photographs)
    return [None if face is None else register_face(photo, face.landmarks, size)
            for photo, face in zip(photographs, faces)]


def render_people(people, seed: int = 0, instants: int = 6, variants: int = 12, size: int = 128) -> dict:
    "True pairs of these people (numbers), see the module; the same numbers and seed give the same pictures."
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.registration.detection import FaceLandmarker

    landmarker, rows = FaceLandmarker.from_pretrained(), []
    for number in people:
        rng = np.random.default_rng([seed, number, 77])
        person = sample_person(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        for instant in range(instants):
            photographs, levels = photograph_instant(person, rng, variants)
            found = register_instant(landmarker, photographs, size)
            if found[0] is None:
                continue
            rows += [(r.image, [aus.get(au, 0) / 5 for au in ALL_AUS], number, instant, k, r.vertices)
                     for k, (r, aus) in enumerate(zip(found, levels)) if r is not None]
    return as_table(rows)


def render_sheet(people, seed: int = 0, size: int = 128, **_) -> dict:
    "For a contact sheet: these people from the front, neutral, then each of the paper's AUs at A, C and E."
    from aufacs_nb.simulation.appearance import sample_person
    from aufacs_nb.simulation.camera import render_person, sample_scene
    from aufacs_nb.registration.detection import FaceLandmarker

    levels = [{}] + [{au: level} for au in AUS for level in (1, 3, 5)]
    landmarker, rows = FaceLandmarker.from_pretrained(), []
    for number in people:
        person = sample_person(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        scene = sample_scene(int(np.random.SeedSequence([seed, number, 1]).generate_state(1)[0]), "wide")
        photographs = [render_person(person, aus, scene=scene, size=PHOTO) for aus in levels]
        found = register_instant(landmarker, photographs, size)
        if all(r is not None for r in found):
            rows += [(r.image, [aus.get(au, 0) / 5 for au in ALL_AUS], number, 0, k, r.vertices)
                     for k, (r, aus) in enumerate(zip(found, levels))]
    return as_table(rows)


def as_table(rows) -> dict:
    "The dictionary of a list of (image, labels, person, instant, variant, vertices)."
    columns = zip(*rows) if rows else [[]] * len(KEYS)
    kinds = (np.uint8, np.float32, np.int64, np.int64, np.int64, np.float16)
    table = {key: np.asarray(list(column), kind) for key, column, kind in zip(KEYS, columns, kinds)}
    return table | {"names": np.array(ALL_AUS), "held_out": np.zeros(0, np.int64)}


def shard_path(folder, number: int, kind: str = "person") -> Path:
    "Where the shard of a person lies; the kind 'sheet' is for the contact sheet."
    return Path(folder) / f"{kind}_{number:04d}.npz"


def write_shard(folder, number: int, kind: str = "person", **options) -> int:
    "Render one person into their shard, whole or not at all; returns how many frames they have."
    make, path = render_sheet if kind == "sheet" else render_people, shard_path(folder, number, kind)
    table = make([number], **options)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **{key: table[key] for key in KEYS})
    os.replace(temporary, path)
    return len(table["frames"])


def load_frames(folder, held_out=(), people=None, kind: str = "person") -> dict:
    "All whole shards of a folder (of these people) as one dictionary, see the module; ValueError if there is none."
    paths = sorted(Path(folder).glob(f"{kind}_*.npz"))
    wanted = None if people is None else {shard_path(folder, number, kind).name for number in people}
    parts = []
    for path in paths:
        if wanted is None or path.name in wanted:
            with np.load(path, allow_pickle=False) as shard:
                parts.append({key: shard[key] for key in KEYS})
    parts = [part for part in parts if len(part["frames"])]
    if not parts:
        raise ValueError(f"{folder}: no rendered people yet")
    table = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
    return table | {"names": np.array(ALL_AUS), "held_out": np.asarray(list(held_out), np.int64)}


def held_out_people(people: int, held_out: int) -> list:
    "The last `held_out` of so many people."
    return list(range(max(0, people - held_out), people))


def work(folder: str, queue, until: float, options: dict) -> None:
    "One process: render people from the queue until it is empty or the clock says `until`."
    started, slowest = time.time(), 0.0
    while time.time() + slowest < until:
        try:
            task = queue.get(timeout=20)
        except Exception:  # the parent is gone
            return
        if task is None:
            return
        (kind, number), began = task, time.time()
        try:
            count = write_shard(folder, number, kind, **options)
        except Exception as error:  # one person's fault is not the others'
            print(f"render: person {number} failed: {type(error).__name__}: {error}", flush=True)
            continue
        took = time.time() - began
        slowest = max(slowest, min(took, 30.0)) if began - started > 1 else slowest
        if number % 20 == 0:
            print(f"render: person {number}, {counted(count, 'frame')} in {took:.1f} s", flush=True)


def render_all(folder, people: int, held_out: int, workers: int, until: float, options: dict) -> None:
    "Write the shards of all people with so many processes, those held out first; returns when all are done or stopped."
    Path(folder).mkdir(parents=True, exist_ok=True)
    last = held_out_people(people, held_out)
    context = multiprocessing.get_context("spawn")
    queue, tasks = context.Queue(), [("person", number) for number in last] + [("sheet", n) for n in last[:SHEETS]]
    for kind, number in tasks + [("person", n) for n in range(people) if n not in set(last)]:
        if not shard_path(folder, number, kind).is_file():
            queue.put((kind, number))
    for _ in range(workers):
        queue.put(None)
    crew = [context.Process(target=work, args=(str(folder), queue, until, options), daemon=True)
            for _ in range(workers)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(max(1.0, until + 10 - time.time()))
    for one in crew:
        if one.is_alive():
            one.kill()
    queue.cancel_join_thread()


def main() -> None:
    "Command line; the last line of output is a summary as JSON."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the shards")
    parser.add_argument("--people", type=int, default=220)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--instants", type=int, default=6)
    parser.add_argument("--variants", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seconds", type=float, default=150)
    a = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    began = time.time()
    options = {"seed": a.seed, "instants": a.instants, "variants": a.variants, "size": a.size}
    render_all(a.out, a.people, a.held_out, a.workers, began + a.seconds, options)
    done = len(list(Path(a.out).glob("person_*.npz")))
    summary = {"people": done, "of": a.people, "seconds": round(time.time() - began, 1), "workers": a.workers,
               **options}
    (Path(a.out) / "finished.json").write_text(json.dumps(summary))
    print("render:", json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
