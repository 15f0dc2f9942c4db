"""Is the paper's gain an offset? Fine-tuning on a person beside what only moves their zero, on the same frames.

    python -m aufacs_nb reproduce figure-6 --preset small --root ROOT [--generator ratio]
    python tools/compare_zeros.py --root ROOT [--films FILM …] [--out data_samples/results/offset.csv]

ROOT holds the stages of Figure 6, made with either generator or with both. Nothing is written there. The estimates of
the generic and of the fine-tuned networks are those stages' own. The other ways of reading are made here:

    shift alone, line alone     of what fine-tuning did to each person and AU (`experiments.offset`)
    best shift                  the shift that is best in hindsight
    less photograph             less what the generic networks say of the picture that fine-tuning got, kept in 0-5
    less calm frames            less what they say of the fifth of the film with the smallest sum, kept in 0-5
    fine-tuned, less calm       the same of what fine-tuned networks say
    mesh18, face18              without a zero (`none`), with that picture (`photo`) and with the calm frames (`clip`); from
                                the meshes and frames that the stages hold

The table has one row for each database, run (the generator's name), AU and person, and no frames: `person_moments` and
`change_moments` of `nbs/experiments/offset.ipynb`, which reads it. Films of real people have no labels. Of each of
--films, one person per film, only the change is stored, with the networks and the generator of ROOT and the film's
calmest frame as the photograph.
"""
import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy is loaded: sums come out the same everywhere

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.estimation.personalization import personalize, subtract_neutral
from aufacs_nb.estimation.pixels import FaceReader
from aufacs_nb.estimation.zero import calm_zero, for_aus, said_by
from aufacs_nb.experiments.conditions import ESTIMATES, less_neutral, photographs, scored_aus
from aufacs_nb.experiments.offset import change_moments, line_alone, person_moments, shift_alone
from aufacs_nb.experiments.protocol import joined_networks, tidy_rows, with_generator
from aufacs_nb.experiments.stages import partition_frames
from aufacs_nb.experiments.variants import PaperChains
from aufacs_nb.facs import AUS, au_columns
from aufacs_nb.files import counted
from aufacs_nb.generation.runs import load_generator
from aufacs_nb.registration.blendshapes import actions, load_actions
from aufacs_nb.registration.collections import open_registered
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.tensors import frames_to_tensor, resize_frames, tensor_to_frames
from tools.measure_clips import FACIAL, seen

RUNS = {"ganimation": None, "ratio": "ratio"}  # run → shipped generator; None: the paper's, trained by the protocol
DATABASES = ("disfa", "unbc")


def stage_folder(stage, root: Path) -> Path:
    "The folder of a stage that is made; SystemExit says how to make it."
    folder = stage.folder(root)
    if not (folder / "stage.json").is_file():
        sys.exit(f"{folder} is not there: make it with `aufacs reproduce figure-6 --preset small --root {root}`, for "
                 "the run ratio with `--generator ratio`.")
    return folder


def estimates(stage, root: Path) -> pd.DataFrame:
    "Labels and estimates that a stage holds."
    return pd.read_parquet(stage_folder(stage, root) / "estimates.parquet")


def films_of(rows: pd.DataFrame) -> np.ndarray:
    "The film of each row: a person's recording."
    return (rows.subject + " " + rows.session.astype(str)).to_numpy()


def less_calm(rows: pd.DataFrame) -> np.ndarray:
    "All seven estimates (N, 7) less those of the calm frames of each film, 0-5."
    said, film = rows[ESTIMATES].to_numpy(float).copy(), films_of(rows)
    for name in np.unique(film):
        own = film == name
        said[own] = subtract_neutral(said[own], calm_zero(said[own], said[own]))
    return said


def less_photograph(chains, root: Path, database: str, generic, rows: pd.DataFrame) -> np.ndarray:
    "Estimates (N, 7) less those of each person's photograph: of the stage, or by the same networks."
    stage = chains.subtracted("generic less neutral", database)
    if (stage.folder(root) / "stage.json").is_file():
        return estimates(stage, root)[ESTIMATES].to_numpy(float)
    networks = joined_networks({name: stage_folder(need, root) for name, need in generic.needs.items()
                                if name != "frames"})
    registered = open_registered(stage_folder(generic.needs["frames"], root) / "frames")
    part = partition_frames(registered, None, networks.preset.cls_size)
    said = networks.predict(part.frames)
    again = tidy_rows(part, said, "generic")[ESTIMATES].to_numpy(float)
    if np.abs(again - rows[ESTIMATES].to_numpy(float)).max() > 1e-3:
        sys.exit(f"The networks in {root} say something else than {generic.folder(root)}, which older ones made: "
                 "remove that stage and run `aufacs reproduce` again.")
    return tidy_rows(part, less_neutral(part, said), "less")[ESTIMATES].to_numpy(float)


def kept_frames(frames: Path) -> tuple:
    "Manifest, meshes (N, 468, 3) and registered frames (N, s, s, 3) of the valid frames of a stage."
    registered = open_registered(frames / "frames")
    kept = registered.manifest.valid.to_numpy(bool)
    table = registered.manifest[kept].reset_index(drop=True)
    return table, np.asarray(registered.vertices[kept]), np.asarray(registered.frames[kept])


def reader_ways(name: str, reader: MeshReader, seen: tuple, aus) -> dict:
    "Estimates of a reader of meshes or faces of all `seen` but the photographs, (N, n_aus), with its three zeros."
    table, meshes, frames = seen
    size = {"pictures": np.asarray(resize_frames(frames, reader.picture_size))} if reader.picture_size else {}
    said, plain, shots = said_by(reader, meshes, **size), reader.predict(meshes, **size), photographs(table)
    film, calm = films_of(table), np.zeros_like(said, dtype=float)
    for one in np.unique(film):
        own = film == one
        calm[own] = for_aus(calm_zero(plain[own], said[own]), reader.aus, reader.clip_aus)
    photo = np.stack([said[shots[who]] for who in table.subject])
    ways = {name: plain, f"{name}, photograph": reader.predict(meshes, zero=photo, **size),
            f"{name}, calm frames": reader.predict(meshes, zero=calm, **size)}
    columns, rest = [reader.aus.index(au) for au in aus], np.setdiff1d(np.arange(len(table)), list(shots.values()))
    return {way: values[rest][:, columns] for way, values in ways.items()}


def compare(chains, root: Path, database: str, mesh: bool) -> pd.DataFrame:
    "The table of one database and run, rows (au, subject)."
    made = chains.balanced("semantic")
    generic = chains.estimates("generic", made, database=database)
    tuned = chains.estimates("personal", made, database=database, generator=chains.generator())
    first, second = estimates(generic, root), estimates(tuned, root)
    aus, who = scored_aus(first), first.subject.to_numpy()
    columns, labels = [AUS.index(au) for au in aus], first[au_columns(aus)].to_numpy(float)
    assert np.array_equal(labels, second[au_columns(aus)].to_numpy(float)), "stages of other frames"
    a, b = (rows[ESTIMATES].to_numpy(float)[:, columns] for rows in (first, second))
    ways = {"generic": a, "fine-tuned": b, "shift alone": shift_alone(a, b, who), "line alone": line_alone(a, b, who),
            "best shift": shift_alone(a, labels, who),
            "less photograph": less_photograph(chains, root, database, generic, first)[:, columns],
            "less calm frames": less_calm(first)[:, columns], "fine-tuned, less calm": less_calm(second)[:, columns]}
    if mesh:
        seen_frames = kept_frames(stage_folder(generic.needs["frames"], root))
        for name, reader in (("mesh18", MeshReader), ("face18", FaceReader)):
            ways |= reader_ways(name, reader.from_pretrained(name), seen_frames, aus)
    return person_moments(labels, ways, who, aus).join(change_moments(a, b, who, aus))


def film_faces(film: Path) -> tuple:
    "Registered faces (n, 224, 224, 3) of a film, and the number of the calmest, by the sum of FaceMesh's actions."
    faces, points = seen(film, FaceLandmarker.from_pretrained(), 1)
    if len(points) < 10:
        sys.exit(f"{film}: a face in only {counted(len(points), 'frame')}; leave this film out.")
    return faces["mesh"], int(actions(load_actions(), points)[:, FACIAL].sum(1).argmin())


def film_changes(chains, root: Path, films) -> pd.DataFrame:
    "What fine-tuning changes in films, rows (au, subject): one person per film, the photograph left out."
    known, rows = chains.networks(chains.balanced("semantic")), []
    networks = joined_networks({name: stage_folder(need, root) for name, need in known.items()})
    generator = load_generator(stage_folder(chains.generator(), root))
    for number, film in enumerate(films, 1):
        faces, shot = film_faces(film)
        photo = tensor_to_frames(frames_to_tensor(faces[shot][None], generator.preset.size))[0]
        rest = np.delete(faces, shot, axis=0)
        said = [reader.predict(rest) for reader in (networks, personalize(networks, generator, photo))]
        rows.append(change_moments(*said, np.repeat(f"film {number}", len(rest)), networks.aus))
    return pd.concat(rows)


def main() -> None:
    "Command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the stages of `aufacs reproduce`")
    parser.add_argument("--preset", default="small", help="of that run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="generators of these runs")
    parser.add_argument("--films", nargs="*", type=Path, default=[], help="films, each of one real person")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "results" / "offset.csv")
    a = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for run in a.runs:
        chains = PaperChains(with_generator(a.preset, RUNS[run]))
        for database in DATABASES:
            tables[database, run] = compare(chains, a.root, database, mesh=run == a.runs[0])
            print(f"{database}, {run}: {tables[database, run].index.unique('subject').size} people", flush=True)
        if a.films:
            tables["films", run] = film_changes(chains, a.root, a.films)
    pd.concat(tables, names=["database", "run"]).sort_index().round(4).to_csv(a.out)


if __name__ == "__main__":
    main()
