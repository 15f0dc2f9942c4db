"""Every known trap of the real databases, on folders that the test writes: read right, refused by name, or skipped."""
import os
import re
import shutil

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from aufacs_nb.databases import (MANIFEST_COLUMNS, READERS, DatabaseError, Recording, _columns, _doubled, _gather,
                                 _left_out, _natural, _table_of_files, bp4d_manifest, count_frames,
                                 detect_database, disfa_manifest, fera17_manifest, folder_manifest,
                                 manifest, multipie_manifest, pspi, read_frames, read_intensity_file, sample_database,
                                 unbc_manifest)
from aufacs_nb.facs import AU_NAMES, AU_SETS, AUS, FERA_POSES, au_columns

GREYS = (20, 90, 160, 230)
SEQUENCE = "042-ll042/ll042t1aaaff"


def write_video(path, greys=GREYS):
    "A film of even grey frames."
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=dict(crf="10"))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for grey in greys:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")))
        out.mux(stream.encode())


def write_picture(path, grey=90):
    "An even grey picture."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def write_text(path, text):
    "A file and the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coding(levels, first=1):
    "Text of a label file."
    return "".join(f"{frame},{level}\n" for frame, level in enumerate(levels, first))


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    "One film of four frames, to be linked under many names."
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path)
    return path


def write_fera(root, film, people=("TR_F001", "VA_F001"), poses=(6,), levels=(0, 1, 2, 3)):
    "A FERA folder: every AU at `levels`, or at 5 minus them in Valid."
    for person in people:
        part = {"TR": "Train", "VA": "Valid", "TE": "Test"}[person[:2]]
        for pose in poses:
            clip = root / f"FERA17_{part}_MV" / f"FERA17_{person}_T1_{pose}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            os.link(film, clip)
        for au in AUS:
            values = [5 - level for level in levels] if part == "Valid" else levels
            write_text(root / f"FERA17_{part}_Labels/FERA17_{person}_T1_AU{au:02d}_Int.csv", coding(values))
    return root


def write_bp4d(root, digits=4, first=7, n=3):
    "BP4D: coded frames first … first + n - 1, pictures two more on each side."
    for frame in range(first - 2, first + n + 2):
        write_picture(root / f"2D+3D/F001/T1/{frame:0{digits}d}.jpg", frame % 200)
    for au in AU_SETS["bp4d"]:
        write_text(root / f"AUCoding/AU_INT/AU{au:02d}/F001_T1_AU{au:02d}.csv", coding([1, 9, 5][:n], first))
    return root


def write_disfa(root, folder="Videos_LeftCamera", comp="_comp", subjects=("SN001", "SN010"), suffix=".avi"):
    "DISFA: AU a has intensity a modulo 6 in all four frames."
    for subject in subjects:
        write_video(root / folder / f"LeftVideo{subject}{comp}{suffix}")
        for au in AU_SETS["disfa"]:
            write_text(root / f"ActionUnit_Labels/{subject}/{subject}_au{au}.txt", coding([au % 6] * 4))
    return root


def write_unbc(root, frames=({}, {4: 2, 7: 3, 9: 1, 43: 1}, {12: 4})):
    "UNBC: one sequence of `frames`, each {au: intensity}."
    for number, found in enumerate(frames, 1):
        name = f"{SEQUENCE}/ll042t1aaaff{number:03d}"
        write_picture(root / f"Images/{name}.png")
        rows = [f"   {au:.7e}   {level:.7e}   0.0000000e+00   0.0000000e+00\n" for au, level in found.items()]
        write_text(root / f"Frame_Labels/FACS/{name}_facs.txt", "".join(rows))
        au = {k: found.get(k, 0) for k in AU_NAMES}
        pain = au[4] + max(au[6], au[7]) + max(au[9], au[10]) + au[43]
        write_text(root / f"Frame_Labels/PSPI/{name}_facs.txt", f"   {pain:.7e}\n")
    return root


def write_multipie(root, *names):
    "MultiPIE: pictures of these names where they belong."
    for name in names:
        person, session, recording, camera, _ = name.split("_")
        write_picture(root / f"session{session}/multiview/{person}/{recording}/{camera[:2]}_{camera[2]}/{name}.png")
    return root


def refused(read, root, *words, **options):
    "The reader names the fault, and with 'skip' reports it and returns the rest (None if nothing is left)."
    with pytest.raises(DatabaseError) as error:
        read(root, **options)
    for word in words:
        assert word in str(error.value), f"{word!r} is missing in: {error.value}"
    try:
        rest = read(root, on_error="skip", **options)
    except DatabaseError:
        return None
    assert any(all(word in fault for word in words) for fault in rest.attrs["skipped"]), rest.attrs["skipped"]
    return rest


# FERA 2017

def test_fera_train_is_complete(film, tmp_path):
    people = [f"TR_F{i:03d}" for i in range(1, 24)] + [f"TR_M{i:03d}" for i in range(1, 19)]
    table = fera17_manifest(write_fera(tmp_path, film, people))
    assert table.subject.unique().tolist() == people and len(table) == 41 * 4


def test_fera_valid_reuses_ids_for_other_people(film, tmp_path):
    table = fera17_manifest(write_fera(tmp_path, film))
    assert table.groupby("subject").partition.unique().map(list).to_dict() == {"TR_F001": ["Train"], "VA_F001": ["Valid"]}
    assert table.AU12[table.subject == "TR_F001"].tolist() == [0, 1, 2, 3]
    assert table.AU12[table.subject == "VA_F001"].tolist() == [5, 4, 3, 2]


def test_fera_poses_share_labels(film, tmp_path):
    table = fera17_manifest(write_fera(tmp_path, film, poses=range(1, 10)), poses=range(1, 10))
    assert len(table) == 2 * 9 * 4
    assert list(table[["pose_yaw", "pose_pitch"]].drop_duplicates().itertuples(index=False, name=None)) == [
        tuple(map(float, FERA_POSES[pose])) for pose in range(1, 10)]
    assert table[table.partition == "Train"].groupby(["pose_yaw", "pose_pitch"]).AU12.apply(list).map(tuple).nunique() == 1


def test_fera_says_which_poses_were_left_out(film, tmp_path):
    root = write_fera(tmp_path, film, poses=range(1, 10))
    frontal, whole = manifest(root), manifest(root, poses="all")
    assert len(frontal) == 2 * 4 and len(whole) == 9 * len(frontal)
    assert whole.groupby(["pose_yaw", "pose_pitch"]).ngroups == 9
    (note,) = frontal.attrs["notes"]
    assert "left out: 16, of poses 1, 2, 3, 4, 5, 7, 8, 9;" in note and "--poses all" in note
    assert manifest(root, poses=(6,)).attrs["notes"] == manifest(root, poses=(1, 6)).attrs["notes"] == []
    assert whole.attrs["notes"] == []
    for poses in ((), (0,), (6, 10), "every"):
        with pytest.raises(DatabaseError, match="choose some of 1–9"):
            manifest(root, poses=poses)


def relabel(root, first, n=4, aus=AUS, person="TR_F001"):
    "Label files of a FERA person that start at frame `first`; AU12 rises."
    for au in aus:
        write_text(root / f"FERA17_Train_Labels/FERA17_{person}_T1_AU{au:02d}_Int.csv",
                   coding(range(n) if au == 12 else [au % 6] * n, first))
    return root


def test_fera_labels_from_0_are_the_same_table_with_a_note(film, tmp_path):
    tables = [manifest(relabel(write_fera(tmp_path / str(first), film, ["TR_F001", "TR_F002"]), first)) for first in (0, 1)]
    pd.testing.assert_frame_equal(*[table.drop(columns="path") for table in tables])
    assert tables[0].AU12[:4].tolist() == [0, 1, 2, 3] and tables[0].frame[:4].tolist() == [1, 2, 3, 4]
    (note,) = tables[0].attrs["notes"]
    assert "from 0" in note and "1 of 2 recordings" in note and tables[1].attrs["notes"] == []


def test_fera_other_counts_are_refused_with_file_and_line(film, tmp_path):
    cases = {"long": (0, 5, AUS, "AU01_Int.csv, line 5", "5 labels"), "short": (0, 3, AUS, "AU01_Int.csv, line 3", "3 labels"),
             "mixed": (0, 4, [12], "AU12_Int.csv, line 1", "frame 0"), "late": (2, 4, AUS, "AU01_Int.csv, line 1", "frame 2"),
             "early": (-1, 4, AUS, "AU01_Int.csv, line 1", "frame -1")}
    for name, (first, n, aus, *words) in cases.items():
        root = relabel(write_fera(tmp_path / name, film, ["TR_F001", "TR_F002"]), first, n, aus)
        assert refused(manifest, root, *words).subject.unique().tolist() == ["TR_F002"]


def test_fera_occurrence_may_count_from_0(film, tmp_path):
    root = write_fera(tmp_path, film, ["TR_F001"])
    file = root / "FERA17_Train_Labels/FERA17_TR_F001_T1_Occ.csv"
    write_text(file, "frame,1,7\n0,0,1\n1,0,1\n2,0,0\n3,1,1\n")
    assert fera17_manifest(root, occurrence=True).AU07_c.tolist() == [1, 1, 0, 1]
    write_text(file, "frame,1,7\n0,0,1\n1,0,1\n2,0,0\n")
    refused(fera17_manifest, root, "Occ.csv", "codes frames 0–2", occurrence=True)


def test_fera_occurrence_has_a_header_and_intensity_has_none(film, tmp_path):
    root = write_fera(tmp_path, film, ["TR_F001"])
    write_text(root / "FERA17_Train_Labels/FERA17_TR_F001_T1_Occ.csv", "frame,1,7,23\n1,0,1,9\n2,0,1,0\n3,0,0,0\n4,1,1,1\n")
    table = fera17_manifest(root, occurrence=True)
    assert len(table) == 4 and table.AU01.tolist() == [0, 1, 2, 3]
    assert table.AU07_c.tolist() == [1, 1, 0, 1] and np.isnan(table.AU23_c[0]) and table.AU06_c.isna().all()
    assert "AU07_c" not in fera17_manifest(root)


def test_fera_unusual_roots(film, tmp_path):
    root = write_fera(tmp_path / "disk 1" / "FERA (copy)", film)
    (root / "FERA17_Train_MV").rename(root / "videos")
    (root / "videos/._FERA17_TR_F001_T1_6.mp4").write_text("litter of another system")
    (root / "videos/loop").symlink_to(root)
    assert len(manifest(tmp_path)) == 8


def test_fera_bad_label_lines(film, tmp_path):
    for i, (line, words) in enumerate({"3,6": "line 3: intensity 6", "3,-1": "line 3: intensity -1", "3,0.5": "intensity 0.5",
                                       "4,0": "line 3: frame 4", "2,0": "line 3: frame 2", "x": "line 3", "": "line 3",
                                       "3,inf": "line 3", "nan,1": "line 3"}.items()):
        root = write_fera(tmp_path / str(i), film)
        text = "\n".join(["1,0", "2,0", line, "4,0"])
        write_text(root / "FERA17_Train_Labels/FERA17_TR_F001_T1_AU06_Int.csv", text)
        rest = refused(fera17_manifest, root, "TR_F001_T1_AU06_Int.csv", words)
        assert rest.subject.unique().tolist() == ["VA_F001"] and len(rest.attrs["skipped"]) == 1


def test_fera_label_fault_is_reported_once_for_nine_poses(film, tmp_path):
    root = write_fera(tmp_path, film, poses=(1, 3, 6))
    write_text(root / "FERA17_Train_Labels/FERA17_TR_F001_T1_AU06_Int.csv", "1,0\n2,8\n3,0\n4,0\n")
    rest = fera17_manifest(root, poses=(1, 3, 6), on_error="skip")
    assert len(rest.attrs["skipped"]) == 1 and len(rest) == 12


def test_fera_lengths_and_missing_files(film, tmp_path):
    for name in "abcde":
        write_fera(tmp_path / name, film)
    write_text(tmp_path / "a/FERA17_Train_Labels/FERA17_TR_F001_T1_AU17_Int.csv", coding([0] * 3))
    refused(fera17_manifest, tmp_path / "a", "TR_F001_T1_AU17_Int.csv", "3 labels", "4 frames")
    (tmp_path / "b/FERA17_Train_Labels/FERA17_TR_F001_T1_AU17_Int.csv").unlink()
    refused(fera17_manifest, tmp_path / "b", "FERA17_TR_F001_T1", "AU17 is missing")
    write_fera(tmp_path / "c", film, ["TR_F002"])
    (tmp_path / "c/FERA17_Train_MV/FERA17_TR_F002_T1_6.mp4").unlink()
    assert len(refused(fera17_manifest, tmp_path / "c", "FERA17_TR_F002_T1", "no clip")) == 8
    (tmp_path / "d/FERA17_Train_MV/FERA17_TR_F001_T1_6.mp4").unlink()
    write_text(tmp_path / "d/FERA17_Train_MV/FERA17_TR_F001_T1_6.mp4", "not a film")
    assert len(refused(fera17_manifest, tmp_path / "d", "FERA17_TR_F001_T1_6.mp4", "not a readable video")) == 4
    shutil.copytree(tmp_path / "e/FERA17_Train_MV", tmp_path / "e/copy")
    assert len(refused(fera17_manifest, tmp_path / "e", "copy", "keep one of them")) == 8


def test_byte_order_mark_line_ends_and_wrong_encoding(tmp_path):
    file = tmp_path / "FERA17_TR_F001_T1_AU06_Int.csv"
    for text in (b"\xef\xbb\xbf1,0\r\n2,5\r\n", b"1,0\n2,5", b"1,0\r2,5\r", b"1,0\n2,5\n\n\n", b"1.0,0.0\n2.0,5.0\n"):
        file.write_bytes(text)
        assert read_intensity_file(file).tolist() == [0, 5]
    for text in ("1,0\n".encode("utf-16"), b"1,0\n2,\xff\n", b"", b"frame,intensity\n1,0\n"):
        file.write_bytes(text)
        with pytest.raises(DatabaseError, match="AU06_Int.csv"):
            read_intensity_file(file)


# BP4D and BP4D+

@pytest.mark.parametrize("digits, first", [(3, 7), (4, 7), (3, 998), (4, 2440)])
def test_bp4d_padding_first_frame_and_not_coded(tmp_path, digits, first):
    table = bp4d_manifest(write_bp4d(tmp_path, digits, first))
    assert table.frame.tolist() == [first, first + 1, first + 2]
    assert [int(os.path.basename(path)[:-4]) for path in table.path] == table.frame.tolist()
    np.testing.assert_array_equal(table.AU06, [1, np.nan, 5])
    assert table.AU01.isna().all() and (table.subject == "F001").all() and (table.session == "T1").all()
    assert len(list(read_frames(table))) == 3


@pytest.mark.parametrize("header", ["0,1,2,7", "frame,AU01,AU02,AU07", "1,2,7"])
def test_bp4d_occurrence_headers(tmp_path, header):
    root = write_bp4d(tmp_path)
    write_text(root / "AUCoding/AU_OCC/F001_T1.csv", header + "\n6,0,0,0\n7,0,9,1\n8,1,0,1\n9,1,0,0\n10,0,0,0\n")
    table = manifest(root, occurrence=True)
    assert table.AU07_c.tolist() == [1, 1, 0] and np.isnan(table.AU02_c[0]) and table.AU12_c.isna().all()


def test_bp4d_faults(tmp_path):
    for name in "abcde":
        write_bp4d(tmp_path / name)
        for au in AU_SETS["bp4d"]:
            write_text(tmp_path / f"{name}/AUCoding/AU_INT/AU{au:02d}/M001_T2_AU{au:02d}.csv", coding([0, 0], 3))
        for frame in (3, 4):
            write_picture(tmp_path / name / f"2D+3D/M001/T2/{frame:04d}.jpg")
    (tmp_path / "a/2D+3D/F001/T1/0008.jpg").unlink()
    rest = refused(bp4d_manifest, tmp_path / "a", "F001_T1_AU06.csv, line 2", "frame 8", "no picture")
    assert rest.subject.unique().tolist() == ["M001"]
    write_text(tmp_path / "b/AUCoding/AU_INT/AU10/F001_T1_AU10.csv", coding([1, 1, 1], 8))
    refused(bp4d_manifest, tmp_path / "b", "F001_T1_AU10.csv", "frames 8–10", "7–9")
    write_text(tmp_path / "c/AUCoding/AU_INT/AU10/F001_T1_AU10.csv", "7,1\n8,6\n9,0\n")
    refused(bp4d_manifest, tmp_path / "c", "F001_T1_AU10.csv, line 2", "intensity 6")
    write_picture(tmp_path / "d/2D+3D/F001/T1/008.jpg")
    refused(bp4d_manifest, tmp_path / "d", "008.jpg", "keep one")
    (tmp_path / "e/AUCoding/AU_INT/AU14/F001_T1_AU14.csv").unlink()
    refused(bp4d_manifest, tmp_path / "e", "F001_T1", "AU14 is missing")


def test_bp4d_film_instead_of_pictures(tmp_path):
    root = write_bp4d(tmp_path, first=2)
    shutil.rmtree(root / "2D+3D")
    write_video(root / "Videos/F001_T1.avi")
    table = bp4d_manifest(root)
    assert [round(image.mean() / 10) for _, image in read_frames(table)] == [round(grey / 10) for grey in GREYS[1:]]


@pytest.mark.parametrize("first", (0, 1))
@pytest.mark.parametrize("start", (0, 1))
def test_bp4d_whole_recordings_count_from_0_or_1(tmp_path, first, start):
    root = write_bp4d(tmp_path, first=first)
    shutil.rmtree(root / "2D+3D")
    for k in range(3):
        write_picture(root / f"2D+3D/F001/T1/{start + k:04d}.jpg", 50 + k)
    table = manifest(root)
    assert table.frame.tolist() == [1, 2, 3] and table.AU06[0] == 1 and table.AU06[2] == 5
    assert [os.path.basename(path) for path in table.path] == [f"{start + k:04d}.jpg" for k in range(3)]
    assert len(table.attrs["notes"]) == ((first, start) != (1, 1))
    write_picture(root / f"2D+3D/F001/T1/{start + 3:04d}.jpg")
    if first < start:   # no longer whole: a frame 0 has no picture
        assert refused(manifest, root, "AU06.csv, line 1", "frame 0") is None
    else:
        numbers = [int(os.path.basename(path)[:-4]) for path in manifest(root).path]
        assert numbers == [first, first + 1, first + 2]


def test_bp4d_film_with_labels_from_0(tmp_path):
    root = write_bp4d(tmp_path, first=0)
    shutil.rmtree(root / "2D+3D")
    write_video(root / "Videos/F001_T1.avi", GREYS[:3])
    table = manifest(root)
    assert [round(image.mean() / 10) for _, image in read_frames(table)] == [round(grey / 10) for grey in GREYS[:3]]
    assert table.frame.tolist() == [1, 2, 3] and "from 0" in table.attrs["notes"][0]
    write_video(root / "Videos/F001_T1.avi", GREYS)
    refused(manifest, root, "AU06.csv, line 1", "frame 0")


# DISFA

@pytest.mark.parametrize("folder, comp", [("Videos_LeftCamera", "_comp"), ("Video_LeftCamera", "_Comp"),
                                          ("Video_LeftCamera_comp", "_comp"), ("Videos_LeftCamera_Comp", "")])
def test_disfa_folder_names_subjects_and_order(tmp_path, folder, comp):
    table = manifest(write_disfa(tmp_path, folder, comp))
    assert table.subject.unique().tolist() == ["SN001", "SN010"] and table.frame.tolist() == [1, 2, 3, 4] * 2
    for au in AU_SETS["disfa"]:
        assert (table[f"AU{au:02d}"] == au % 6).all()
    assert table[au_columns(set(AU_NAMES) - set(AU_SETS["disfa"]))].isna().all(axis=None)


def test_disfa_landmarks_count_from_zero(tmp_path):
    root = write_disfa(tmp_path, subjects=["SN001"])
    for i in range(4):
        write_text(root / f"Landmark_Points/SN001/tmp_frame_lm/l{i:04d}_lm.mat", "")
    table = disfa_manifest(root, landmarks=True)
    assert [int(path[-11:-7]) for path in table.landmarks] == (table.frame - 1).tolist()
    (root / "Landmark_Points/SN001/tmp_frame_lm/l0000_lm.mat").unlink()
    refused(disfa_manifest, root, "landmark file 0 (frame 1)", landmarks=True)
    write_text(root / "Landmark_Points/SN001/tmp_frame_lm/l0004_lm.mat", "")
    table = disfa_manifest(root, landmarks=True)
    assert [int(path[-11:-7]) for path in table.landmarks] == table.frame.tolist()


def test_disfa_labels_from_0(tmp_path):
    root = write_disfa(tmp_path)
    for au in AU_SETS["disfa"]:
        write_text(root / f"ActionUnit_Labels/SN010/SN010_au{au}.txt", coding([5, 4, 3, 2], 0))
    table = manifest(root)
    assert table.AU12[table.subject == "SN010"].tolist() == [5, 4, 3, 2] and table.frame.tolist() == [1, 2, 3, 4] * 2
    assert "from 0" in table.attrs["notes"][0] and "1 of 2" in table.attrs["notes"][0]


def test_disfa_cameras(tmp_path):
    root = write_disfa(tmp_path, subjects=["SN001"])
    write_video(root / "Videos_RightCamera/RightVideoSN001_comp.avi", GREYS[::-1])
    images = [dict(read_frames(disfa_manifest(root, camera=camera)))[0].mean() for camera in ("left", "right")]
    assert images[0] < 40 < 200 < images[1]


def test_disfa_faults(tmp_path):
    for name in "abcd":
        write_disfa(tmp_path / name)
    write_text(tmp_path / "a/ActionUnit_Labels/SN010/SN010_au4.txt", coding([0, 0, 7, 0]))
    rest = refused(disfa_manifest, tmp_path / "a", "SN010_au4.txt, line 3", "intensity 7")
    assert rest.subject.unique().tolist() == ["SN001"]
    write_text(tmp_path / "b/ActionUnit_Labels/SN010/SN010_au4.txt", coding([0] * 5, 0))
    refused(disfa_manifest, tmp_path / "b", "SN010_au4.txt, line 1", "frame 0")
    (tmp_path / "c/Videos_LeftCamera/LeftVideoSN010_comp.avi").unlink()
    refused(disfa_manifest, tmp_path / "c", "SN010", "no film")
    shutil.rmtree(tmp_path / "d/ActionUnit_Labels/SN010")
    refused(disfa_manifest, tmp_path / "d", "SN010", "copy the labels")


# UNBC Pain

def test_unbc_empty_file_is_neutral_and_unlisted_is_zero(tmp_path):
    table = manifest(write_unbc(tmp_path))
    coded = table[au_columns(AU_SETS["unbc"])]
    assert coded.notna().all(axis=None) and (coded.iloc[0] == 0).all()
    assert table.AU07.tolist() == [0, 3, 0] and table.AU12.tolist() == [0, 0, 4]
    assert table[["AU01", "AU17"]].isna().all(axis=None)
    assert table.pspi.tolist() == [0, 7, 0] == pspi(table).tolist()
    assert (table.subject == "042-ll042").all() and (table.session == "ll042t1aaaff").all()


def test_unbc_pictures_from_0(tmp_path):
    root = write_unbc(tmp_path)
    for path in sorted(root.rglob("ll042t1aaaff*.*")):
        number = int(path.name[12:15]) - 1
        path.rename(path.with_name(f"ll042t1aaaff{number:03d}{path.name[15:]}"))
    table = manifest(root)
    assert table.frame.tolist() == [1, 2, 3] and table.AU07.tolist() == [0, 3, 0] and table.pspi.tolist() == [0, 7, 0]
    assert "from 0" in table.attrs["notes"][0]


def test_unbc_ignores_other_aus_and_reads_without_pspi(tmp_path):
    root = write_unbc(tmp_path)
    shutil.rmtree(root / "Frame_Labels/PSPI")
    file = root / f"Frame_Labels/FACS/{SEQUENCE}/ll042t1aaaff003_facs.txt"
    file.write_bytes(b"\xef\xbb\xbf   2.7000000e+01   3.0000000e+00\r\n   2.5000000e+01 1.0e+00\r\n")
    table = unbc_manifest(root)
    assert table.AU25.tolist() == [0, 0, 1] and "AU27" not in table


def test_unbc_faults_leave_the_other_frames(tmp_path):
    for name in "abcdefg":
        write_unbc(tmp_path / name)
    labels, second = "Frame_Labels/{}/" + SEQUENCE, "ll042t1aaaff002"
    write_text(tmp_path / "a" / labels.format("PSPI") / f"{second}_facs.txt", "3.0000000e+00")
    assert refused(unbc_manifest, tmp_path / "a", f"PSPI/{SEQUENCE}/{second}_facs.txt", "3", "7").frame.tolist() == [1, 3]
    write_text(tmp_path / "b" / labels.format("FACS") / f"{second}_facs.txt", "4 1\n6 8\n")
    assert refused(unbc_manifest, tmp_path / "b", f"FACS/{SEQUENCE}/{second}_facs.txt, line 2").frame.tolist() == [1, 3]
    (tmp_path / "c" / labels.format("FACS") / f"{second}_facs.txt").unlink()
    assert refused(unbc_manifest, tmp_path / "c", f"{second}.png", "no FACS file").frame.tolist() == [1, 3]
    (tmp_path / f"d/Images/{SEQUENCE}/{second}.png").unlink()
    assert refused(unbc_manifest, tmp_path / "d", f"{second}_facs.txt", "no picture").frame.tolist() == [1, 3]
    for file in (tmp_path / "e").rglob(f"{second}*"):
        file.unlink()
    assert refused(unbc_manifest, tmp_path / "e", "ll042t1aaaff", "frame 2 is missing").frame.tolist() == [1, 3]
    write_text(tmp_path / "f" / labels.format("FACS") / f"{second}_facs.txt", "4 1\n4 2\n")
    refused(unbc_manifest, tmp_path / "f", "line 2", "twice")
    (tmp_path / "g" / labels.format("PSPI") / f"{second}_facs.txt").write_bytes(b"\xff\xfe")
    refused(unbc_manifest, tmp_path / "g", "PSPI", f"{second}_facs.txt")


# MultiPIE

def test_multipie_expressions_by_session(tmp_path):
    said = {"001_01_01_051_07": "neutral", "001_01_02_051_07": "smile", "001_02_02_051_07": "surprise",
            "001_02_03_051_07": "squint", "001_03_02_051_07": "smile", "001_03_03_051_07": "disgust",
            "001_04_02_051_07": "scream", "001_04_03_051_07": "neutral"}
    table = manifest(write_multipie(tmp_path, *said, "001_01_01_110_07"))
    assert dict(zip([os.path.basename(path)[:-4] for path in table.path], table.expression)) == said
    assert table[au_columns(AU_NAMES)].isna().all(axis=None) and (table.database == "multipie").all()


def test_multipie_selection_and_faults(tmp_path):
    root = write_multipie(tmp_path, "001_01_01_051_00", "001_01_01_051_07", "002_01_01_110_07")
    assert len(multipie_manifest(root)) == 2 and len(multipie_manifest(root, illuminations=("07",))) == 1
    assert multipie_manifest(root, cameras=("11_0",)).subject.tolist() == ["002"]
    write_picture(root / "session01/multiview/001/01/05_1/009_01_01_051_07.png")
    assert len(refused(multipie_manifest, root, "009_01_01_051_07.png", "belongs into")) == 2


def test_multipie_plain_folder_of_frontal_pictures(tmp_path):
    for name in ("001_01_01.jpg", "001_02_03.jpg"):
        write_picture(tmp_path / "named" / name)
    for name in ("Ann.png", "Ben.png"):
        write_picture(tmp_path / "plain" / name)
    table = multipie_manifest(tmp_path / "named")
    assert table.expression.tolist() == ["neutral", "squint"] and (table.camera == "highres").all()
    assert len(multipie_manifest(tmp_path / "plain")) == 2


# All of them

def write_all(home, film):
    "{name: root} of one small database of every kind."
    write_fera(home / "fera17", film), write_bp4d(home / "bp4d"), write_disfa(home / "disfa")
    write_unbc(home / "unbc"), write_multipie(home / "multipie", "001_01_01_051_07"), write_picture(home / "folder/a.png")
    return {name: home / name for name in READERS}


def test_detection_columns_and_pixels(film, tmp_path):
    for name, root in write_all(tmp_path, film).items():
        assert detect_database(root) == name
        table = manifest(root, on_error="skip")
        assert table.attrs["skipped"] == [] and (table.database == name).all()
        assert set(au_columns(AU_NAMES)) <= set(table.columns)
        assert sorted(position for position, _ in read_frames(table)) == list(range(len(table)))
        table.to_parquet(tmp_path / "m.parquet", index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "m.parquet"), table)
    with pytest.raises(DatabaseError, match="name one"):
        manifest(tmp_path)


def test_faults_of_the_call(film, tmp_path):
    roots = write_all(tmp_path, film)
    for name in set(READERS) - {"folder", "multipie"}:
        with pytest.raises(DatabaseError, match="folder"):
            manifest(roots["folder"], name)
    with pytest.raises(DatabaseError, match="emotionet"):
        manifest(roots["folder"], "emotionet")
    with pytest.raises(DatabaseError, match="no option"):
        manifest(roots["folder"], poses=(6,))
    with pytest.raises(ValueError, match="raise, skip"):
        manifest(roots["folder"], on_error="ignore")


def test_folder_goes_on_past_a_broken_film(tmp_path):
    write_video(tmp_path / "Ann/talk.mkv")
    write_text(tmp_path / "Ann/torn.mp4", "torn")
    assert len(refused(folder_manifest, tmp_path, "torn.mp4")) == 4


def test_frames_are_counted_without_decoding(tmp_path):
    for suffix in (".mp4", ".avi", ".mkv"):
        write_video(tmp_path / f"film{suffix}")
    assert [count_frames(path) for path in sorted(tmp_path.iterdir())] == [4, 4, 4]
    data = bytearray((tmp_path / "film.mp4").read_bytes())
    start = data.find(b"mdat") + 4
    data[start:data.find(b"moov") - 4] = bytes(data.find(b"moov") - 4 - start)
    (tmp_path / "film.mp4").write_bytes(data)  # pictures gone, index there
    assert count_frames(tmp_path / "film.mp4") == 4


def test_sample_database_still_reads():
    table = manifest(sample_database())
    assert table.subject.nunique() == table.groupby("partition").subject.nunique().sum()
    assert table[au_columns()].notna().all(axis=None) and table.AU43.isna().all()


def old_order(path):
    "Texts and numbers of a path, as the readers once compared them."
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def test_the_natural_order_is_that_of_texts_and_numbers():
    random = np.random.default_rng(0)
    paths = ["".join(random.choice(list("ab-_/ .0123459²é٣"), 9)) for _ in range(3000)]
    assert sorted(paths, key=_natural) == sorted(paths, key=old_order)


def test_rows_that_stand_there_twice_are_found_across_parts(monkeypatch):
    monkeypatch.setattr("aufacs_nb.databases._ROWS", 3)
    table = pd.DataFrame({"path": ["a"] * 5 + ["b"] * 5, "frame": [1, 2, 3, 4, 5, 1, 2, 3, 4, 2]})
    assert _doubled(table, ["path", "frame"]).tolist() == [False] * 9 + [True]
    assert not _doubled(table[:9], ["path", "frame"]).any()


def test_a_folder_read_in_parts_is_the_folder(tmp_path, monkeypatch):
    for name in ("Ann/1.png", "Ann/2.png", "Ann/10.png", "Ben/x/1.png", "me.png"):
        write_picture(tmp_path / name)
    write_video(tmp_path / "Ann/film.mp4")
    whole, held = folder_manifest(tmp_path), []
    monkeypatch.setattr("aufacs_nb.databases._ROWS", 2)
    monkeypatch.setattr("aufacs_nb.databases._table_of_files", lambda files: held.append(len(files)) or _table_of_files(files))
    pd.testing.assert_frame_equal(folder_manifest(tmp_path), whole)
    assert held == [2, 2, 2]
    assert whole.frame.tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 1]
    assert whole.session.tolist() == ["Ann"] * 3 + ["Ann/film"] * 4 + ["Ben/x", "."]


def test_many_faults_and_many_clips_are_gathered_in_one_go():
    "Where each were compared with all the others, these would take minutes."
    def read(key):
        if key:
            raise DatabaseError(f"recording {key % 150_000}: broken")
        return Recording(dict.fromkeys(MANIFEST_COLUMNS, "x"), np.array([1]), ["a.png"], _columns({}, 1))
    assert len(_gather("x", range(200_000), read, "skip").attrs["skipped"]) == 150_000
    clips = {("TR", f"F{k}", "T1", pose): None for k in range(20_000) for pose in (5, 6)}
    assert "20000, of poses 5;" in _left_out(clips, [key for key in clips if key[3] == 6], ["Train"])[0]
