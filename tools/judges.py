"""Judges of AU estimates that know nothing of our readers, and what they themselves know of true levels.

One judge is FaceMesh with its actions. The other shares nothing with it: dlib finds the face and 68 points by itself
(the extra `[dlib]`), and distances between points stand for AUs. Which distances? `check_judges` photographs virtual
people in rich moments and asks how well each candidate follows the true level within a person. Half of the people
choose the candidate, the other half say how good it is: its *validity*. Films choose nothing.
"""
import re

import numpy as np
import pandas as pd

from aufacs_nb.files import counted
from aufacs_nb.registration.blendshapes import ACTIONS_OF_AU, actions, au_evidence, load_actions
from aufacs_nb.registration.planar import DlibLandmarker
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person
from aufacs_nb.simulation.time_courses import ALL_AUS

SEARCHED = 300   # height of the pictures that dlib searches, pixels; its least face is 80, then 40
KNOWS = .2       # validity below which a judge does not know an AU
SEED = 18        # of the virtual people of `check_judges`
EXAMPLE, EXAMPLES = 5, {"at rest": {}, "brows, smile, lips": {1: 4, 2: 4, 12: 4, 25: 3}}   # person and AUs of a picture

# A measure is a sum of terms: `+48-54` the distance of points 48 and 54, `-48^57` less the height of 48 over 57, along
# the face's own up; all as shares of the distance between the outer eye corners. Of each AU the first is the judge: the
# one that the choosing half of `check_judges` likes best. Left out is what a blink, or parted lips, would decide.
MEASURES = {
    1: ("+21-39 +22-42", "+21^39 +22^42", "+21^27 +22^27"),
    2: ("+18^36 +25^45", "+18-36 +25-45", "+17^36 +26^45", "+19^36 +24^45"),
    4: ("-20-23 -21-22", "-21-22", "-20-23", "-21^39 -22^42", "-21-22 -21^39 -22^42"),
    5: ("+37^36 +38^39 +43^42 +44^45", "+37-41 +38-40 +43-47 +44-46", "+37^36 +38^36 +43^45 +44^45"),
    6: ("+41^36 +40^39 +47^42 +46^45", "+48^33 +54^33", "-48-36 -54-45"),
    7: ("+41^36 +40^36 +47^45 +46^45", "+41^36 +40^39 +47^42 +46^45"),
    9: ("-21-31 -22-35", "-27-33", "+31^39 +35^42", "-21^33 -22^33"),
    10: ("+50^33 +52^33", "-33-51", "-31-50 -35-52", "+50^48 +52^54"),
    12: ("+48-54 +48^33 +54^33", "+48-54", "+48^33 +54^33", "-48-36 -54-45"),
    14: ("+48-54", "+48-54 -51-57", "+48^57 +54^57"),
    15: ("-48^51 -54^51 -48^57 -54^57", "-48^33 -54^33", "-48^51 -54^51", "-48^8 -54^8"),
    17: ("-48^57 -54^57 -66-57", "-48^57 -54^57", "+57^33", "-66-57", "-57-8"),
    20: ("+48-54 -48^33 -54^33", "+48-54", "-48^33 -54^33"),
    23: ("-50-61 -52-63 -67-58 -65-56", "-51-62 -66-57", "-48-54"),
    24: ("-51-57", "-51-62 -66-57", "-48-54"),
    25: ("+62-66", "+61-67 +62-66 +63-65"),
    26: ("-57^33", "+33-57", "+33-8", "+27-8"),
    43: ("-37-41 -38-40 -43-47 -44-46", "-37^36 -38^39 -43^42 -44^45")}

# FaceMesh: pairs of landmarks whose distance, as a share of that of the outer eye corners, grows (+) or shrinks (−)
DISTANCES = {1: (+1, ((107, 133), (336, 362))), 4: (-1, ((55, 285),)), 10: (-1, ((0, 2),)), 12: (+1, ((61, 291),)),
             17: (-1, ((17, 152),))}


def terms(measure: str) -> list:
    "(sign, point, kind, other point) of each term; ValueError for a text that is no measure."
    if not re.fullmatch(r"[+-]\d+[-^]\d+( [+-]\d+[-^]\d+)*", measure):
        raise ValueError(f"measure {measure!r}: write terms such as '+48-54 -48^57', a space between them.")
    return [(1 if sign == "+" else -1, int(a), kind, int(b))
            for sign, a, kind, b in re.findall(r"([+-])(\d+)([-^])(\d+)", measure)]


def measured(points, measure: str) -> np.ndarray:
    "A measure of dlib's points (n, 68, 2), y down: (n,), in distances between the outer eye corners."
    across = points[:, 45] - points[:, 36]
    scale = np.linalg.norm(across, axis=1)
    up, total = np.stack([across[:, 1], -across[:, 0]], 1) / scale[:, None], 0
    for sign, a, kind, b in terms(measure):
        step = points[:, a] - points[:, b]
        total = total + sign * (np.linalg.norm(step, axis=1) if kind == "-" else (step * up).sum(1))
    return total / scale


def distance(points, au: int) -> np.ndarray:
    "The landmark measure of an AU among FaceMesh's (n, 478, 3): (n,); rises with the AU."
    sign, pairs = DISTANCES[au]
    scale = np.linalg.norm(points[:, 33] - points[:, 263], axis=1)
    return sign * sum(np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in pairs) / scale


def dlib_measure(points, au: int) -> np.ndarray:
    "What stands for an AU among dlib's points (n, 68, 2): (n,); rises with the AU, NaN where dlib found no face."
    return measured(points, MEASURES[au][0])


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


def correlation(a, b) -> float:
    "Pearson's r; NaN where one of them never varies."
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def known_correlation(a, b) -> float:
    "Of a judge and a reader, over frames that both know; 0 where only the judge moves, NaN where frames are few."
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 10 or np.ptp(a[known]) == 0:
        return np.nan
    return correlation(a[known], b[known]) if np.ptp(b[known]) > 0 else 0.0


def within(values, levels, people) -> float:
    "Mean over people (N,) of the correlation of a measure (N,) with true levels (N,) that vary."
    found = [known_correlation(values[people == who], levels[people == who]) for who in np.unique(people)
             if np.ptp(levels[people == who]) > 0]
    return float(np.nanmean(found))


def virtual_frames(number: int, second) -> list:
    "(levels, landmarks, dlib's points) of the frames of virtual person `number`; nothing is held before the face."
    from tools.rich_people import frames_of, landmarker
    shots = list(frames_of(sample_person(SEED * 1_000_003 + number), np.random.default_rng([SEED, number, 18])))
    faces = landmarker().find_batch([picture for picture, _, _ in shots])
    return [(list(shown["levels"].values()), face.landmarks, second(picture, face))
            for face, (picture, shown, _) in zip(faces, shots) if face and not shown["held"][0]]


def validity_table(measures: dict, levels, people, aus) -> pd.DataFrame:
    """Columns AU, judge, measure, choosing, validity, used of measures {(judge, AU): {name: values (N,)}}.

    levels: (N, n_aus); people: (N,) numbers. `choosing` is r of the even people, `validity` that of the odd ones. The
    first measure of each judge and AU is the one that is used.
    """
    odd, rows = people % 2 == 1, []
    for (judge, au), candidates in measures.items():
        truth = levels[:, list(aus).index(au)]
        rows += [{"AU": au, "judge": judge, "measure": name,
                  "choosing": within(values[~odd], truth[~odd], people[~odd]),
                  "validity": within(values[odd], truth[odd], people[odd]), "used": k == 0}
                 for k, (name, values) in enumerate(candidates.items())]
    return pd.DataFrame(rows).sort_values(["AU", "judge", "used"], ascending=[True, True, False], ignore_index=True)


def example_points(second) -> pd.DataFrame:
    "dlib's points on a virtual face at rest and on one that moves: columns face, point, x, y, in pixels of 256."
    from tools.rich_people import landmarker
    rows = []
    for name, aus in EXAMPLES.items():
        picture = render_person(sample_person(EXAMPLE), aus, size=256)
        points = second(picture, landmarker().find_batch([picture])[0])
        rows += [{"face": name, "point": k, "x": x, "y": y} for k, (x, y) in enumerate(points)]
    return pd.DataFrame(rows)


def check_judges(number: int, model_68) -> tuple:
    "The `validity_table` of both judges by `number` virtual people, and the `example_points`."
    second = SecondJudge(model_68)
    frames = [(who, *frame) for who in range(number) for frame in virtual_frames(who, second)]
    people, levels, landmarks, points = (np.array(column) for column in zip(*frames))
    acts = actions(load_actions(), landmarks)
    measures = {("action", au): {" ".join(names): au_evidence(acts, au)} for au, names in ACTIONS_OF_AU.items()}
    measures |= {("distance", au): {"landmarks": distance(landmarks, au)} for au in DISTANCES}
    measures |= {("dlib", au): {text: measured(points, text) for text in texts} for au, texts in MEASURES.items()}
    found = np.isfinite(points).all((1, 2)).mean()
    print(f"{counted(number, 'virtual person', 'virtual people')}, {counted(len(people), 'frame')} with nothing held; dlib finds the face in {found:.1%}")
    return validity_table(measures, levels, people, ALL_AUS), example_points(second)
