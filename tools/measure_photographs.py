"""Ask FaceMesh's actions what each way of changing a face does to real photographs; only numbers are kept.

    python tools/measure_photographs.py FOLDER [--out data_samples/results/real_photographs.csv]

FOLDER holds photographs (.jpg, .png), one face each counts (the largest). For each way and action unit the table says
in which share of the photographs the unit's own action rises by more than 0.02 from the photograph to the picture at E.
Nothing of the photographs is written anywhere.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.data import astronaut
from tqdm import tqdm

from aufacs_nb.databases import read_image
from aufacs_nb.registration.detection import FaceLandmarker, NoFaceError
from aufacs_nb.facs import AUS
from aufacs_nb.tensors import frames_to_tensor, tensor_to_frames
from aufacs_nb.evaluation.image_quality import IdentityCode, tracker_evidence
from aufacs_nb.registration.collections import register_photo
from aufacs_nb.apps.studio import photo_ways

torch.set_num_threads(1)
RISE = 0.02


def measure(photos, ways):
    landmarker, code = FaceLandmarker.from_pretrained(), IdentityCode.from_pretrained()
    rises, identity, used = {name: [] for name in ways}, {name: [] for name in ways}, 0
    for name, photo in tqdm(photos):
        try:
            result = register_photo(photo, source=name, landmarker=landmarker)
        except NoFaceError as error:
            print(error)
            continue
        used += 1
        frame = tensor_to_frames(frames_to_tensor(result.image[None], 96))
        before = tracker_evidence(frame, landmarker)
        for way in ways:
            made = np.stack([ways[way](frame[0], result.vertices * 96 / 224, target) for target in np.eye(len(AUS))])
            rises[way].append(np.diagonal(tracker_evidence(made, landmarker) - before))
            identity[way].append(code.similarity(made, frame.repeat(len(made), 0)).mean())
    table = pd.DataFrame({way: (np.array(values) > RISE).mean(0) for way, values in rises.items()},
                         index=[f"AU{au}" for au in AUS]).T.rename_axis("way")
    table["median rise"] = [np.nanmedian(np.array(values)[:, [0, 1, 3, 4, 6]]) for values in rises.values()]
    table["identity"] = [np.mean(values) for values in identity.values()]
    table["photographs"] = used
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data_samples/results/real_photographs.csv"))
    a = parser.parse_args()
    paths = sorted(p for p in a.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    photos = [("astronaut", astronaut()), *((path.name, read_image(path)) for path in paths)]
    table = measure(photos, photo_ways())
    table.round(3).to_csv(a.out)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
