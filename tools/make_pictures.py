"""Make the picture of virtual people that README opens with: nbs/images/virtual_people.jpg.

    python tools/make_pictures.py
"""
from pathlib import Path

from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person
from aufacs_nb.pictures import contact_sheet

SHOWN = {90_200: {6: 4, 12: 5, 25: 4}, 90_210: {1: 4, 2: 4}, 90_204: {4: 5}, 90_212: {9: 5}, 90_208: {10: 4, 25: 3},
         90_205: {14: 5}, 90_213: {15: 4, 17: 4}, 90_203: {12: 4, 25: 3}}  # seed of a person: AUs

if __name__ == "__main__":
    people = [sample_person(seed) for seed in SHOWN]
    tiles = [render_person(person, aus, size=150, supersample=2) for shown in ([{}] * len(people), SHOWN.values())
             for person, aus in zip(people, shown)]
    out = Path(__file__).resolve().parents[1] / "nbs" / "images" / "virtual_people.jpg"
    contact_sheet(tiles, columns=len(people), side=112).save(out, quality=82)
    print(out.name)
