"""What a stranger may send to a demo: names that lie, what is no picture, programs that end while they read."""
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from aufacs_nb.apps.widgets import UPLOADS, Upload, on_upload, send_file
from aufacs_nb.databases import sample_database
from aufacs_nb.files import temporary_name
from aufacs_nb.pictures import to_jpeg

JPEG = to_jpeg(np.full((40, 60, 3), 90, np.uint8))


@pytest.fixture
def page():
    """A page with an upload button; `taken` holds (name, picture)."""
    made = SimpleNamespace(upload=Upload(), message=widgets.HTML(), taken=[])
    on_upload(made, lambda name, picture: made.taken.append((name, picture.shape)))
    return made


@pytest.mark.parametrize("sent, name", [
    ("../../../etc/cron.d/me.jpg", "me.jpg"), (r"C:\Users\me\..\me.jpg", "me.jpg"),
    ("\x1b[2Jme\x07.jpg", r"\x1b[2Jme\x07.jpg"),
    ("me\u202egpj.exe", r"me\u202egpj.exe"), ("", "file"), ("..", ".."), ("a\0b.j\0pg", r"a\x00b.j\x00pg"),
    ("=HYPERLINK(1).jpg", "=HYPERLINK(1).jpg"), ("n" * 5000 + ".jpg", "n" * 116 + ".jpg")])
def test_a_name_is_one_part_without_invisible_characters(page, sent, name):
    for _ in range(2):  # the same file can be chosen again
        send_file(page.upload, sent, JPEG)
    assert page.taken == 2 * [(name, (40, 60, 3))], page.message.value
    assert page.upload.said == f"{name} is shown." and page.upload.value == ()
    assert not temporary_name(UPLOADS).exists()


def test_what_is_no_picture_is_refused_by_its_name(page):
    film = sorted(sample_database().rglob("*.mp4"))[0].read_bytes()
    for content in (film, b"", b"text", b"%PDF-1.7", JPEG[:200], b"\x80\x04\x95pickle"):
        page.message.value = ""
        send_file(page.upload, "<b>me.jpg", content)
        assert "aufacs-wrong" in page.message.value and "&lt;b&gt;me.jpg" in page.message.value, content[:10]
        assert str(UPLOADS.parent) not in page.message.value and "should not happen" not in page.message.value
    assert page.taken == [] and not temporary_name(UPLOADS).exists()


def test_what_is_too_large_is_refused_before_it_is_written(page, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: pytest.fail("written"))
    send_file(page.upload, "me.jpg", bytes(page.upload.most + 1))
    assert "at most 20 MB" in page.message.value and page.taken == []


def test_a_picture_of_too_many_pixels_is_refused(page, tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    send_file(page.upload, "bomb.png", (tmp_path / "bomb.png").read_bytes())
    assert page.taken == [] and "bomb.png" in page.message.value and "aufacs-wrong" in page.message.value


def test_the_upload_of_a_program_that_was_ended_is_removed_by_the_next(page):
    left = UPLOADS.with_name(f".{UPLOADS.name}.{2**31 - 5}.tmp")  # no process has this number
    left.mkdir()
    (left / "upload.jpg").write_bytes(JPEG)
    send_file(page.upload, "me.jpg", JPEG)
    assert not left.exists() and len(page.taken) == 1
