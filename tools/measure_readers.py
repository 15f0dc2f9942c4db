"""Does a generated face show what was asked for? Two readers that share nothing with the generator say so.

    python tools/render_true_pairs.py --out SHARDS --people 240 --held-out 0 --instants 2 --variants 10
    python tools/measure_readers.py --shards SHARDS [--ratio medium] [--people 8] [--out FILE.csv]

    pixels  The shipped `small` classifiers, which were trained on true frames of other virtual people: the paper's
            seven action units.
    mesh    A ridge regression of 18 action units on the 468 vertices that FaceMesh finds in the picture, centred, and
            less those of the same person's neutral picture. It is trained here on SHARDS, a folder of
            `tools/render_true_pairs.py`: registered true frames with the true levels.

Then `--people` others, whom neither generator nor readers know, are drawn by the renderer at every AU alone, A to E.
The generator makes the same pictures from their neutral frames, and both readers read both. Columns of the table, one
row per AU and reader: slope and error (mean absolute, intensities) on the generator's pictures and on true ones; both
slopes are those of the read intensity against the one that was asked for, and `relative` is their ratio: what the
generator shows of what the renderer shows, in the eyes of this reader. `rises` is the share of people whose reading is
higher at E than at C and at C than at A.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import tools.render_true_pairs as true_pairs
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.generation.ratio import edit_frames, load_ratio
from aufacs_nb.registration.detection import FaceLandmarker
from tools.ratio_training import render_levels

RIDGE = 3.0  # of the reader of meshes
LEVELS = (1, 2, 3, 4, 5)


def find_meshes(frames) -> np.ndarray:
    "(N, 1404) vertices that FaceMesh finds in the frames, in sides, centred; NaN where it finds no face."
    landmarker, found = FaceLandmarker.from_pretrained(), []
    for at in range(0, len(frames), 32):
        for face in landmarker.find_batch(list(frames[at:at + 32])):
            mesh = np.full((468, 3), np.nan) if face is None else np.asarray(face.landmarks, float)[:468, :3]
            found.append(((mesh - mesh.mean(0)) / frames.shape[1]).ravel())
    return np.array(found)


def less_neutral(meshes, group, neutral) -> np.ndarray:
    "Each mesh less that of the neutral frame (bool rows) of its group."
    first = {g: mesh for g, mesh in zip(group[neutral], meshes[neutral])}
    return meshes - np.array([first.get(g, np.full(meshes.shape[1], np.nan)) for g in group])


def train_mesh(x, labels) -> np.ndarray:
    "Coefficients (1404, n_aus) of a ridge regression through zero, columns scaled by one number."
    kept = np.isfinite(x).all(1)
    x, y = x[kept] * 100, labels[kept]  # hundredths of a side: displacements of about 1
    return 100 * np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)


def slope(asked, read) -> float:
    "Of the least-squares line of read on asked intensity."
    kept = np.isfinite(read)
    return float(np.polyfit(asked[kept], read[kept], 1)[0])


def rising(levels, read) -> float:
    "1 if read at C is above read at A and read at E above that at C, else 0; NaN if one is missing."
    at = dict(zip(levels, read))
    values = [at.get(level, np.nan) for level in (1, 3, 5)]
    return np.nan if np.isnan(values).any() else float(values[0] < values[1] < values[2])


def judge(frames: dict, labels, read_true, read_made, reader: str, aus) -> pd.DataFrame:
    "One row per AU, see the module; read_…: (N, n_aus) intensities."
    rows = []
    for k, au in enumerate(aus):
        alone = (labels[:, k] > 0) | (labels.sum(1) == 0)
        asked, true, made = 5 * labels[alone, k], read_true[alone, k], read_made[alone, k]
        if np.isnan(true).all():  # not an AU of this reader
            continue
        who = frames["person"][alone]
        rises = [rising(asked[who == p].round().astype(int), made[who == p]) for p in np.unique(who)]
        wrong = {name: float(np.nanmean(np.abs(x - asked))) for name, x in (("true", true), ("made", made))}
        rows.append({"reader": reader, "au": f"AU{au:02d}",
                     "slope": slope(asked, made), "true slope": slope(asked, true),
                     "error": wrong["made"], "true error": wrong["true"], "rises": np.nanmean(rises)})
    table = pd.DataFrame(rows)
    table.insert(3, "relative", table.slope / table["true slope"])
    table.insert(7, "error ratio", table.error / table["true error"])
    return table


def neutral_rows(person, labels) -> np.ndarray:
    "For each row the row of its person's neutral frame."
    neutral = {p: i for i, p in enumerate(person) if labels[i].sum() == 0}
    return np.array([neutral[p] for p in person])


def train_readers(a: argparse.Namespace, aus) -> dict:
    "Name → function of frames (N, s, s, 3) and the row of each frame's neutral one that returns intensities."
    frames = true_pairs.load_frames(a.shards, people=range(a.known))
    order = [list(frames["names"]).index(au) for au in aus]
    labels, group = frames["labels"][:, order], frames["person"] * 1000 + frames["instant"]
    print(f"{len(labels)} true frames of {len(np.unique(frames['person']))} people", flush=True)
    mesh = train_mesh(less_neutral(find_meshes(frames["frames"]), group, frames["variant"] == 0), labels)

    def read_mesh(pictures, first):
        found = find_meshes(pictures)
        return 5 * (found - found[first]) @ mesh

    pixels = AUClassifiers.from_pretrained("small")
    columns = [list(pixels.aus).index(au) if au in pixels.aus else -1 for au in aus]

    def read_pixels(pictures, first):
        said = np.column_stack([pixels.predict(pictures), np.full(len(pictures), np.nan)])
        return said[:, columns]

    return {"pixels": read_pixels, "mesh": read_mesh}


def make(model, test: dict, first) -> np.ndarray:
    "What the generator makes of everybody's neutral frame; what is to stay neutral is that frame."
    made = edit_frames(model, test["frames"][first], test["labels"], test["vertices"][first])
    made[first] = test["frames"][first]
    return made


def measure(a: argparse.Namespace) -> pd.DataFrame:
    "The whole table."
    models = {name: load_ratio(name, None) for name in a.ratio}
    aus = next(iter(models.values())).config.aus
    readers, test = train_readers(a, aus), render_levels(range(a.people), LEVELS, aus, 224)
    first, tables = neutral_rows(test["person"], test["labels"]), []
    true = {reader: read(test["frames"], first) for reader, read in readers.items()}
    for name, model in models.items():
        made = make(model, test, first)
        tables += [judge(test, test["labels"], true[reader], read(made, first), reader, aus).assign(
            generator=Path(name).name) for reader, read in readers.items()]
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    "Command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="folder of tools/render_true_pairs.py")
    parser.add_argument("--ratio", nargs="+", default=["medium"], help="ratio generators: shipped names or folders")
    parser.add_argument("--known", type=int, default=240, help="people of SHARDS that the mesh reader learns from")
    parser.add_argument("--people", type=int, default=8, help="others, that are judged")
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "results" / "ratio_readers.csv")
    a = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(a).round(3)
    table.to_csv(a.out, index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
