"""Make the pictures of README: real_frame.jpg, virtual_people.jpg and synthetic.png in nbs/images/.

    python tools/make_pictures.py
"""
from pathlib import Path

from PIL import Image
from skimage.data import astronaut

from aufacs_nb import AUEstimator, FaceLandmarker, load_generator, register_photo
from aufacs_nb.apps.overlay import draw_estimates
from aufacs_nb.facs import AUS
from aufacs_nb.generation.synthesis import intensity_grid
from aufacs_nb.pictures import contact_sheet, save_synthetic
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person

IMAGES = Path(__file__).resolve().parents[1] / "nbs" / "images"
SHOWN = {90_200: {6: 4, 12: 5, 25: 4}, 90_210: {1: 4, 2: 4}, 90_204: {4: 5}, 90_212: {9: 5}, 90_208: {10: 4, 25: 3},
         90_205: {14: 5}, 90_213: {15: 4, 17: 4}, 90_203: {12: 4, 25: 3}}  # seed of a person: AUs


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
    "The photograph's face at 0, C and E of AU4 and AU12, by the shipped flow generator; marked inside the file."
    grid = intensity_grid(load_generator("small", arch="flow"), register_photo(astronaut()).image)
    faces = [grid[AUS.index(au), level] for au in (4, 12) for level in (0, 3, 5)]
    sheet = contact_sheet(faces, 3, side=170, column_titles=list("0CE"), row_titles=["AU4", "AU12"])
    save_synthetic(IMAGES / "synthetic.png", sheet, "small flow", "astronaut", "AU4, AU12 at 0, C, E")


if __name__ == "__main__":
    for make in (real_frame, virtual_people):
        make().save(IMAGES / f"{make.__name__}.jpg", quality=84)
        print(f"{make.__name__}.jpg")
    synthetic()
    print("synthetic.png")
