"""Registration of what people really bring: half faces, tiny faces, giant pictures, broken and uneven films."""
import json
import os
import re
import subprocess
import sys
import warnings
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person
from aufacs_nb.databases import DatabaseError, file_manifest, folder_manifest, read_image, timed_frames
from aufacs_nb.registration import collections, planar
from aufacs_nb.registration.detection import FaceLandmarker, NoFaceError
from aufacs_nb.registration.collections import open_registered, register_manifest, register_photo
from peak import PEAK
from tools.contents import contents


@pytest.fixture(scope="module")
def talk():
    "A virtual person for 40 frames, 160 × 160."
    person = sample_person(21)
    return [render_person(person, {26: 3 * abs(np.sin(k / 3)), 12: 2}, yaw=10 * np.sin(k / 9), size=160)
            for k in range(40)]


def write_film(path, frames, times=None, options=None):
    "Encode frames; times: seconds of each, 25 a second if None."
    with av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "15", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (k / 25 if times is None else times[k])), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def register(aufacs_command, *arguments, **options):
    "Run `aufacs register`; its exit code and what it said."
    done = subprocess.run([aufacs_command, "register", *map(str, arguments), "--quiet"], capture_output=True, text=True,
                          **options)
    return done.returncode, done.stdout + done.stderr


# imports

def test_registration_does_not_load_the_simulation():
    code = "import sys; import aufacs_nb.registration.collections; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "aufacs_nb.registration.prnet" in loaded
    assert not [name for name in loaded if name.startswith(("aufacs_nb.simulation", "aufacs_nb.generation"))]


# pictures

def test_no_face_is_said_and_kept(tmp_path, aufacs_command):
    Image.new("RGB", (300, 200), (90, 120, 60)).save(tmp_path / "lawn.png")
    with pytest.raises(NoFaceError, match="lawn.png: no face found in 300 x 200"):
        register_photo(tmp_path / "lawn.png")
    code, said = register(aufacs_command, tmp_path / "lawn.png", "--out", tmp_path / "out")
    assert code == 1 and "lawn.png: no face in 1 frame:" in said and "Traceback" not in said
    result = open_registered(tmp_path / "out")
    assert not result.manifest.valid.any() and not result.frames.any()


def test_half_a_face_is_refused_and_most_of_one_registered_as_far_as_it_goes():
    with pytest.raises(NoFaceError, match="both eyes"):
        register_photo(np.ascontiguousarray(astronaut()[:, :222]))
    most, whole = register_photo(np.ascontiguousarray(astronaut()[:, :250])), register_photo(astronaut())
    assert most.share < .9 * whole.share and not most.visible[60:160, 180:].any()
    both = most.visible & whole.visible
    assert both.mean() > .2 and np.abs(most.image[both].astype(int) - whole.image[both]).mean() < 25


@pytest.mark.parametrize("pixels", [20, 28])
def test_a_face_of_few_pixels_is_found_or_refused_in_words(pixels):
    face = FaceLandmarker.from_pretrained().find_one(astronaut())
    scale = pixels / (face.box[2] - face.box[0])
    small = Image.fromarray(astronaut()).resize(2 * [round(512 * scale)], Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (400, 300), (110, 110, 110))
    picture.paste(small, (250, 90))
    found = FaceLandmarker.from_pretrained().find(np.asarray(picture))
    expected = face.landmarks[:, :2] * scale + [250, 90]
    assert len(found) == 1 and np.linalg.norm(found[0].landmarks[:, :2] - expected, axis=1).mean() < 3
    result = register_photo(np.asarray(picture))
    assert result.image.shape == (224, 224, 3) and result.share > .8


def test_a_hundred_megapixels_in_bounded_memory(tmp_path):
    head = Image.fromarray(astronaut()[:300, 80:380]).resize((3000, 3000))
    giant = Image.new("RGB", (10_000, 10_000), (100, 110, 120))
    giant.paste(head, (5200, 3100))
    giant.save(tmp_path / "giant.jpg", quality=80)
    del giant
    code = PEAK + ("import sys; from aufacs_nb.registration.collections import register_photo; start = peak(); "
                   "print(register_photo(sys.argv[1]).share, peak() - start)")
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code, tmp_path / "giant.jpg"],
                          capture_output=True, text=True, check=True)
    share, grown = map(float, done.stdout.split())
    assert share > .9 and grown < 900_000, f"{grown / 1000:.0f} MB more than before for a picture of 300 MB"


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pictures_turned_by_exif_grey_and_alpha(tmp_path, orientation):
    upright = Image.fromarray(astronaut())
    turned = upright.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
                                8: Image.Transpose.ROTATE_270}[orientation])
    exif = turned.getexif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "turned.png", exif=exif)
    upright.convert("L").save(tmp_path / "grey.png")
    upright.convert("RGBA").save(tmp_path / "alpha.png")
    plain = register_photo(astronaut())
    for name, most in (("turned", 2), ("alpha", 2), ("grey", 30)):
        other = register_photo(tmp_path / f"{name}.png")
        assert np.abs(other.image.astype(int) - plain.image).mean() < most and abs(other.roll - plain.roll) < 2


def test_an_unreadable_picture_stops_or_is_skipped(tmp_path):
    for name in ("a", "b", "c"):
        Image.fromarray(astronaut()).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:5000])
    manifest = folder_manifest(tmp_path)
    with pytest.raises(DatabaseError, match="b.png: not a readable picture.*kept in"):
        register_manifest(manifest, tmp_path / "out", size=48, progress=False)
    with pytest.warns(UserWarning, match="b.png.*not valid"):
        result = register_manifest(manifest, tmp_path / "out", size=48, on_error="skip", progress=False)
    assert result.manifest.valid.tolist() == [True, False, True]


# films

def test_a_film_that_breaks_off_keeps_what_was_there(tmp_path, talk, aufacs_command):
    film = write_film(tmp_path / "talk.mkv", talk)
    manifest = file_manifest(film)
    whole = register_manifest(manifest, tmp_path / "whole", size=48, progress=False)
    film.write_bytes(film.read_bytes()[:int(film.stat().st_size * .6)])  # in the middle of a frame
    with pytest.raises(DatabaseError, match="talk.mkv.*(ends after|breaks off).*kept in"):
        register_manifest(manifest, tmp_path / "torn", size=48, progress=False)
    with pytest.warns(UserWarning, match="talk.mkv.*not valid"):
        torn = register_manifest(manifest, tmp_path / "torn", size=48, on_error="skip", progress=False)
    kept = int(torn.manifest.valid.sum())
    assert 10 < kept < 35 and torn.manifest.valid.tolist() == [True] * kept + [False] * (40 - kept)
    close = np.abs(np.array(torn.frames[:kept], int) - whole.frames[:kept]).mean()
    assert close < 2 and not torn.frames[kept:].any()
    code, said = register(aufacs_command, film, "--out", tmp_path / "alone", "--size", 48)
    assert code == 0 and "frames with a face" in said


def test_a_film_of_which_only_the_head_is_left(tmp_path, talk):
    film = write_film(tmp_path / "talk.mkv", talk[:12])
    manifest, data = file_manifest(film), film.read_bytes()
    film.write_bytes(data[:1200])
    with pytest.raises(DatabaseError, match="talk.mkv"):
        register_manifest(manifest, tmp_path / "out", size=48, progress=False)
    with pytest.warns(UserWarning, match="not valid"):
        result = register_manifest(manifest, tmp_path / "out", size=48, on_error="skip", progress=False)
    assert not result.manifest.valid.any() and len(result.frames) == 12


def test_a_film_without_its_index_is_named(tmp_path, talk, aufacs_command):
    film = write_film(tmp_path / "talk.mp4", talk[:10])
    film.write_bytes(film.read_bytes()[:-800])
    code, said = register(aufacs_command, film, "--out", tmp_path / "out")
    assert code == 2 and "Traceback" not in said
    assert "talk.mp4: no picture stream" in said or "talk.mp4: not a readable" in said


def test_uneven_frames_keep_their_times(tmp_path, talk):
    times = np.cumsum([0, *np.random.default_rng(0).choice([.02, .033, .05, .2], 39)])
    film = write_film(tmp_path / "phone.mkv", talk, times)
    assert np.allclose([time for time, _ in timed_frames(film)], times, atol=.002)
    result = register_manifest(file_manifest(film), tmp_path / "out", size=48, progress=False)
    assert np.allclose(result.manifest.timestamp, times, atol=.002)
    assert result.manifest.valid.all() and set(result.manifest.face_id) == {0}


def test_a_film_of_no_frames_is_refused(tmp_path, talk, aufacs_command):
    film = tmp_path / "none.mkv"
    with av.open(str(film), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    code, said = register(aufacs_command, film, "--out", tmp_path / "out")
    assert code == 2 and "none.mkv" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "frames.npy").exists()


# folders and runs

def test_a_folder_that_cannot_be_written_is_named(tmp_path, talk, aufacs_command):
    film = write_film(tmp_path / "talk.mp4", talk[:5])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    out = locked / "out" if os.geteuid() else "/proc/aufacs_nb"  # root may write where others may not
    code, said = register(aufacs_command, film, "--out", out)
    assert code == 2 and "could not be written" in said and "choose a folder" in said and "Traceback" not in said


def test_methods_share_their_faces_but_not_their_pictures(tmp_path, talk):
    manifest = file_manifest(write_film(tmp_path / "talk.mp4", talk[:8]))
    results = {method: register_manifest(manifest, tmp_path / method, size=96, method=method, progress=False)
               for method in ("mesh", "prnet", "procrustes")}
    mesh = results["mesh"].manifest
    for method, result in results.items():
        assert result.manifest.valid.all() and np.allclose(result.manifest.left, mesh.left)
    corner = {method: np.array(result.frames)[:, :8, :8].mean() for method, result in results.items()}
    assert corner["mesh"] == corner["prnet"] == 0 < corner["procrustes"]
    assert np.abs(np.array(results["prnet"].frames, int) - results["mesh"].frames).mean() < 25
    settings = json.loads((tmp_path / "prnet" / "registration.json").read_text())
    assert settings["method"] == "prnet" and settings["size"] == 96


def test_flat_registration_does_not_run_the_3d_registration(monkeypatch):
    whole = register_photo(astronaut())
    monkeypatch.setattr(collections, "register_face", None)
    flat = register_photo(astronaut(), method="procrustes")
    assert np.array_equal(flat.vertices, whole.vertices) and flat[3:6] == whole[3:6]  # yaw, pitch, roll
    assert flat.visible.all() and flat.share == 1
    cut = register_photo(np.ascontiguousarray(astronaut()[:, :245]), method="procrustes")
    assert .3 < cut.share < .8 and not cut.image[~cut.visible].any()


def test_memory_does_not_grow_with_the_film(tmp_path, talk):
    code = PEAK + ("import sys; from aufacs_nb.registration.collections import register_manifest; "
                   "from aufacs_nb.databases import file_manifest; "
                   "register_manifest(file_manifest(sys.argv[1]), sys.argv[2], progress=False); print(peak())")
    peak = {}
    for count in (64, 320):
        film = write_film(tmp_path / f"{count}.mp4", (talk * 8)[:count])
        done = subprocess.run([sys.executable, "-c", code, film, tmp_path / str(count)], capture_output=True, text=True,
                              check=True)
        peak[count] = float(done.stdout)
    assert peak[320] < peak[64] + 30_000, f"{peak} kB; 256 frames more are 38 MB of registered pixels"


# everybody

@pytest.fixture(scope="module")
def company(tmp_path_factory):
    "Manifest of a film of two people, a photograph of three, an empty picture and a portrait."
    folder = tmp_path_factory.mktemp("company")
    faces = [render_person(sample_person(seed), {12: 3}, size=160) for seed in (21, 22, 23)]
    film = [np.concatenate([np.roll(faces[0], k % 9, 1), faces[1]], 1) for k in range(40)]
    write_film(folder / "a.mp4", film)
    three = np.full((320, 480, 3), 90, np.uint8)
    three[:160, :160], three[160:, 320:], three[20:100, 300:380] = faces[0], faces[1], faces[2][::2, ::2]
    for name, picture in {"b": three, "c": three * 0, "d": faces[2]}.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder_manifest(folder)


def test_everybody_has_rows_of_their_own_with_the_bits_of_one(tmp_path, company):
    everyone = register_manifest(company, tmp_path / "all", size=48, faces="all", progress=False)
    with pytest.warns(UserWarning, match="1 of 3 photographs shows several people"):
        main = register_manifest(company, tmp_path / "main", size=48, progress=False)
    table = everyone.manifest.assign(name=everyone.manifest.path.map(lambda path: os.path.basename(path)))
    assert table.groupby("name").size().to_dict() == {"a.mp4": 80, "b.png": 3, "c.png": 1, "d.png": 1}
    assert table[table.name == "a.mp4"].groupby("face_id").size().to_dict() == {0: 40, 1: 40}
    assert table[table.name == "b.png"].face_id.tolist() == [0, 1, 2] and table.valid.sum() == 84
    largest = table[table.name == "b.png"]
    areas = ((largest.right - largest.left) * (largest.bottom - largest.top)).tolist()
    assert areas == sorted(areas, reverse=True)
    one = table.face_id.isin([0, -1]).to_numpy()
    assert (everyone.frames[one] == main.frames).all() and (everyone.vertices[one] == main.vertices).all()
    assert len(everyone.frames) == len(everyone.vertices) == len(table)
    pd.testing.assert_frame_equal(everyone.manifest[one].reset_index(drop=True).drop(columns="faces"),
                                  main.manifest.drop(columns="faces"))


def test_everybody_is_registered_to_the_same_bytes_after_a_stop(tmp_path, company, monkeypatch):
    register_manifest(company, tmp_path / "whole", size=48, faces="all", uv=16, progress=False)
    whole = contents(tmp_path / "whole")
    for stops in range(3):
        out, add_line, written = tmp_path / f"{stops}", collections._add_line, []

        def stop(path, line, most=stops):
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(line)
            add_line(path, line)

        monkeypatch.setattr(collections, "_add_line", stop)
        with pytest.raises(KeyboardInterrupt):
            register_manifest(company, out, size=48, faces="all", uv=16, progress=False)
        monkeypatch.setattr(collections, "_add_line", add_line)
        register_manifest(company, out, size=48, faces="all", uv=16, n_jobs=2, progress=False)
        assert contents(out) == whole, f"stopped after {stops} lines"


def test_a_folder_keeps_to_one_person_or_to_everybody(tmp_path, company):
    one = company[-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_manifest(one, tmp_path / "main", size=48, progress=False)
    assert set(json.loads((tmp_path / "main" / "registration.json").read_text())) == {
        "fingerprint", "size", "method", "fill", "uv"}
    with pytest.raises(ValueError, match="faces as usual, not all"):
        register_manifest(one, tmp_path / "main", size=48, faces="all", progress=False)
    with pytest.raises(ValueError, match="choose 'main', one person, or 'all'"):
        register_manifest(one, tmp_path / "new", faces="both", progress=False)
    assert not (tmp_path / "new").exists()


def test_the_read_picture_is_bounded(tmp_path):
    Image.new("L", (12_000, 9_000), 80).save(tmp_path / "wide.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "wide.png").shape == (4500, 6000, 3)


def test_registered_table_reads_as_expected(tmp_path, talk):
    result = register_manifest(file_manifest(write_film(tmp_path / "talk.mp4", talk[:6])), tmp_path / "out", size=64,
                               progress=False)
    table = pd.read_parquet(tmp_path / "out" / "manifest.parquet")
    assert (table.right > table.left).all() and (table.bottom > table.top).all() and (table.faces == 1).all()
    assert result.vertices.shape == (6, 468, 3) and result.select([True] * 3 + [False] * 3).vertices.shape[0] == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "frames.npy", "inputs.parquet", "manifest.parquet", "registration.json", "vertices.npy"]


# whose points

class Played:
    "In place of dlib: the landmark network's 68 points, moved by `shift`; remembers its model."
    shift, opened = (0, 0), []

    def __init__(self, path):
        self.opened.append(path)

    def find(self, image, boxes):
        faces = FaceLandmarker.from_pretrained().find_all([image])[0]
        return faces[0].landmarks[None, planar.LANDMARKS_68, :2] + self.shift


def test_dlibs_points_move_the_picture_and_a_folder_keeps_to_its_choice(monkeypatch, tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    table, model = file_manifest(tmp_path / "me.png"), tmp_path / "shape.dat"
    model.write_bytes(b"weights")
    monkeypatch.setattr(collections, "DlibLandmarker", Played)
    options = dict(size=96, method="procrustes", progress=False)
    usual = register_manifest(table, tmp_path / "usual", **options)
    same = register_manifest(table, tmp_path / "same", landmarks=model, **options)
    assert np.array_equal(usual.frames, same.frames) and np.array_equal(usual.vertices, same.vertices)
    monkeypatch.setattr(Played, "shift", (30, 0))
    moved = register_manifest(table, tmp_path / "moved", landmarks=model, **options)
    step = round(30 * planar.align_transform(FaceLandmarker.from_pretrained().find_one(astronaut()).landmarks, 96).scale)
    left, right = moved.frames[0].astype(int), usual.frames[0].astype(int)
    assert step > 5 and 3 * np.abs(left[:, :-step] - right[:, step:]).mean() < np.abs(left - right).mean()
    said = json.loads((tmp_path / "moved" / "registration.json").read_text())["landmarks"]
    assert re.fullmatch("dlib [0-9a-f]{12}", said) and Played.opened == [model] * 2
    assert "landmarks" not in json.loads((tmp_path / "usual" / "registration.json").read_text())
    with pytest.raises(ValueError, match=f"landmarks {said}, not as usual"):
        register_manifest(table, tmp_path / "moved", **options)
    model.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=f"landmarks {said}, not dlib"):
        register_manifest(table, tmp_path / "moved", landmarks=model, **options)


def test_real_dlib_registers(tmp_path):
    pytest.importorskip("dlib")
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    table, options = file_manifest(tmp_path / "me.png"), dict(size=96, method="procrustes", progress=False)
    try:
        theirs = register_manifest(table, tmp_path / "dlib", landmarks="dlib", **options)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    ours = register_manifest(table, tmp_path / "ours", **options)
    apart = np.abs(theirs.frames[0].astype(int) - ours.frames[0])[20:80, 25:70].mean()
    assert 0 < apart < 25


def test_what_is_missing_is_said_before_a_folder_is_begun(monkeypatch, tmp_path, aufacs_command):
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    table, out = file_manifest(tmp_path / "me.png"), tmp_path / "out"
    cases = {"--method prnet": dict(prnet="small"), "68 points are no mesh": dict(landmarks="dlib"),
             "nowhere.dat: no such file": dict(method="procrustes", landmarks="nowhere.dat"),
             "ends in .index": dict(method="prnet", prnet=tmp_path)}
    for message, options in cases.items():
        with pytest.raises((ValueError, OSError), match=message):
            register_manifest(table, out, progress=False, **options)
    (tmp_path / "shape.dat").write_bytes(b"no model")
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"pip install 'aufacs_nb\[dlib\]'"):
        register_manifest(table, out, method="procrustes", landmarks=tmp_path / "shape.dat", progress=False)
    assert not out.exists()
