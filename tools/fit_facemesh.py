"""Find the 468 FaceMesh points on the head of `aufacs_nb.simulation.face_model` (assets/head_facemesh.npz).

    python tools/fit_facemesh.py [--out aufacs_nb/assets/head_facemesh.npz] [--people 24] [--seed 4680]

Heads are rendered with known geometry and shown to FaceMesh. Every point it marks is taken back to the skin triangle
that it fell on, and from there to that place on the average head; the median over all pictures is the point's place.
Parted lips and wide eyes are among the pictures, so that upper and lower rims are told apart; both sides are averaged,
because FaceMesh's own mesh is symmetric. Same seed, same bytes.
"""
import argparse
from itertools import product
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from tqdm import tqdm

from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import project, render_person
from aufacs_nb.registration.detection import FaceLandmarker
from aufacs_nb.geometry.rotation import rotation
from aufacs_nb.simulation.face_model import SKIN, head_model, head_vertices
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.geometry.rasterize import interpolate, rasterize

SIZE = 448
VIEWS = ((0, 0), (-25, 0), (25, 0), (0, 15))  # yaw, pitch
EXPRESSIONS = ({5: 2, 25: 4, 26: 2}, {5: 3, 12: 2, 25: 4})


def places_seen(person, aus, yaw, pitch, landmarker):
    "Places (468, 3) on the average head of the points that FaceMesh sees, NaN where it sees no face."
    picture = render_person(person, aus, yaw=yaw, pitch=pitch, size=SIZE)
    face = landmarker.find_batch([picture])[0]
    if face is None:
        return np.full((468, 3), np.nan)
    vertices = head_vertices(person.identity, aus) @ rotation(yaw, pitch, 0).T
    model = head_model()
    raster = rasterize(project(vertices, SIZE), model.triangles, SIZE)
    skin = raster.covered & (model.part[raster.triangle] == SKIN)
    rows, columns = distance_transform_edt(~skin, return_distances=False, return_indices=True)
    x, y = np.clip(face.landmarks[:468, :2].astype(int), 0, SIZE - 1).T
    return interpolate(raster, model.triangles, model.canonical)[rows[y, x], columns[y, x]]


def all_places(n_people, seed):
    "Places (pictures, 468, 3) over people, expressions and views."
    landmarker = FaceLandmarker.from_pretrained()
    people = [sample_person(seed + k) for k in range(n_people)]
    pictures = list(product(people, EXPRESSIONS, VIEWS))
    return np.array([places_seen(person, aus, *view, landmarker) for person, aus, view in tqdm(pictures)])


def nearest_on_skin(points, candidates=40):
    "Corners (n, 3) and weights (n, 3) of the skin place that is nearest to each point (n, 3) of the average head."
    model = head_model()
    triangles, canonical = model.triangles[model.part == SKIN], model.canonical.astype(float)
    tree = cKDTree(canonical[triangles].mean(1))
    corners, weights = np.zeros((len(points), 3), np.int32), np.zeros((len(points), 3), np.float32)
    for n, point in enumerate(points):
        best = np.inf
        for t in tree.query(point, candidates)[1]:
            a, b, c = canonical[triangles[t]]
            across = np.linalg.lstsq(np.stack([b - a, c - a], 1), point - a, rcond=None)[0]
            weight = np.clip([1 - across.sum(), *across], 0, 1)
            weight /= weight.sum()
            distance = np.linalg.norm(weight @ canonical[triangles[t]] - point)
            if distance < best:
                best, corners[n], weights[n] = distance, triangles[t], weight
    return corners, weights


def main():
    "Render, look, and write the asset."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("aufacs_nb/assets/head_facemesh.npz"))
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--seed", type=int, default=4680)
    options = parser.parse_args()
    places = all_places(options.people, options.seed)
    places = np.concatenate([places, places[:, canonical_face().mirror] * [-1, 1, 1]])
    middle = np.nanmedian(places, axis=0)
    spread = np.nanmedian(np.linalg.norm(places - middle, axis=2), axis=0)
    corners, weights = nearest_on_skin(middle)
    np.savez_compressed(options.out, corners=corners, weights=weights)
    print(f"{options.out}: pictures agree on a point within {10 * np.median(spread):.1f} mm (median), "
          f"{10 * np.quantile(spread, .95):.1f} mm (95 %)")


if __name__ == "__main__":
    main()
