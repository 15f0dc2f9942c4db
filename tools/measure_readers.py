"""Does a generated face show what was asked for? Two readers that share nothing with the generator say so.

    python tools/measure_readers.py --shards SHARDS [--ratio medium] [--people 8] [--out FILE.csv] [--seed 0]

SHARDS is a folder of `tools/render_true_pairs.py`: registered frames of virtual people with the true levels of 18
action units. On these true frames two readers are trained:

    pixels  A small convolutional network (`SlimVGG`, 96 px) with one output per AU.
    mesh    A ridge regression on the 468 vertices that FaceMesh finds in the frame, centred, and less those of the
            same person's neutral frame of the same instant.

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
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import tools.render_true_pairs as true_pairs
from aufacs_nb.estimation.trunk import SlimVGG, seeded
from aufacs_nb.generation.ratio import edit_frames, load_ratio
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.tensors import frames_to_tensor
from tools.ratio_training import render_levels

SIDE, DIM, EPOCHS, BATCH, RATE = 96, 12, 9, 64, 2e-3  # of the reader of pixels
RIDGE = 3.0                                            # of the reader of meshes
LEVELS = (1, 2, 3, 4, 5)


def resized(frames) -> torch.Tensor:
    "uint8 (N, s, s, 3) → (N, 3, SIDE, SIDE) in [-1, 1]."
    return torch.cat([frames_to_tensor(part, SIDE) for part in np.array_split(frames, max(1, len(frames) // 256))])


def jittered(images: torch.Tensor) -> torch.Tensor:
    "Half of the batch mirrored; gain, contrast and noise of each."
    n = len(images)
    images = torch.where(torch.rand(n, 1, 1, 1) < 0.5, images, images.flip(-1))
    gain, bend = (torch.randn(2, n, 1, 1, 1) * 0.15).exp()
    return ((images / 2 + 0.5).clamp(1e-4, 1) ** bend * gain).clamp(0, 1) * 2 - 1 + 0.03 * torch.randn_like(images)


def train_pixels(frames, labels, seed: int) -> nn.Module:
    "The reader of pixels; labels (N, n_aus) in [0, 1]."
    with seeded(seed):
        images, truth = resized(frames), torch.tensor(labels)
        model = SlimVGG(SIDE, DIM, 0.3, labels.shape[1])
        steps = EPOCHS * -(-len(images) // BATCH)
        optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        for epoch in range(EPOCHS):
            for rows in torch.randperm(len(images)).split(BATCH):
                loss = nn.functional.mse_loss(model(jittered(images[rows])), truth[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            print(f"pixels: epoch {epoch + 1}, squared error {float(loss):.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def read_pixels(model: nn.Module, frames) -> np.ndarray:
    "Intensities 0–5 (N, n_aus) that the reader of pixels sees."
    return 5 * np.concatenate([model(part).numpy() for part in resized(frames).split(128)])


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
        who = frames["person"][alone]
        rises = [rising(asked[who == p].round().astype(int), made[who == p]) for p in np.unique(who)]
        wrong = {name: float(np.nanmean(np.abs(x - asked))) for name, x in (("true", true), ("made", made))}
        rows.append({"reader": reader, "au": f"AU{au:02d}", "slope": slope(asked, made), "true slope": slope(asked, true),
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
    frames = true_pairs.load_frames(a.shards)
    order = [list(frames["names"]).index(au) for au in aus]
    labels, group = frames["labels"][:, order], frames["person"] * 1000 + frames["instant"]
    print(f"{len(labels)} true frames of {len(np.unique(frames['person']))} people", flush=True)
    pixels = train_pixels(frames["frames"], labels, a.seed)
    mesh = train_mesh(less_neutral(find_meshes(frames["frames"]), group, frames["variant"] == 0), labels)

    def read_mesh(pictures, first):
        found = find_meshes(pictures)
        return 5 * (found - found[first]) @ mesh

    return {"pixels": lambda pictures, first: read_pixels(pixels, pictures), "mesh": read_mesh}


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
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "results" / "ratio_readers.csv")
    a = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(a).round(3)
    table.to_csv(a.out, index=False)
    print(table.to_string())


if __name__ == "__main__":
    main()
