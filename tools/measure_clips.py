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

With `--readers` several shipped ones are asked about the same frames, readers of meshes and faces without a zero, with
the film's calmest frame as a photograph, and with the zero of the film. Two judges that share nothing answer:
FaceMesh's actions, and distances of dlib's 68 points (`tools/judges.py`, the extra `[dlib]`). How much each itself
knows of an AU, its `validity`, was measured with true levels by

    python tools/measure_clips.py --check-judges 60 --dlib MODEL.dat

and r of a judge that knows too little stands in a column of its own, `r unsure`. Besides, a row says what a reader says
of calm frames (`calm`: mean over the tenth with the smallest sum of actions) and how far it moves (`low`, `high`: its
5th and 95th percentile) and how the two judges correlate (`agree`). Faces that are too small or turned too far do not
count; of several people the one who is there most does. `--people` names the person and package of each file, and means
are over people. `--weights` asks the last reader with other weights of its pixels, before gains and floor. `--posed`
asks all of them about photographs. `--keep` is a folder for what was seen of each film, so that another reader is asked
about the same frames in seconds; classifiers want larger pictures, which are not kept. `--add` leaves the rows of other
readers in the tables as they are.
"""
import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from aufacs_nb.registration.blendshapes import ACTIONS, ACTIONS_OF_AU, actions, au_evidence, load_actions
from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.estimation.pixels import PICTURE, WEIGHTS, FaceReader, changed
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.databases import VIDEO_SUFFIXES
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.registration.frontal import register_face
from aufacs_nb.estimation.estimator import AUEstimator, meshes_of, registered_by
from aufacs_nb.estimation.sources import StreamItem, choose_faces, frame_stream, read_photo
from aufacs_nb.facs import AUS
from aufacs_nb.files import counted
from aufacs_nb.estimation.personalization import personal_generator, personalize
from aufacs_nb.estimation.zero import ClipZeros, photo_zero
from aufacs_nb.presets import WeightsError
from aufacs_nb.registration.collections import FaceChoice
from tools.judges import (DISTANCES, KNOWS, MEASURES, SecondJudge, check_judges, correlation, distance, dlib_measure,
                          known_correlation)

torch.set_num_threads(1)
RESULTS = Path("data_samples/results")
ASKED = (1, 4, 10, 12, 17)   # the AUs of the mean that the end prints first
LEAST, TURNED = 50, 30       # pixels between the sides of a face that counts; degrees of yaw beyond which it does not
FEW = 30                     # frames; a film with fewer is left out

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
            print(f"{clip.name}: a face in only {counted(len(faces), 'frame')}, left out")
            continue
        acts = actions(network, points)
        neutral = int(acts[:, FACIAL].sum(1).argmin())
        personal = personalize(classifiers, generator, faces[neutral])
        rows += judge(f"film {number}", points, acts, {"generic": classifiers.predict(faces),
                                                        "personal": personal.predict(faces)})
        print(f"film {number}: {clip.name}, {counted(len(faces), 'frame')}, neutral frame {neutral}", flush=True)
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


def looked_at(item, face, second, turned: float = TURNED) -> dict | None:
    "What readers and judges need of a frame; None for a face that is too small, or turned by more than `turned`."
    seen = register_face(item.image, face.landmarks, PICTURE)
    if abs(seen.yaw) > turned or np.ptp(face.landmarks[:, 0]) < LEAST:
        return None
    points = second(item.image, face) if second else np.full((68, 2), np.nan)
    return {"faces": registered_by("mesh", [item.image], [face])[0], "pictures": seen.image, "yaw": seen.yaw,
            "meshes": meshes_of([face])[0], "points": face.landmarks, "dlib": points, "person": face.face_id}


def main_person(rows: list) -> dict:
    "Rows of `looked_at` as arrays, of the person who is in most of them; empty without any."
    numbers = [row["person"] for row in rows]
    chosen = max(numbers, key=numbers.count, default=None)
    kept = [row for row in rows if row["person"] == chosen]
    return {name: np.array([row[name] for row in kept]) for name in kept[0]} if kept else {}


def seen_by_both(source, landmarker, second, step: int | None = None, most: int | None = None) -> dict:
    """Arrays `faces`, `pictures`, `meshes`, `points`, `dlib` of the frames of a film that count; empty without any.

    At most `most` frames are looked at, every `step`th; None: every one of a short film, every second of a longer one.
    """
    longer = most and sum(1 for _ in islice(frame_stream(source), most + 1)) > most
    step = step or (2 if longer else 1)
    stream, choice, rows = islice(frame_stream(source), 0, most and most * step, step), FaceChoice(), []
    while items := list(islice(stream, 32)):
        rows += [looked_at(item, face, second)
                 for item, face in zip(items, choose_faces(items, landmarker, choice)) if face]
    return main_person([row for row in rows if row])


def load_reader(name: str):
    "A shipped reader or one in a folder: of faces, of meshes, or classifiers of pixels."
    try:
        return FaceReader.from_pretrained(name)
    except WeightsError:
        return AUEstimator.from_pretrained(name, device="cpu").classifiers


def ask(reader, film: dict, zero=None) -> np.ndarray:
    "Intensities (n, n_aus) of a film's frames."
    if not isinstance(reader, MeshReader):
        return reader.predict(film["faces"])
    return reader.predict(film["meshes"], zero=zero, pictures=film["pictures"])


def zero_of_frame(reader, film: dict, frame: int) -> np.ndarray:
    "The zero of a `MeshReader` from one frame."
    return photo_zero(reader, film["meshes"][[frame]], pictures=film["pictures"][[frame]])


def zeros_of(reader, film: dict, calmest: int) -> dict:
    "{way: zero} of a film: of its calmest frame as a photograph, and of its own calm frames."
    clip = ClipZeros(reader)
    clip.add(["film"] * len(film["meshes"]), film["meshes"], film["pictures"])
    return {"photo": zero_of_frame(reader, film, calmest)} | {"clip": zero for zero in clip.zeros().values()}


def answers(name: str, reader, film: dict, calmest: int, still: bool) -> dict:
    "{name and way: estimates (n, n_aus)} of a reader; three of a reader of meshes, one of photographs."
    zeros = {} if still or not isinstance(reader, MeshReader) else zeros_of(reader, film, calmest)
    return {name: ask(reader, film)} | {f"{name} {way}": ask(reader, film, zero) for way, zero in zeros.items()}


def judged(film: dict, acts) -> dict:
    "{judge: {AU: its measure (n,)}} of a film's frames."
    return {"action": {au: au_evidence(acts, au) for au in ACTIONS_OF_AU},
            "distance": {au: distance(film["points"], au) for au in DISTANCES},
            "dlib": {au: dlib_measure(film["dlib"], au) for au in MEASURES}}


def row_of(kind: str, au: int, values, estimate, calm, validity: dict) -> dict:
    "Numbers of one AU by one judge; r of a judge that does not know the AU stands in a column of its own."
    low, high = np.quantile(estimate, (.05, .95))
    known, r = np.isfinite(values), known_correlation(values, estimate)
    knows = validity.get((kind, au), 1) >= KNOWS
    return {"AU": au, "judge": kind, "frames": len(estimate), "range": np.ptp(values[known]) if known.any() else np.nan,
            "r": r if knows else np.nan, "calm": estimate[calm].mean(), "low": low, "high": high,
            "r unsure": np.nan if knows else r, "validity": validity.get((kind, au), np.nan)}


def judge_readers(film: dict, readers: dict, network, validity: dict, still: bool = False) -> list:
    "Rows of the table of `--readers` for one film."
    acts = actions(network, film["points"])
    total, judges, rows = acts[:, FACIAL].sum(1), judged(film, acts), []
    calm, agree = total <= np.quantile(total, .1), {au: known_correlation(judges["action"][au], values)
                                                    for au, values in judges["dlib"].items()}
    for name, reader in readers.items():
        for way, found in answers(name, reader, film, int(total.argmin()), still).items():
            estimates = dict(zip(reader.aus, found.T))
            rows += [{"reader": way} | row_of(kind, au, values, estimates[au], calm, validity) | {"agree": agree[au]}
                     for kind, by_au in judges.items() for au, values in by_au.items() if au in estimates]
    return rows


def said_apart(reader: FaceReader, film: dict, zero) -> tuple:
    "What the mesh says of a film's frames and what the pixels say, both (n, n_aus), before gain and floor."
    n, said = len(reader.aus), reader.said(film["meshes"], pictures=film["pictures"])
    return said[:, :n] - zero[:n], changed(reader.network, said[:, n:], zero[n:])


def judge_weights(film: dict, reader: FaceReader, network, validity: dict) -> list:
    "Rows of weight, AU, judge and r for one film, its calmest frame being the zero; of judges that know the AU."
    acts, rows = actions(network, film["points"]), []
    zero, judges = zero_of_frame(reader, film, int(acts[:, FACIAL].sum(1).argmin())), judged(film, acts)
    by_mesh, seen = said_apart(reader, film, zero)
    for weight in WEIGHTS:
        estimates = dict(zip(reader.aus, ((1 - weight) * by_mesh + weight * seen).T))
        rows += [{"weight": weight, "AU": au, "judge": kind, "r": known_correlation(values, estimates[au])}
                 for kind in ("action", "dlib") for au, values in judges[kind].items()
                 if validity.get((kind, au), 1) >= KNOWS]
    return rows


def by_weight(rows: list, reader: FaceReader) -> pd.DataFrame:
    "Mean r over people by weight, judge and AU; ICC on virtual people; `shipped`: the own weight of the reader."
    table = over_people(pd.DataFrame(rows), ["weight", "judge", "AU"]).reset_index()
    icc = [reader.card["icc_by_weight"][str(weight)] for weight in table.weight]
    return table.assign(icc=icc, shipped=np.isclose(table.weight, reader.weight))


def kept_film(path: Path | None, look) -> dict:
    "Arrays of a film from a file, if it is there; else what `look()` sees, which is kept there but for the `faces`."
    if path and path.is_file():
        return dict(np.load(path))
    film = look()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name: values for name, values in film.items() if name != "faces"})
    return film


def films_of(clips, second, step, most, people: dict, keep: Path | None = None):
    "(columns film, person and package, what was seen) of each film with enough frames that count."
    landmarker, number = FaceLandmarker.from_pretrained(), 0
    for clip in clips:
        film = kept_film(keep and keep / f"{clip.stem}.npz", lambda: seen_by_both(clip, landmarker, second, step, most))
        frames = len(film.get("points", ()))
        by_dlib = int(np.isfinite(film["dlib"]).all((1, 2)).sum()) if film else 0
        if frames < FEW or second and by_dlib < FEW:
            print(f"{clip.name}: frames that count: {frames}, dlib sees {by_dlib}: left out")
            continue
        number += 1
        print(f"film {number}: {clip.name}, {counted(frames, 'frame')}, by dlib {by_dlib}", flush=True)
        yield {"film": f"film {number}"} | people.get(clip.name, {"person": clip.stem, "package": ""}), film


def measure_readers(clips, readers: dict, model_68, validity: dict, weighed=None, **options) -> tuple:
    "The table of `--readers`, and that of `--weights` for the reader `weighed`, else None."
    network, rows, weights = load_actions(), [], []
    for name, film in films_of(clips, SecondJudge(model_68) if model_68 else None, **options):
        rows += [name | row for row in judge_readers(film, readers, network, validity)]
        weights += [name | row for row in judge_weights(film, weighed, network, validity)] if weighed else []
    return pd.DataFrame(rows), by_weight(weights, weighed) if weights else None


def over_people(table: pd.DataFrame, by: list) -> pd.DataFrame:
    "Mean r of each film, then of a person's films, then of the people: by `by`, columns r and people."
    films = table.dropna(subset="r").groupby([*by, "person", "film"]).r.mean()
    people = films.groupby([*by, "person"]).mean()
    return people.groupby(by).agg(r="mean", people="size")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    "Mean r over people of each reader, by judge: over the AUs of `ASKED`, and for each AU over all judges."
    both = table[table.judge != "distance"]
    asked = both[both.AU.isin(ASKED)]
    parts = {"both judges": asked, "dlib": asked[asked.judge == "dlib"], "all AUs": both}
    parts |= {f"AU{au}": both[both.AU == au] for au in sorted(both.AU.unique())}
    return pd.concat({name: over_people(part, ["reader"]).r for name, part in parts.items()}, axis=1)


def measure_posed(photos, readers: dict, people: dict) -> pd.DataFrame:
    "What each reader says of photographs, without a zero: photo, `people`'s columns, yaw, reader, AU, level."
    landmarker, rows = FaceLandmarker.from_pretrained(), []
    for photo in photos:
        image = read_photo(photo)
        row = looked_at(StreamItem(1, 0., photo.name, image), landmarker.find_all([image])[0][0], None, 90)
        film, own = main_person([row]), {"photo": photo.stem} | people.get(photo.name, {}) | {"yaw": row["yaw"]}
        rows += [own | {"reader": name, "AU": au, "level": level}
                 for name, reader in readers.items() for au, level in zip(reader.aus, ask(reader, film)[0])]
    return pd.DataFrame(rows)


def said_about(path) -> dict:
    "{file name: columns person, package …} of a CSV with a column `file`, or nothing."
    table = pd.read_csv(path, dtype=str).fillna("") if path else pd.DataFrame({"file": []})
    return table.set_index("file").to_dict("index")


def known_validity(path) -> dict:
    "{(judge, AU): validity} of a table of `--check-judges`; everything is believed where there is none."
    if not Path(path).is_file():
        print(f"{path}: not there, so every judge is believed; make it with --check-judges")
        return {}
    table = pd.read_csv(path).query("used")
    return {(row.judge, row.AU): row.validity for row in table.itertuples()}


def check(a) -> None:
    "`--check-judges`: write and print what the judges know of true levels."
    table, points = check_judges(a.check_judges, a.dlib)
    table.round(3).to_csv(a.judges, index=False)
    points.round(1).to_csv(a.judges.with_name(f"{a.judges.stem}_points.csv"), index=False)
    print(table.round(2).to_string(index=False))


def write_table(table: pd.DataFrame, path: Path, add: bool) -> pd.DataFrame:
    "Write a table with a column `reader`, and return it; with `add` beside the rows that it has of other readers."
    if add and path.is_file():
        old = pd.read_csv(path)
        names = table.reader.str.split().str[0].unique()
        table = pd.concat([old[~old.reader.str.split().str[0].isin(names)], table], ignore_index=True)
    table.round(3).to_csv(path, index=False)
    return table


def ask_readers(a, clips, photos) -> None:
    "`--readers`: films, and photographs if `--posed` is given."
    readers, people = {Path(name).name: load_reader(name) for name in a.readers}, said_about(a.people)
    if a.keep and (other := [name for name, reader in readers.items() if not isinstance(reader, MeshReader)]):
        sys.exit(f"{', '.join(other)}: classifiers of pixels want pictures that --keep does not hold; leave it out.")
    if clips:
        weighed = list(readers.values())[-1] if a.weights else None
        table, weights = measure_readers(clips, readers, a.dlib, known_validity(a.judges), weighed, step=a.step,
                                         most=a.most, people=people, keep=a.keep)
        print(summary(write_table(table, a.out, a.add)).round(2).to_string())
        if a.weights:
            weights.round(3).to_csv(a.weights, index=False)
    if a.posed:
        write_table(measure_posed(photos, readers, people), a.posed, a.add)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--model", default="small")
    parser.add_argument("--compare", type=Path, help="Folder of models, instead of --model.")
    parser.add_argument("--readers", nargs="+", help="Shipped models to ask about the same frames, with two judges.")
    parser.add_argument("--dlib", type=Path, help="dlib's 68-point model, the second judge of --readers.")
    parser.add_argument("--step", type=int, help="Take every nth frame.")
    parser.add_argument("--most", type=int, help="Frames of a film that --readers looks at.")
    parser.add_argument("--people", type=Path, help="CSV with columns file, person, package and emotion.")
    parser.add_argument("--weights", type=Path, help="CSV; ask the last of --readers with other weights of pixels.")
    parser.add_argument("--posed", type=Path, help="CSV; what --readers say of the photographs among the sources.")
    parser.add_argument("--keep", type=Path, help="Folder for what readers and judges need of each film.")
    parser.add_argument("--add", action="store_true", help="Keep the rows that the tables have of other readers.")
    parser.add_argument("--check-judges", type=int, metavar="PEOPLE", help="Ask virtual people what judges know.")
    parser.add_argument("--judges", type=Path, default=RESULTS / "real_judges.csv", help="Table of --check-judges.")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_clips.csv")
    a = parser.parse_args()
    if a.check_judges:
        return check(a)
    paths = [path for source in a.sources for path in (sorted(source.iterdir()) if source.is_dir() else [source])]
    clips = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    photos = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if a.readers:
        return ask_readers(a, clips, photos)
    step = a.step or 1
    table = compare(clips, photos, a.compare, step) if a.compare else measure(clips, photos, a.model, step)
    table.round(3).to_csv(a.out, index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
