"""Ask an independent tracker how well the estimator follows real faces; only numbers are kept.

    python tools/measure_clips.py CLIP_OR_FOLDER … [--model small] [--out data_samples/results/real_clips.csv]
    python tools/measure_clips.py CLIP_OR_FOLDER … --compare MODELS --out data_samples/results/transfer_real.csv
    python tools/measure_clips.py CLIP_OR_FOLDER … --readers small mesh18 --dlib MODEL.dat --out real_readers.csv

For each film: correlation over its frames of each AU's estimate with FaceMesh's actions beside that AU, and with a
distance between landmarks, before and after personalisation on the film's calmest frame (the smallest sum of actions).
The photographs of all folders count as one more film, without personalisation. `range` is how far the judge moved, as
a share of its scale: where it hardly moved, r says little. Nothing of the pictures is written anywhere. With
`--compare`, every model of a folder is asked instead, each about frames registered as its own training frames were,
and none is personalised; models named NAME, seed K make rows of one condition.

With `--readers` several shipped ones are asked about the same frames, readers of meshes without a zero, with the film's
calmest frame as a photograph, and with the zero of the film. A second judge shares nothing with FaceMesh: dlib finds
the face and 68 points by itself (the extra `[dlib]`), and distances between them stand for AUs. Besides r a row says
what a reader says of calm frames (`calm`: mean over the tenth with the smallest sum of actions) and how far it moves
(`low`, `high`: its 5th and 95th percentile). The end prints the mean r of each reader and judge.
"""
import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aufacs_nb.registration.blendshapes import ACTIONS, actions, au_evidence, load_actions
from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.databases import VIDEO_SUFFIXES
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.estimation.estimator import AUEstimator, meshes_of, registered_by
from aufacs_nb.estimation.sources import choose_faces, frame_stream
from aufacs_nb.facs import AUS
from aufacs_nb.estimation.personalization import personal_generator, personalize
from aufacs_nb.estimation.zero import calm_zero, for_aus, photo_zero, said_by
from aufacs_nb.registration.collections import FaceChoice
from aufacs_nb.registration.planar import DlibLandmarker

torch.set_num_threads(1)
# pairs of landmarks whose distance, as a share of that between the outer eye corners, grows (+) or shrinks (−)
DISTANCES = {1: (+1, ((107, 133), (336, 362))), 4: (-1, ((55, 285),)), 10: (-1, ((0, 2),)), 12: (+1, ((61, 291),)),
             17: (-1, ((17, 152),))}

# the same among dlib's 68 points, for all AUs that move one of them alone
BROWS = {1: (+1, ((21, 39), (22, 42))), 2: (+1, ((18, 36), (25, 45))), 4: (-1, ((21, 22),))}
LIDS = ((37, 41), (38, 40), (43, 47), (44, 46))
DLIB_DISTANCES = BROWS | {5: (+1, LIDS), 10: (-1, ((33, 51),)), 12: (+1, ((48, 54),)), 17: (-1, ((57, 8),)),
                          25: (+1, ((61, 67), (62, 66), (63, 65))), 26: (+1, ((33, 8),)), 43: (-1, LIDS)}
ASKED = (1, 4, 10, 12, 17)   # the AUs of the mean that the end prints first
SEARCHED = 300               # height of the pictures that dlib searches, pixels; its least face is 80, then 40

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


class SecondJudge:
    "dlib by itself: its own search, in pictures of about SEARCHED pixels in height, and its 68 points."

    def __init__(self, model_68):
        self.landmarker = DlibLandmarker(model_68)
        self.detector = self.landmarker.dlib.get_frontal_face_detector()

    def __call__(self, image, face) -> np.ndarray:
        "The points (68, 2) of the face nearest to `face`; NaN where dlib finds none there."
        factor = max(1, round(image.shape[0] / SEARCHED))
        small = np.ascontiguousarray(image[::factor, ::factor])
        found = self.detector(small, 0) or self.detector(small, 1)   # the second try finds faces of half that size
        boxes = factor * np.array([(box.left(), box.top(), box.right(), box.bottom()) for box in found]).reshape(-1, 4)
        away = np.abs(boxes.reshape(-1, 2, 2).mean(1) - face.landmarks[:, :2].mean(0)).max(1)
        if not len(away) or away.min() > np.ptp(face.landmarks[:, 0]) / 2:
            return np.full((68, 2), np.nan)
        return self.landmarker.find(image, boxes[[away.argmin()]])[0]


def seen_by_both(source, landmarker, second, step: int) -> dict:
    "Registered faces, meshes, landmarks and dlib's points of every `step`th frame with a face."
    stream, choice, kept = islice(frame_stream(source), 0, None, step), FaceChoice(), []
    while items := list(islice(stream, 32)):
        found = [(item.image, face) for item, face in zip(items, choose_faces(items, landmarker, choice)) if face]
        if found:
            images, faces = map(list, zip(*found))
            points = [second(image, face) if second else np.full((68, 2), np.nan) for image, face in found]
            kept += zip(registered_by("mesh", images, faces), meshes_of(faces), [f.landmarks for f in faces], points)
    return dict(zip(("faces", "meshes", "points", "dlib"), map(np.array, zip(*kept))))


def dlib_distance(points, au: int) -> np.ndarray:
    "As `distance`, of dlib's points (n, 68, 2)."
    sign, pairs = DLIB_DISTANCES[au]
    scale = np.linalg.norm(points[:, 36] - points[:, 45], axis=1)
    return sign * sum(np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in pairs) / scale


def answers(name: str, film: dict, calmest: int, still: bool) -> dict:
    "{reader: (aus, estimates (n, n_aus))} of one shipped model; three of a reader of meshes, one of photographs."
    model = AUEstimator.from_pretrained(name, device="cpu").classifiers
    if not isinstance(model, MeshReader):
        return {name: (model.aus, model.predict(film["faces"]))}
    plain, said = model.predict(film["meshes"]), said_by(model, film["meshes"])
    zeros = {} if still else {"photo": photo_zero(model, film["meshes"][calmest]),
                              "clip": for_aus(calm_zero(plain, said), model.aus, model.clip_aus)}
    return {name: (model.aus, plain)} | {f"{name} {way}": (model.aus, model.predict(film["meshes"], zero=zero))
                                         for way, zero in zeros.items()}


def known_correlation(a, b) -> float:
    "Of a judge and a reader, over frames that both know; 0 where only the judge moves, NaN where frames are few."
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or np.ptp(a[known]) == 0:
        return np.nan
    return correlation(a[known], b[known]) if np.ptp(b[known]) > 0 else 0.0


def judge_readers(name: str, film: dict, readers, network, still: bool = False) -> list:
    "Rows of the table of `--readers` for one film."
    acts, rows = actions(network, film["points"]), []
    total = acts[:, FACIAL].sum(1)
    calm = total <= np.quantile(total, .1)
    answered = [pair for each in readers for pair in answers(each, film, total.argmin(), still).items()]
    for reader, (aus, found) in answered:
        for au, estimate in zip(aus, found.T):
            judges = {"action": au_evidence(acts, au)}
            judges |= {"distance": distance(film["points"], au)} if au in DISTANCES else {}
            judges |= {"dlib": dlib_distance(film["dlib"], au)} if au in DLIB_DISTANCES else {}
            low, high = np.quantile(estimate, (.05, .95))
            rows += [{"film": name, "reader": reader, "AU": au, "judge": kind, "frames": len(found),
                      "range": np.ptp(values[np.isfinite(values)]) if np.isfinite(values).any() else np.nan,
                      "r": known_correlation(values, estimate), "calm": estimate[calm].mean(), "low": low, "high": high}
                     for kind, values in judges.items()]
    return rows


def measure_readers(clips, photos, readers, model_68, step: int) -> pd.DataFrame:
    "The table of `--readers`."
    landmarker, network = FaceLandmarker.from_pretrained(), load_actions()
    second, rows = SecondJudge(model_68) if model_68 else None, []
    for number, clip in enumerate(clips, 1):
        film = seen_by_both(clip, landmarker, second, step)
        by_dlib = np.isfinite(film["dlib"]).all((1, 2)).sum() if film else 0
        if len(film.get("points", ())) < 10 or second and by_dlib < 10:
            print(f"{clip.name}: a face in fewer than 10 frames, or none that dlib sees (a globe?), left out")
            continue
        rows += judge_readers(f"film {number}", film, readers, network)
        print(f"film {number}: {clip.name}, {len(film['points'])} frames, by dlib {by_dlib}", flush=True)
    stills = [film for film in (seen_by_both(photo, landmarker, second, 1) for photo in photos) if film]
    if stills:
        together = {key: np.concatenate([film[key] for film in stills]) for key in stills[0]}
        rows += judge_readers("photographs", together, readers, network, still=True)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    "Mean r over films of each reader, by judge: over the AUs of `ASKED`, and for each AU over all judges."
    films = table[table.film != "photographs"]
    asked = films[films.AU.isin(ASKED)].pivot_table(index="reader", columns="judge", values="r")
    both = films[films.judge != "distance"]
    means = both[both.AU.isin(ASKED)].groupby("reader").r.mean().rename("both judges")
    by_au = both.pivot_table(index="reader", columns="AU", values="r").rename(columns="AU{}".format)
    return pd.concat([asked, means, by_au], axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--model", default="small")
    parser.add_argument("--compare", type=Path, help="Folder of models, instead of --model.")
    parser.add_argument("--readers", nargs="+", help="Shipped models to ask about the same frames, with two judges.")
    parser.add_argument("--dlib", type=Path, help="dlib's 68-point model, the second judge of --readers.")
    parser.add_argument("--step", type=int, default=1, help="Take every nth frame.")
    parser.add_argument("--out", type=Path, default=Path("data_samples/results/real_clips.csv"))
    a = parser.parse_args()
    paths = [path for source in a.sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    clips = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    photos = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if a.readers:
        table = measure_readers(clips, photos, a.readers, a.dlib, a.step)
        table.round(3).to_csv(a.out, index=False)
        return print(summary(table).round(2).to_string())
    table = compare(clips, photos, a.compare, a.step) if a.compare else measure(clips, photos, a.model, a.step)
    table.round(3).to_csv(a.out, index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
