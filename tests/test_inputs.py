"""Pictures and films as cameras, scanners and broken copies leave them: each is read right, or refused with a word."""
import os
import re
import socket
import struct
import sys
import tracemalloc
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import aufacs_nb
from aufacs_nb.databases import (PICTURE_SUFFIXES, DatabaseError, bp4d_manifest, check_manifest, count_frames, file_manifest,
                                 folder_manifest, frame_rate, manifest, read_frames, read_image, rgb_pixels, timed_frames)
from aufacs_nb.estimation.sources import frame_stream

y, x = np.mgrid[:48, :64]
RAMP = np.stack([x * 4, y * 5, 0 * x + 90], -1).astype(np.uint8)
UNDO = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
        6: np.rot90, 7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, -1)}


def close(image, other, by=2):
    return image.shape == other.shape and np.abs(image.astype(int) - other).max() <= by


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("tag", UNDO)
def test_all_eight_ways_to_hold_a_camera(tmp_path, tag, ending):
    exif = Image.Exif()
    exif[0x0112] = tag
    picture = Image.fromarray(np.ascontiguousarray(UNDO[tag](RAMP)))
    picture.save(tmp_path / f"held.{ending}", exif=exif, **{"webp": {"lossless": True}, "jpg": {"quality": 98}}.get(ending, {}))
    assert close(read_image(tmp_path / f"held.{ending}"), RAMP, 12 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp"])
def test_pixels_that_are_no_squares(tmp_path, ending):
    "72 by 36 to the inch: twice as high as wide. On its side the same, the other way round."
    quick = Image.fromarray(RAMP).resize((64, 24))
    quick.save(tmp_path / f"a.{ending}", dpi=(72, 36), **({"quality": 98} if ending == "jpg" else {}))
    assert read_image(tmp_path / f"a.{ending}").shape == (48, 64, 3)
    assert close(read_image(tmp_path / f"a.{ending}")[4:-4, 4:-4], RAMP[4:-4, 4:-4], 14)
    exif = Image.Exif()
    exif[0x0112] = 6
    quick.save(tmp_path / "side.png", dpi=(72, 36), exif=exif)
    assert read_image(tmp_path / "side.png").shape == (64, 48, 3)


def test_the_aspect_alone_without_a_unit_and_nonsense(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    start = data.index(b"JFIF\0") + 7
    for density, shape in ((b"\0\0\3\0\2", (72, 64, 3)), (b"\0\0\2\0\3", (48, 96, 3)), (b"\0\0\0\0\0", RAMP.shape),
                           (b"\1\0\1\3\xe8", RAMP.shape)):
        (tmp_path / "b.jpg").write_bytes(data[:start] + density + data[start + 5:])
        assert read_image(tmp_path / "b.jpg").shape == shape


GREY = RAMP[..., 0]
WHITE = {"10 bits, said": (np.uint16, 1023, {281: 1023}), "12 bits, said": (np.uint16, 4095, {341: 4095}),
         "int32, said": (np.int32, 10**6, {341: 10**6}), "float, 0 to 1": (np.float32, 1, {}),
         "float, 0 to 255": (np.float32, 255, {}), "float, said": (np.float32, 1000, {341: 1000.}),
         "16 bits": (np.uint16, 65535, {})}


@pytest.mark.parametrize("form", WHITE)
def test_more_than_eight_bits(tmp_path, form):
    dtype, white, tags = WHITE[form]
    values = GREY / 252 * white
    Image.fromarray((values if dtype is np.float32 else values.round()).astype(dtype)).save(tmp_path / "deep.tif", tiffinfo=tags)
    assert close(read_image(tmp_path / "deep.tif"), np.repeat((GREY / 252 * 255).astype(np.uint8)[..., None], 3, 2), 1)


@pytest.mark.parametrize("dtype, white", [(np.uint16, 1023), (np.uint16, 4095), (np.int32, 255), (np.int32, 10**6),
                                          (np.float32, 5)])
def test_what_is_white_must_be_said(tmp_path, dtype, white):
    Image.fromarray((GREY / 255 * white).astype(dtype)).save(tmp_path / "dark.tif")
    with pytest.raises(DatabaseError, match="dark.tif: its values run from 0 to .*MaxSampleValue"):
        read_image(tmp_path / "dark.tif")


def test_sixteen_bits_of_colour(tmp_path):
    for name, values in (("dark", RAMP.astype(np.uint16) * 4), ("full", RAMP.astype(np.uint16) * 257)):
        with av.open(str(tmp_path / f"{name}.png"), "w", format="image2") as out:
            stream = out.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb48be"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format="rgb48be")))
            out.mux(stream.encode())
    assert close(read_image(tmp_path / "full.png"), RAMP, 1)
    with pytest.raises(DatabaseError, match="dark.png: .*nearly black"):
        read_image(tmp_path / "dark.png")


def test_bombs_and_animations(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    with pytest.raises(DatabaseError, match="bomb.png: it has more pixels than"):
        read_image(tmp_path / "bomb.png")
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    for ending in ("gif", "webp", "tif", "png"):
        frames[0].save(tmp_path / f"two.{ending}", save_all=True, append_images=frames[1:], lossless=True)
        with pytest.warns(UserWarning, match=f"two.{ending}: the first of its 2 pictures"):
            assert close(read_image(tmp_path / f"two.{ending}"), RAMP, 60 if ending == "gif" else 1)


PIXELS = {"png": "rgb24", "mjpeg": "yuvj420p"}


def write_film(path, frames=60, codec="mpeg4", form=None, aspect=None, size=(64, 48), options=None):
    "A film of noise whose top left quarter is white."
    noise = np.random.default_rng(0).integers(0, 120, (frames, size[1], size[0], 3), dtype=np.uint8)
    noise[:, :size[1] // 2, :size[0] // 2] = 255
    with av.open(str(path), "w", format=form, options=options or {}) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, PIXELS.get(codec, "yuv420p")
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("a, b, c, d", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1),
                                        (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)])
def test_all_eight_display_matrices(tmp_path, a, b, c, d):
    path = write_film(tmp_path / "a.mp4", 2)
    data = bytearray(path.read_bytes())
    start = data.find(b"tkhd") + 44
    data[start:start + 36] = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    image = next(timed_frames(path))[1]
    white = np.argwhere(image.min(2) > 200).mean(0) / image.shape[:2] < .5
    assert image.shape == ((48, 64, 3) if a else (64, 48, 3)) and white.tolist() == [b + d > 0, a + c > 0]


@pytest.mark.parametrize("ending, aspect, shape", [("avi", Fraction(16, 15), (48, 68, 3)), ("mkv", Fraction(8, 9), (54, 64, 3)),
                                                   ("mp4", Fraction(4, 3), (48, 85, 3)), ("mp4", Fraction(401, 400), (48, 64, 3))])
def test_television_becomes_square(tmp_path, ending, aspect, shape):
    image = next(timed_frames(write_film(tmp_path / f"a.{ending}", 2, aspect=aspect)))[1]
    assert image.shape == shape and (image[:shape[0] // 2 - 3, :shape[1] // 2 - 3] > 200).all()


@pytest.mark.parametrize("ending, codec", [("mkv", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx")])
def test_films_that_end_early_say_so_and_whole_ones_do_not(tmp_path, ending, codec):
    data = write_film(tmp_path / f"whole.{ending}", codec=codec).read_bytes()
    with warnings.catch_warnings(action="error"):
        assert sum(1 for _ in timed_frames(tmp_path / f"whole.{ending}")) == count_frames(tmp_path / f"whole.{ending}") == 60
    (tmp_path / f"short.{ending}").write_bytes(data[:len(data) // 2])
    with pytest.warns(UserWarning, match=r"ends early: \d+ frames?, .* promises 60, 2.4 s"):
        assert 1 <= sum(1 for _ in timed_frames(tmp_path / f"short.{ending}")) == count_frames(tmp_path / f"short.{ending}") < 50


def broken(path, data):
    """The warnings of a film with these bytes, which does hold frames."""
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert 1 <= sum(1 for _ in timed_frames(path)) == count_frames(path)
    return " ".join(str(one.message) for one in said)


@pytest.mark.parametrize("ending, form, codec, said", [
    ("ts", "mpegts", "mpeg2video", "within a packet"), ("m2ts", "mpegts", "mpeg2video", "within a packet"),
    ("mpg", "mpeg", "mpeg2video", "within a packet"), ("wmv", "asf", "wmv2", "ends early: its header promises [0-9,]+ bytes")])
def test_streams_without_a_promise_tell_by_their_packets(tmp_path, ending, form, codec, said):
    data = write_film(tmp_path / f"whole.{ending}", codec=codec, form=form).read_bytes()
    assert not broken(tmp_path / f"whole.{ending}", data)
    assert re.search(said, broken(tmp_path / f"short.{ending}", data[:len(data) * 3 // 4 // 188 * 188 - 40]))


def test_a_stream_whose_beginning_is_missing_lacks_frames(tmp_path):
    data = write_film(tmp_path / "whole.ts", codec="mpeg2video", form="mpegts").read_bytes()
    late = broken(tmp_path / "late.ts", data[len(data) // 1880 * 188:])
    assert re.search("lacks frames: 48 frames, .* its packets hold 5", late), late  # from the second group on


def test_bad_packets_are_left_out_and_counted(tmp_path):
    path = write_film(tmp_path / "a.mov", 6, codec="png")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x89PNG", b"torn", 1))
    with pytest.warns(UserWarning, match="a.mov: 1 packet could not be decoded and was left out$"):
        assert len(list(timed_frames(path))) == 5
    path.write_bytes(data.replace(b"\x89PNG", b"torn"))
    with pytest.raises(DatabaseError, match=r"a.mov: none of its frames can be decoded \(6 bad packets\)"):
        list(timed_frames(path))


def test_a_count_in_a_header_is_believed_only_if_the_film_is_there(tmp_path):
    path = write_film(tmp_path / "a.mp4")
    assert count_frames(path) == 60
    data = bytearray(path.read_bytes())
    start = data.find(b"elst") + 12   # the film is trimmed: its first second is shown
    data[start:start + 4] = (1000).to_bytes(4, "big")
    path.write_bytes(data)
    assert count_frames(path) == sum(1 for _ in timed_frames(path)) == 25


def test_no_name_and_no_film_reaches_the_network(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/film.mp4"
        for text in (f"ffconcat version 1.0\nfile '{url}'\n", f"#EXTM3U\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n",
                     "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5555 RTP/AVP 96\n"):
            (tmp_path / "trap.mp4").write_text(text)
            with pytest.raises(DatabaseError, match="trap.mp4"):
                list(timed_frames(tmp_path / "trap.mp4"))
        write_film(tmp_path / "there.avi", 3)
        table = folder_manifest(tmp_path, "skip").head(1)
        (tmp_path / "trap.mp4").write_text("ffconcat version 1.0\nfile 'there.avi'\n")
        for path in (url, f"concat:{tmp_path / 'there.avi'}", f"file:{tmp_path / 'there.avi'}", tmp_path / "trap.mp4"):
            with pytest.raises(DatabaseError):
                list(timed_frames(path))
            with pytest.raises(DatabaseError):
                list(read_frames(table.assign(path=str(path))))
        with pytest.raises(TimeoutError):
            server.accept()
    assert len(list(timed_frames((tmp_path / "there.avi").rename(tmp_path / "http:b.avi")))) == 3


def test_what_a_folder_holds_besides_is_named_once(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert folder_manifest(tmp_path).attrs["notes"] == []
    for name in ("b.cr2", "c.CR2", "d.svg", "go.mod", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    for ending in ("jfif", "gif", "avif"):
        Image.fromarray(RAMP).save(tmp_path / f"more.{ending}", format="JPEG" if ending == "jfif" else None)
    for ending, form in (("3gp", "3gp"), ("mpeg", "mpeg"), ("MTS", "mpegts")):
        write_film(tmp_path / f"film.{ending}", 5, codec="mpeg4" if form == "3gp" else "mpeg2video", form=form)
    table = folder_manifest(tmp_path)
    assert len(table) == 4 + 15
    [note] = table.attrs["notes"]
    assert "4 files" in note and "2 .cr2, 1 .svg, 1 .mod" in note and "1 link that" in note and "gone.jpg" in note and "txt" not in note
    assert "1 pipe or device (pipe.png)" in note


def test_pictures_of_iphones_are_read_or_the_way_is_named(tmp_path):
    pillow_heif = sys.modules.get("pillow_heif")  # there or not: `make test` has it where it was asked for
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    if pillow_heif:
        Image.fromarray(RAMP).save(tmp_path / "b.heic", quality=-1)
        assert close(read_image(tmp_path / "b.heic"), RAMP, 12) and len(folder_manifest(tmp_path)) == 2
    else:
        (tmp_path / "b.heic").touch()
        assert re.search(r"1 \.heic.*pip install 'aufacs_nb\[heic\]'", folder_manifest(tmp_path).attrs["notes"][0])


GREYS = "pbm", "xbm", "msp"
LOSSY = {"jpg": 40, "jpeg": 40, "jpe": 40, "jfif": 40, "mpo": 40, "avif": 40, "avifs": 40, "webp": 40, "gif": 60, "ico": 40, "icns": 40}
WRITTEN = sorted(ending[1:] for ending, form in Image.registered_extensions().items()
                 if ending in PICTURE_SUFFIXES and form in Image.SAVE and form not in ("BLP", "DDS", "HEIF"))


@pytest.mark.parametrize("ending", WRITTEN)
def test_every_picture_that_pillow_writes_is_read_as_it_was(tmp_path, ending):
    black = np.where(RAMP[..., :1] > 128, 255, 0).astype(np.uint8).repeat(3, 2)
    grey = ending in ("pfm",)
    wanted = black if ending in GREYS else RAMP[..., :1].repeat(3, 2) if grey else RAMP
    picture = Image.fromarray(wanted).convert("1" if ending in GREYS else "F" if grey else "P" if ending == "gif" else "RGB")
    if ending in ("ico", "icns"):  # square; an .icns holds larger ones, too
        picture = Image.fromarray(wanted := RAMP[:32, :32])
    picture.save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    seen = read_image(tmp_path / f"a.{ending}")
    assert close(seen[::len(seen) // len(wanted), ::len(seen) // len(wanted)], wanted, LOSSY.get(ending, 0))
    assert folder_manifest(tmp_path).attrs["notes"] == [] and [item.file for item in frame_stream(tmp_path)] == [f"a.{ending}"]


def test_what_another_program_would_open_is_never_tried(tmp_path, monkeypatch):
    "A PostScript file, whatever it is called: Ghostscript would run it."
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *words, **options: pytest.fail("run"))
    for name in ("a.eps", "a.png", "a.jpg"):
        Image.fromarray(RAMP).save(tmp_path / name, format="EPS")
        with pytest.raises(DatabaseError, match=f"{name}: not a readable picture"):
            read_image(tmp_path / name)
    (tmp_path / "b.png").write_bytes(bytes(18) + b"\x08\0\x08\0\x18\0" + bytes(300))  # a TGA has no mark
    with pytest.raises(DatabaseError, match="b.png: not a readable picture"):
        read_image(tmp_path / "b.png")
    Image.fromarray(RAMP).save(tmp_path / "wrong.tga", format="PNG")
    assert close(read_image(tmp_path / "wrong.tga"), RAMP, 0)


def test_a_header_that_says_what_is_white_is_believed(tmp_path):
    "1,023 is white in this file, which is a photograph in the dark."
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1023\n" + bytes([0, 0, 0, 20]))
    assert read_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 5]


FORMS = {"y4m": ("yuv4mpegpipe", "wrapped_avframe"), "264": ("h264", "libx264"), "265": ("hevc", "libx265"),
         "mjpeg": ("mjpeg", "mjpeg"), "qt": ("mov", "mpeg4"), "mod": ("vob", "mpeg2video"), "tod": ("mpegts", "mpeg2video"),
         "m2ts": ("mpegts", "libx264"), "vob": ("vob", "mpeg2video"), "ogv": ("ogv", "libvpx"), "flv": ("flv", "flv1"),
         "wmv": ("asf", "wmv2"), "3g2": ("3g2", "mpeg4"), "f4v": ("f4v", "libx264"), "mxf": ("mxf", "mpeg2video"),
         "m2v": ("mpeg2video", "mpeg2video"), "nut": ("nut", "mpeg4"), "ivf": ("ivf", "libvpx"), "m4v": ("m4v", "mpeg4"),
         "mkv": ("matroska", "libx264"), "webm": ("webm", "libvpx"), "mpg": ("mpeg", "mpeg1video"), "avi": ("avi", "mpeg4"),
         "mp4": ("mp4", "libx264"), "mov": ("mov", "libx264"), "mj2": ("mp4", "jpeg2000"), "rm": ("rm", "rv20"),
         "dv": ("dv", "dvvideo")}


@pytest.mark.parametrize("ending", FORMS)
def test_every_film_is_read_whole_and_without_a_word(tmp_path, ending):
    form, codec = FORMS[ending]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg does not write {codec}")
    size = {"rv20": (176, 144), "dvvideo": (720, 576)}.get(codec, (64, 48))
    path = write_film(tmp_path / f"a.{ending}", 12, codec, form, size=size)
    with warnings.catch_warnings(action="error"):
        times, images = zip(*timed_frames(path))
        assert len(times) == count_frames(path) == len(folder_manifest(tmp_path)) == 12
    assert times[0] == 0 and np.allclose(np.diff(times), .04, atol=.002) and abs(frame_rate(path) - 25) < .1
    assert all(image[4:size[1] // 2 - 8, 4:size[0] // 2 - 8].min() > 200 and image[size[1] // 2 + 8:].mean() < 150 for image in images)


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:5,\na.ts\n", "ffconcat version 1.0\nfile a.ts\n", "1\n00:00:00,000 --> 00:00:01,000\na\n",
                                  ";FFMETADATA1\ntitle=a\n", "v=0\r\nc=IN IP4 127.0.0.1\r\n"])
def test_what_is_no_film_is_never_tried_as_one(tmp_path, text):
    for name in ("a.mp4", "a.m3u8", "a.mjpg"):
        (tmp_path / name).write_text(text + "x" * 500)
        with pytest.raises(DatabaseError, match=name):
            list(timed_frames(tmp_path / name))


CUT = {"mpg": ("mpeg", "mpeg2video", 2048), "vob": ("vob", "mpeg2video", 2048), "ts": ("mpegts", "libx264", 188),
       "m2v": ("mpeg2video", "mpeg2video", 1), "mjpeg": ("mjpeg", "mjpeg", 1), "y4m": ("yuv4mpegpipe", "wrapped_avframe", 1),
       "flv": ("flv", "flv1", 1), "mkv": ("matroska", "libx264", 1), "webm": ("webm", "libvpx", 1), "ogv": ("ogv", "libvpx", 1)}


@pytest.mark.parametrize("ending", CUT)
def test_films_that_were_cut_between_their_packets_may_have_been(tmp_path, ending):
    form, codec, step = CUT[ending]
    options = {"live": "1"} if ending in ("mkv", "webm") else {}
    data = write_film(tmp_path / f"a.{ending}", 12, codec, form, size=(128, 96), options=options).read_bytes()
    said = broken(tmp_path / f"b.{ending}", data[:len(data) * 5 // 8 // step * step - (step == 1)])
    assert re.search("may have been cut: .* frames?, .* s, are there|breaks off within a packet|promises", said), said


@pytest.mark.parametrize("ending, codec, size", [("avi", "mpeg4", (64, 48)), ("gxf", "mpeg2video", (720, 576)),
                                                 ("dv", "dvvideo", (720, 576)), ("nut", "mpeg4", (64, 48))])
def test_a_last_packet_that_is_torn_is_said(tmp_path, ending, codec, size):
    "Though a single frame is too few to be missed by the length of the film."
    path = write_film(tmp_path / f"whole.{ending}", 12, codec, size=size)
    data = path.read_bytes()
    assert not broken(path, data)
    with av.open(str(path)) as film:
        last = max(packet.pos for packet in film.demux(video=0) if packet.size)
    said = broken(tmp_path / f"torn.{ending}", data[:last + 20])
    assert re.search("within a packet|its last picture is not whole|nothing in it marks its end", said), said


def test_counting_says_what_reading_says_and_no_film_without_a_frame_vanishes(tmp_path):
    "A manifest and a registration only count the frames of a film, or stop at the last one that is wanted."
    data = write_film(tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "short.mkv").write_bytes(data[:len(data) // 2])
    for counts in (count_frames, file_manifest, lambda path: manifest(path.parent)):
        with pytest.warns(UserWarning, match="short.mkv: ends early: .* promises 60, 2.4 s"):
            counts(tmp_path / "short.mkv")
    (tmp_path / "short.mkv").unlink()
    (tmp_path / "none.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F25:1\n")
    for reads in (count_frames, file_manifest, lambda path: list(timed_frames(path)), lambda path: manifest(path.parent)):
        with pytest.raises(DatabaseError, match="none.y4m: no frame in this video"):
            reads(tmp_path / "none.y4m")
    assert "none.y4m: no frame in this video" in manifest(tmp_path, on_error="skip").attrs["skipped"][0]


def test_a_live_recording_says_what_it_has(tmp_path):
    live = broken(tmp_path / "b.mkv", write_film(tmp_path / "a.mkv", 12, "libx264", options={"live": "1"}).read_bytes())
    assert re.search("may have been cut: it does not say how long it is, .*; 12 frames, 0.5 s, are there", live)


def test_a_link_to_a_device_is_called_by_both_names(tmp_path):
    for read in (read_image, file_manifest, manifest, lambda path: list(timed_frames(path)), lambda path: list(frame_stream(path))):
        for name in ("a.png", "a.mp4"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to("/dev/zero")
            with pytest.raises((DatabaseError, FileNotFoundError), match=rf"{name} \(a link to /dev/zero\): "):
                read(tmp_path / name)


def test_films_and_programs_of_one_ending(tmp_path):
    write_film(tmp_path / "film.ts", 5, codec="mpeg2video", form="mpegts")
    (tmp_path / "program.ts").write_text("export const half = 1 / 2\n")
    (tmp_path / "empty.ts").touch()
    table = folder_manifest(tmp_path)
    assert len(table) == 5 and table.path.str.endswith("film.ts").all()
    assert "2 files" in table.attrs["notes"][0] and "2 .ts" in table.attrs["notes"][0]
    with pytest.warns(UserWarning, match="2 .ts"):
        assert [item.file for item in frame_stream(tmp_path)] == ["film.ts"] * 5
    with pytest.raises(DatabaseError, match="program.ts: not a readable video"):
        file_manifest(tmp_path / "program.ts")


def test_pictures_of_a_database_without_its_labels(tmp_path):
    (tmp_path / "F001/T1").mkdir(parents=True)
    Image.fromarray(RAMP).save(tmp_path / "F001/T1/0001.jpg")
    [note] = manifest(tmp_path).attrs["notes"]
    assert "BP4D" in note and "without labels" in note
    with pytest.raises(DatabaseError, match="no BP4D intensity file"):
        bp4d_manifest(tmp_path)


def test_a_valid_column_of_text_is_refused(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    table = folder_manifest(tmp_path)
    check_manifest(table.assign(valid=True))
    with pytest.raises(DatabaseError, match="true or false"):
        check_manifest(table.assign(valid="False"))


def test_another_resolution_on_the_way_stays_in_the_frame(tmp_path):
    parts = [write_film(tmp_path / f"{side}.ts", 10, codec="mpeg2video", form="mpegts", size=(side, side * 3 // 4))
             for side in (128, 64)]
    (tmp_path / "both.mts").write_bytes(b"".join(part.read_bytes() for part in parts))
    images = [image for _, image in timed_frames(tmp_path / "both.mts")]
    assert {image.shape for image in images} == {(96, 128, 3)} and len(images) >= 19
    assert close(images[-1][4:44, 4:60], images[0][4:44, 4:60], 30)  # the white quarter


def test_a_large_picture_is_not_copied_before_it_is_made_smaller(monkeypatch):
    "Each copy of a picture of 170 megapixels takes 680 MB."
    monkeypatch.setattr("aufacs_nb.databases.LARGEST_PICTURE", 1000)
    copy = Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy",
                        lambda picture: pytest.fail("copied") if picture.width == RAMP.shape[1] else copy(picture))
    assert rgb_pixels(Image.fromarray(RAMP)).shape == (24, 32, 3)


@pytest.mark.parametrize("turn", [1, 6])
def test_of_a_large_picture_nothing_is_held_twice(turn):
    "Its pixels in Python's memory are those of the result and of one band; Pillow holds its own, which is not counted."
    picture = Image.fromarray(np.tile(RAMP, (62, 31, 1)))
    picture.getexif()[0x0112] = turn
    tracemalloc.start()
    pixels = rgb_pixels(picture)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.rot90(pixels) if turn == 6 else pixels, np.asarray(picture))
    assert pixels.nbytes < most < 1.3 * pixels.nbytes


@pytest.mark.parametrize("side, seen", [(8000, None), (20_000, "more pixels than 178,956,970")])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(tmp_path, side, seen):
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DatabaseError, match=seen or "not a readable picture") as told:
        read_image(tmp_path / "a.png")
    assert "a.png" in str(told.value) and "\n" not in str(told.value)


def test_a_digit_that_is_no_number_is_none():
    from aufacs_nb.experiments.graph import open_executor
    from aufacs_nb.facs import LabelError
    from aufacs_nb.generation.photographs import _au_number

    with pytest.raises(ValueError, match="choose serial, processes:N"):
        open_executor("processes:²")
    with pytest.raises(LabelError, match="no action unit"):
        _au_number("AU1²", [12])


def test_every_picture_is_opened_as_one_of_named_forms_and_every_film_as_a_file():
    "Pillow also opens PostScript, by running a program, and a path that is an address is fetched by FFmpeg."
    modules = [(path, path.read_text()) for path in Path(aufacs_nb.__file__).parent.rglob("*.py")]
    calls = [(path.name, call) for path, text in modules for call in re.findall(r"Image\.open\(.*", text)]
    assert len(calls) > 4 and not [call for call in calls if "formats=" not in call[1]]
    assert not [path.name for path, text in modules if re.search(r"av\.open\(str\([^)]*\)\)", text)]
