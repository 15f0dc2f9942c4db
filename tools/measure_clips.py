"""Ask an independent tracker how well the estimator follows real faces; only numbers are kept.

    python tools/measure_clips.py CLIP_OR_FOLDER … [--model small] [--out data_samples/results/real_clips.csv]
    python tools/measure_clips.py CLIP_OR_FOLDER … --compare MODELS --out data_samples/results/transfer_real.csv

For each film: correlation over its frames of each AU's estimate with FaceMesh's actions beside that AU, and with a
distance between landmarks, before and after personalisation on the film's calmest frame (the smallest sum of actions).
The photographs of all folders count as one more film, without personalisation. `range` is how far the judge moved, as
a share of its scale: where it hardly moved, r says little. Nothing of the pictures is written anywhere. With
`--compare`, every model of a folder is asked instead, each about frames registered as its own training frames were,
and none is personalised; models named NAME, seed K make rows of one condition.
"""
import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aufacs_nb.registration.blendshapes import ACTIONS, actions, au_evidence, load_actions
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.databases import VIDEO_SUFFIXES
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.estimation.estimator import choose_faces, frame_stream, registered_by
from aufacs_nb.facs import AUS
from aufacs_nb.estimation.personalization import personal_generator, personalize
from aufacs_nb.registration.collections import FaceChoice

torch.set_num_threads(1)
# pairs of landmarks whose distance, as a share of that between the outer eye corners, grows (+) or shrinks (−)
DISTANCES = {1: (+1, ((107, 133), (336, 362))), 4: (-1, ((55, 285),)), 10: (-1, ((0, 2),)), 12: (+1, ((61, 291),)),
             17: (-1, ((17, 152),))}


FACIAL = [i for i, name in enumerate(ACTIONS) if name != "_neutral" and "Look" not in name and "Blink" not in name]


def seen(source, landmarker, step: int, methods=("mesh",)):
    "{method: registered faces (n, 224, 224, 3)}, landmarks (n, 478, 3) of every `step`th frame with a face."
    stream, choice, faces, points = islice(frame_stream(source), 0, None, step), FaceChoice(), [[] for _ in methods], []
    while items := list(islice(stream, 32)):
        found = [(item[3], face) for item, face in zip(items, choose_faces(items, landmarker, choice)) if face]
        if found:
            images, chosen = zip(*found)
            for kept, method in zip(faces, methods):
                kept += list(registered_by(method, list(images), list(chosen)))
            points += [face.landmarks for face in chosen]
    return {method: np.array(kept) for method, kept in zip(methods, faces)}, np.array(points)


def seen_all(photos, landmarker, methods=("mesh",)):
    "As `seen`, of all photographs together."
    found = [pair for pair in (seen(photo, landmarker, 1, methods) for photo in photos) if len(pair[1])]
    return ({method: np.concatenate([faces[method] for faces, _ in found]) for method in methods},
            np.concatenate([points for _, points in found]))


def distance(points, au: int) -> np.ndarray:
    "The landmark measure of an AU, (n,); rises with the AU."
    sign, pairs = DISTANCES[au]
    scale = np.linalg.norm(points[:, 33] - points[:, 263], axis=1)
    return sign * sum(np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in pairs) / scale


def correlation(a, b) -> float:
    "Pearson's r; NaN where one of them never varies."
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def judge(name, points, acts, estimates: dict) -> list:
    "Rows of the table for one film."
    rows = []
    for i, au in enumerate(AUS):
        judges = {"action": au_evidence(acts, au)} | ({"distance": distance(points, au)} if au in DISTANCES else {})
        for kind, values in judges.items():
            rows.append({"film": name, "AU": au, "judge": kind, "frames": len(points), "range": np.ptp(values)} |
                        {f"r {way}": correlation(values, found[:, i]) for way, found in estimates.items()})
    return rows


def measure(clips, photos, model: str, step: int = 1) -> pd.DataFrame:
    landmarker, network = FaceLandmarker.from_pretrained(), load_actions()
    classifiers = AUClassifiers.from_pretrained(model)
    generator, rows = personal_generator(model, classifiers.preset), []
    for number, clip in enumerate(clips, 1):
        faces, points = seen(clip, landmarker, step)
        faces = faces["mesh"]
        if len(faces) < 10:
            print(f"{clip.name}: a face in only {len(faces)} frames, left out")
            continue
        acts = actions(network, points)
        neutral = int(acts[:, FACIAL].sum(1).argmin())
        personal = personalize(classifiers, generator, faces[neutral])
        rows += judge(f"film {number}", points, acts, {"generic": classifiers.predict(faces),
                                                        "personal": personal.predict(faces)})
        print(f"film {number}: {clip.name}, {len(faces)} frames, neutral frame {neutral}", flush=True)
    if photos:
        faces, points = seen_all(photos, landmarker)
        rows += judge("photographs", points, actions(network, points), {"generic": classifiers.predict(faces["mesh"])})
    return pd.DataFrame(rows)


def compare(clips, photos, folder, step: int = 1) -> pd.DataFrame:
    "A row a model, film, AU and judge: condition, seed, film, AU, judge, frames, range, r."
    landmarker, network, methods = FaceLandmarker.from_pretrained(), load_actions(), ("mesh", "procrustes")
    films = {f"film {k}": seen(clip, landmarker, step, methods) for k, clip in enumerate(clips, 1)}
    films = {name: found for name, found in films.items() if len(found[1]) >= 10}
    films |= {"photographs": seen_all(photos, landmarker, methods)} if photos else {}
    tables = []
    for path in sorted(Path(folder).iterdir()):
        model = AUClassifiers.from_pretrained(path)
        condition, _, seed = path.name.partition(", seed ")
        for film, (faces, points) in films.items():
            found = {"r": model.predict(faces[model.card["registration"]])}
            rows = pd.DataFrame(judge(film, points, actions(network, points), found)).rename(columns={"r r": "r"})
            tables.append(rows.assign(condition=condition, seed=int(seed or 0)))
    return pd.concat(tables, ignore_index=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--compare", type=Path, help="Folder of models, instead of --model.")
    parser.add_argument("--step", type=int, default=1, help="Take every nth frame.")
    parser.add_argument("--out", type=Path, default=Path("data_samples/results/real_clips.csv"))
    a = parser.parse_args()
    paths = [path for source in a.sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    clips = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    photos = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    table = compare(clips, photos, a.compare, a.step) if a.compare else measure(clips, photos, a.model, a.step)
    table.round(3).to_csv(a.out, index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
