"""What can be read: pictures in every form, lists and folders with something broken in them, photographs of several people."""
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.databases import DatabaseError, fera17_manifest, sample_database
from aufacs_nb.estimation.sources import (StreamItem, choose_faces, every_face, found_faces, frame_stream,
                                          in_batches, is_photo, read_photo)
from aufacs_nb.registration.collections import EveryFace
from aufacs_nb.registration.detection import FaceLandmarker, PictureError


@pytest.fixture(scope="module")
def landmarker():
    return FaceLandmarker.from_pretrained()


@pytest.fixture(scope="module")
def clip():
    return fera17_manifest(sample_database(), partitions=("Test",)).path.iloc[0]


@pytest.fixture(scope="module")
def group():
    "Five people, the fourth of whom is the largest, in a photograph in which all are small."
    head, picture = Image.fromarray(astronaut()[20:260, 110:350]), np.full((700, 1500, 3), 120, np.uint8)
    for x, side in ((20, 130), (220, 150), (450, 140), (700, 230), (1100, 150)):
        picture[100:100 + side, x:x + side] = np.asarray(head.resize((side, side)))
    return picture


small = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
SAME = {"0–1": small / 255, "float32": (small / 255).astype(np.float32), "RGBA": np.dstack([small, small[..., :1]]),
        "Pillow": Image.fromarray(small), "Pillow RGBA": Image.fromarray(small).convert("RGBA"),
        "CHW": torch.tensor(small).permute(2, 0, 1), "CHW 0–1": torch.tensor(small).permute(2, 0, 1) / 255,
        "CHW that needs a gradient": (torch.tensor(small).permute(2, 0, 1) / 255).requires_grad_()}


@pytest.mark.parametrize("form", SAME)
def test_the_same_picture_in_every_form(form):
    assert is_photo(SAME[form])
    [item] = frame_stream(SAME[form])
    assert item.image.dtype == np.uint8 and np.array_equal(item.image, small)
    assert np.array_equal(read_photo(SAME[form]), small)


@pytest.mark.parametrize("grey", [small[..., 0], small[..., :1], Image.fromarray(small[..., 0]),
                                  torch.tensor(small[..., 0]), torch.tensor(small[None, ..., 0]),
                                  Image.fromarray(small[..., 0].astype(np.uint16) * 256)])
def test_grey_is_repeated(grey):
    [item] = frame_stream(grey)
    assert np.array_equal(item.image, np.repeat(small[..., :1], 3, 2))


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(small).save(tmp_path / "side.png", exif=exif)
    with Image.open(tmp_path / "side.png") as picture:
        [item] = frame_stream(picture)
    assert item.image.shape == (9, 6, 3) and np.array_equal(item.image, read_photo(tmp_path / "side.png"))


@pytest.mark.parametrize("stack", [np.stack([small] * 3), np.stack([small / 255] * 3), np.stack([SAME["RGBA"]] * 3),
                                   torch.stack([SAME["CHW"]] * 3), torch.stack([SAME["CHW 0–1"]] * 3)])
def test_stacks_of_frames(stack):
    items = list(frame_stream(stack))
    assert not is_photo(stack) and [item.frame for item in items] == [1, 2, 3]
    assert all(np.array_equal(item.image, small) for item in items)
    with pytest.raises(PictureError, match="3 pictures; give one"):
        read_photo(stack)


@pytest.mark.parametrize("bad, said", [(small.astype(float), "floats from 0 to 2..; .*divide by 255"), (small.astype(np.int64), "int64"),
                                       (small / 255 - .1, "must run from 0 to 1"), (small * np.nan, "nan"),
                                       (np.moveaxis(small, 2, 0), "np.moveaxis"), (torch.tensor(small), r"\(C, H, W\)"),
                                       (np.zeros((0, 4, 3), np.uint8), "no picture"), (np.zeros(5), "no picture"),
                                       ({"a": 1}, "cannot read a dict"), (None, "cannot read a NoneType")])
def test_what_cannot_be_read_is_refused_and_named(bad, said):
    with pytest.raises((ValueError, TypeError), match=said), warnings.catch_warnings(action="ignore"):
        list(frame_stream(bad))


def test_one_bad_member_of_a_list_is_a_row(clip, tmp_path):
    Image.fromarray(small).save(tmp_path / "me.png")
    (tmp_path / "cut.mp4").write_bytes(open(clip, "rb").read()[:2000])
    mixed = [tmp_path / "me.png", small * 7., tmp_path / "none.png", tmp_path / "cut.mp4", SAME["CHW"], tmp_path, 3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = list(frame_stream(mixed))
    good = [item.image is not None for item in items]
    assert good == [True, False, False, False, True, False, True, False] and len(caught) == 5
    names = [item.file for item in items]
    assert names == [str(tmp_path / "me.png"), "array 2", str(tmp_path / "none.png"), str(tmp_path / "cut.mp4"), "tensor 5",
                     f"{tmp_path}/cut.mp4", f"{tmp_path}/me.png", "int 7"]
    with pytest.raises(DatabaseError, match="no picture and no video"):
        (tmp_path / "empty").mkdir()
        list(frame_stream(tmp_path / "empty"))


def test_films_of_a_list_are_told_apart(clip):
    items = list(frame_stream([clip, clip]))
    assert len({item.clip for item in items}) == 2 and [item.frame for item in items] == 2 * list(range(1, 25))


def test_the_largest_of_a_group_is_taken_and_said(landmarker, group):
    item = StreamItem(1, 0., "group.png", group)
    with pytest.warns(UserWarning, match="group.png: . faces; the largest is taken, number . from the left.*faces='all'"):
        [main] = choose_faces([item], landmarker)
    [everybody] = every_face([item], landmarker, EveryFace())
    assert len(everybody) == 5 and [face.face_id for face in everybody] == [0, 1, 2, 3, 4]
    assert main.area == max(face.area for face in everybody) and 700 < main.box[0] < 930
    assert np.array_equal(main.landmarks, everybody[0].landmarks)


def test_a_small_face_behind_a_large_one_is_seen_by_everybody_alone(landmarker):
    picture = np.full((900, 900, 3), 128, np.uint8)
    head = Image.fromarray(astronaut()[20:260, 110:350])
    picture[150:850, :700], picture[20:130, 760:870] = np.asarray(head.resize((700, 700))), np.asarray(head.resize((110, 110)))
    item = StreamItem(1, 0., "two.png", picture)
    with warnings.catch_warnings(action="error"):
        [main] = choose_faces([item], landmarker)
    [everybody] = every_face([item], landmarker, EveryFace())
    assert len(everybody) == 2 and np.array_equal(main.landmarks, everybody[0].landmarks)
    assert everybody[0].area > 10 * everybody[1].area


def test_where_batches_begin_changes_no_face(landmarker, clip):
    "A film of which more than one stretch is read: the same faces to the bit in batches of any size."
    frames = [item.image for item in frame_stream(clip)]
    film = [StreamItem(k + 1, k / 25, "film", image, "film") for k, image in enumerate(frames + frames[::-1])]
    from aufacs_nb.estimation import sources

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "frame_stream", iter)
        read = [[faces for batch in in_batches(found_faces(film, landmarker, way), size) for _, faces in batch]
                for way, size in (("main", 32), ("main", 1), ("all", 5))]
    for one, single, every in zip(*read, strict=True):
        assert np.array_equal(one[0].landmarks, single[0].landmarks) and one[0].face_id == single[0].face_id
        assert any(np.array_equal(one[0].landmarks, face.landmarks) for face in every)


def test_large_pictures_fill_no_batch():
    huge = np.zeros((1, 1, 3), np.uint8)
    huge = np.lib.stride_tricks.as_strided(huge, (8000, 8000, 3), (0, 0, 1))  # 192 MB, without holding them
    pairs = [(StreamItem(1, 0., "a", huge), [])] * 3
    assert [len(batch) for batch in in_batches(iter(pairs), 32)] == [2, 1] or \
        [len(batch) for batch in in_batches(iter(pairs), 32)] == [1, 1, 1]
