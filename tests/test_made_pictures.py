"""What this package made itself, in a folder of photographs: registered folders are left out, marked pictures are named."""
import numpy as np
import pytest
from PIL import Image

from aufacs_nb.databases import DatabaseError, folder_manifest, left_unread, media_files
from aufacs_nb.estimation.sources import frame_stream
from aufacs_nb.generation.synthesis import save_animation
from aufacs_nb.pictures import save_synthetic

GREY = np.full((64, 64, 3), 90, np.uint8)


@pytest.fixture
def album(tmp_path):
    "One photograph, two registered folders, one of which is a film's, deep down, and one of a killed run."
    Image.fromarray(GREY).save(tmp_path / "me.png")
    for name, files in {"faces": ["registration.json", "frames.npy"], "trip/day/faces2": ["frames.npy", "manifest.parquet"],
                        "begun": ["registration.json"]}.items():
        (tmp_path / name).mkdir(parents=True)
        for file in files:
            (tmp_path / name / file).touch()
        Image.fromarray(GREY).save(tmp_path / name / "contact.png")
    return tmp_path


def test_contact_sheets_are_no_photographs(album):
    with pytest.warns(UserWarning, match="3 folders of registered frames"):
        assert [item.file for item in frame_stream(album)] == ["me.png"]
    table = folder_manifest(album)
    assert [path.rpartition("/")[2] for path in table.path] == ["me.png"]
    assert len(table.attrs["notes"]) == 1 and "faces" in table.attrs["notes"][0]
    with pytest.raises(DatabaseError, match="no picture"):
        folder_manifest(album / "faces")


def test_a_contact_sheet_elsewhere_is_a_picture(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "contact.png")
    np.save(tmp_path / "frames.npy", GREY)  # somebody else's
    assert len(media_files(tmp_path)) == 1 and left_unread(tmp_path) == ""


def test_synthetic_pictures_are_read_and_named(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "me.png")
    assert left_unread(tmp_path) == ""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    save_synthetic(tmp_path / "smile.png", noise, "small", "me.png", "AU12=4")
    for name in "tour.gif", "tour.mp4":
        save_animation(tmp_path / name, [noise] * 3, "small", "me.png")
    with pytest.warns(UserWarning, match="read, although marked as synthetic: 3 pictures and films .smile.png, tour"):
        assert {item.file for item in frame_stream(tmp_path)} == {"me.png", "smile.png", "tour.gif", "tour.mp4"}
