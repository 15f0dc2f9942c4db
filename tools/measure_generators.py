"""Generators against the true picture: unseen virtual people, the same pairs for all, one table.

    python tools/measure_generators.py [--ratio medium] [--out FILE.csv] [--people 8] [--second]

The pairs are those of nbs/experiments/generators.ipynb: `true_pairs(people=8, mixtures=6, seed=0)`, registered at
224 px and resized (bilinear, antialiased) to the size of each network; what it makes is resized in the same way to
96 px, where all are compared. RatioFlow looks at 128 px and is applied to the frames of 224 px, as it is meant to be;
its row `at 128 px` gives it frames resized to 128 px instead. It knows 18 action units; the eleven that are not the
paper's are 0.
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

from aufacs_nb import load_generator, synthesize
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.evaluation.image_quality import (CHANGED, IdentityCode, TruePairs, absolute_error, changed_regions,
                                                paired_table, scores_by_au, true_pairs, within)
from aufacs_nb.generation.geometric import geometric_synthesis
from aufacs_nb.generation.ratio import DETAIL, blur, edit_frames, face_mask, load_ratio
from aufacs_nb.tensors import frames_to_tensor, tensor_to_frames

SIDE = 96  # pixels: side at which all are compared


def resized(frames, side: int) -> np.ndarray:
    "uint8 (N, s, s, 3) → (N, side, side, 3), bilinear with antialiasing."
    parts = (frames[k:k + 64] for k in range(0, len(frames), 64))
    return np.concatenate([tensor_to_frames(frames_to_tensor(part, side)) for part in parts])


def pairs_at(pairs: TruePairs, side: int) -> TruePairs:
    "The same pairs with frames and meshes of that side."
    return pairs._replace(source=resized(pairs.source, side), truth=resized(pairs.truth, side),
                          vertices=pairs.vertices * side / pairs.source.shape[1])


def ways_of(whole: TruePairs, ratio) -> dict:
    "Name → pictures it makes, at its own side."
    small, wide = pairs_at(whole, SIDE), pairs_at(whole, 128)
    learnt = lambda name, pairs, **options: synthesize(load_generator(name, **options), pairs.source, pairs.labels)
    made = {"geometric": geometric_synthesis(small.source, small.labels, small.vertices),
            "small GANimation": learnt("small", small), "small flow (ours)": learnt("small", small, arch="flow"),
            "medium GANimation": learnt("medium", wide),
            "medium RatioFlow (ours)": edit_frames(ratio, whole.source, whole.labels, whole.vertices),
            "the same at 128 px": edit_frames(ratio, wide.source, wide.labels, wide.vertices)}
    return made


def by_person(pairs: TruePairs, frames) -> np.ndarray:
    "Share of the copy's error left in the changed regions, for each person: (people,)."
    regions = changed_regions(pairs.labels, SIDE)
    left, copied = (within(absolute_error(x, pairs.truth), regions) for x in (frames, pairs.source))
    mine = [pairs.person == person for person in np.unique(pairs.person)]
    return np.array([left[rows].mean() / copied[rows].mean() for rows in mine])


def inside(source, made, truth) -> tuple[float, float]:
    """Within the faces, at 128 px: share of the copy's error left in pixels that change, and of fine detail there.

    Registration lays the outline of every frame a little differently, and there the error is that of skin against
    black; here the outline does not count. Fine detail: slope of the change that was made on the true change.
    """
    a, b, c = (frames_to_tensor(resized(x, 128)) / 2 + 0.5 for x in (source, made, truth))
    face = face_mask(a) * face_mask(c)
    copied, left = ((x - c).abs().mean(1, keepdim=True) for x in (a, b))
    changed = (copied > CHANGED / 255).float() * face
    fine = lambda x: x.mean(1, keepdim=True) - blur(x.mean(1, keepdim=True), DETAIL)
    true, shown = fine(c) - fine(a), fine(b) - fine(a)
    return (float((left * changed).sum() / (copied * changed).sum()),
            float((shown * true * changed).sum() / (true ** 2 * changed).sum()))


def measure(people: int, second: bool, ratio) -> pd.DataFrame:
    "A row for each way: side, scores, the range over people, and the share of the copy's error left for each AU alone."
    whole = true_pairs(people=people, mixtures=6, size=224, seed=0)
    pairs, ways = pairs_at(whole, SIDE), ways_of(whole, ratio)
    if second:
        ways["second photograph"] = true_pairs(people=people, mixtures=6, size=224, seed=0, grain=1000).truth
    frames = {name: resized(made, SIDE) for name, made in ways.items()}
    table = paired_table(pairs, frames, AUClassifiers.from_pretrained("small"), IdentityCode.from_pretrained())
    everything = {"copy": pairs.source, **frames, "true frame": pairs.truth}
    shares = {name: by_person(pairs, made) for name, made in everything.items()}
    table["best person"], table["worst person"] = ({k: f(v) for k, v in shares.items()} for f in (np.min, np.max))
    table.insert(0, "side", {name: ways[name].shape[1] if name in ways else SIDE for name in everything})
    within_face = {name: inside(whole.source, made, whole.truth) for name, made in
                   {"copy": whole.source, **ways, "true frame": whole.truth}.items()}
    table["left inside"], table["fine detail"] = ({k: v[i] for k, v in within_face.items()} for i in (0, 1))
    return table.join(scores_by_au(pairs, everything)).rename_axis("way")


def main() -> None:
    "Command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data_samples" / "results" / "medium_generator.csv")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--ratio", default="medium", help="ratio generator to measure: a shipped name or a folder")
    parser.add_argument("--second", action="store_true", help="also a second photograph of the same moments: the floor")
    a = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(a.people, a.second, load_ratio(a.ratio)).round(4)
    table.to_csv(a.out)
    print(table.drop(columns=[c for c in table if c.startswith("AU") and c != "AU error"]).round(3).to_string())
    print("\nShare of the copy's error left, action units alone:")
    print(table[[c for c in table if c.startswith("AU") and c != "AU error"]].round(2).to_string())


if __name__ == "__main__":
    main()
