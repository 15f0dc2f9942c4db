"""Make the pictures of README: real_frame.jpg, virtual_people.jpg and synthetic.png in nbs/images/.

    python tools/make_pictures.py
"""
from pathlib import Path

from PIL import Image
from skimage.data import astronaut

from aufacs_nb import AUEstimator, FaceLandmarker
from aufacs_nb.apps.overlay import draw_estimates
from aufacs_nb.generation.photographs import Editor
from aufacs_nb.generation.ratio import load_ratio
from aufacs_nb.pictures import contact_sheet, save_synthetic
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person

IMAGES = Path(__file__).resolve().parents[1] / "nbs" / "images"
SHOWN = {90_200: {6: 4, 12: 5, 25: 4}, 90_210: {1: 4, 2: 4}, 90_204: {4: 5}, 90_212: {9: 5}, 90_208: {10: 4, 25: 3},
         90_205: {14: 5}, 90_213: {15: 4, 17: 4}, 90_203: {12: 4, 25: 3}}  # seed of a person: AUs
SMILE = {6: 1, 12: 3, 25: 3}  # what Eileen Collins shows already, and keeps


def real_frame():
    "NASA's portrait of Eileen Collins, its upper half, with what the shipped classifiers say of it."
    photo = astronaut()[:300, 60:400]
    rows = AUEstimator.from_pretrained("small").predict(photo)
    return Image.fromarray(draw_estimates(photo, [FaceLandmarker.from_pretrained().find_one(photo)], rows))


def virtual_people():
    "Eight virtual people at rest and, below, showing AUs."
    people = [sample_person(seed) for seed in SHOWN]
    tiles = [render_person(person, aus, size=150, supersample=2) for shown in ([{}] * len(people), SHOWN.values())
             for person, aus in zip(people, shown)]
    return contact_sheet(tiles, columns=len(people), side=112)


def synthetic():
    "The photograph with four expressions that were never photographed, by the shipped ratio generator; marked in the file."
    photo = astronaut()
    editor = Editor(photo, load_ratio("medium", aus=None), shows=SMILE)
    wishes = {"photograph": {}, "AU1, 2, 5": {1: 4, 2: 4, 5: 3}, "AU4, 7": {4: 5, 7: 3}, "AU26": {26: 4}, "AU43": {43: 5}}
    tiles = [editor(SMILE | wish) for wish in wishes.values()]
    sheet = contact_sheet([tile[0:200, 125:325] for tile in tiles], len(wishes), side=150, column_titles=list(wishes))
    save_synthetic(IMAGES / "synthetic.png", sheet, "ratio", "astronaut", ", ".join(wishes))


if __name__ == "__main__":
    for make in (real_frame, virtual_people):
        make().save(IMAGES / f"{make.__name__}.jpg", quality=84)
        print(f"{make.__name__}.jpg")
    synthetic()
    print("synthetic.png")
