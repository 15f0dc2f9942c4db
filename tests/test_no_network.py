"""Faces stay on this machine: no command, name or row of a table makes a connection that was not asked for.

Python's sockets are guarded; libraries written in C, such as FFmpeg's, would knock at a server that nobody may reach. It
hangs up at once: whoever waited for its answer would wait for ever, deep in C, where no limit of time reaches.
"""
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.databases import write_video
from tools.limits import limited

SECONDS = 300  # for a test that takes 10


class Connected(BaseException):
    """A connection was tried; no `except Exception` hides it."""


class Address(str):
    """An address; what Python `tried` to reach, and who `knocked`, past Python."""


@pytest.fixture(autouse=True)
def no_hang():
    """A test that waits for the network fails."""
    with limited(SECONDS):
        yield


def hang_up(server, knocked):
    """Close every connection as soon as it is made, until the server is shut down."""
    while True:
        try:
            connection, address = server.accept()
        except OSError:
            return
        knocked.append(address)
        connection.close()


@pytest.fixture
def guard(monkeypatch):
    """The address of a server that nobody may reach, in a process whose sockets refuse to connect."""
    tried, knocked = [], []

    def refuse(*words, **_):
        tried.append(words[1:] or words)
        raise Connected(words)

    with socket.create_server(("127.0.0.1", 0)) as server:
        hangs_up = threading.Thread(target=hang_up, args=(server, knocked), daemon=True)
        hangs_up.start()
        for name in ("connect", "connect_ex", "sendto"):
            monkeypatch.setattr(socket.socket, name, refuse)
        for name in ("create_connection", "getaddrinfo", "gethostbyname"):
            monkeypatch.setattr(socket, name, refuse)
        address = Address(f"http://127.0.0.1:{server.getsockname()[1]}")
        address.tried, address.knocked = tried, knocked
        yield address
        server.shutdown(socket.SHUT_RDWR)
        hangs_up.join(5)
        assert tried == knocked == []


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A photograph and a short film of it."""
    folder = tmp_path_factory.mktemp("seen")
    write_video(folder / "film.mp4", [astronaut()] * 3, 10)
    Image.fromarray(astronaut()).save(folder / "me.png")
    return folder


def call(*words):
    from aufacs_nb.apps.cli import main

    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_guard_notices(guard):
    import urllib.request

    with pytest.raises(Connected):
        urllib.request.urlopen(f"{guard}/film.mp4")
    guard.tried.clear()


def test_a_library_in_c_is_noticed_and_does_not_wait(guard):
    import av

    with pytest.raises(av.FFmpegError), av.open(f"{guard}/film.mp4"):
        pass
    assert guard.knocked
    guard.knocked.clear()


def test_commands_that_read_faces_stay_here(guard, seen, tmp_path, capsys):
    photo, film, quiet = seen / "me.png", seen / "film.mp4", "--quiet"
    for number, words in enumerate((
            ("predict", film, quiet), ("predict", photo, "--model", "mesh18", quiet),
            ("predict", photo, "--model", "face18", "--neutral", photo, quiet), ("actions", photo, quiet))):
        assert call(*words, "--out", tmp_path / f"{number}.csv") == 0, capsys.readouterr().err
    assert call("synthesize", photo, "--out", tmp_path / "smile.png", "--au", "12=5", quiet) == 0
    assert call("personalize", photo, "--out", tmp_path / "person", quiet) == 0
    assert call("register", film, "--out", tmp_path / "registered", quiet) == 0
    assert call("manifest", seen, "--out", tmp_path / "manifest.parquet") == 0


def test_names_that_look_like_addresses_are_names(guard, seen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (("predict", f"{guard}/film.mp4"), ("predict", f"{guard}/me.png"), ("predict", f"{guard}/"),
                  ("predict", seen / "me.png", "--model", f"{guard}/model"),
                  ("predict", seen / "me.png", "--neutral", f"{guard}/me.png"),
                  ("personalize", f"{guard}/me.png", "--out", "person"), ("actions", f"{guard}/film.mp4"),
                  ("synthesize", f"{guard}/me.png", "--out", "smile.png", "--au", "12=5"),
                  ("register", f"{guard}/film.mp4", "--out", "registered"),
                  ("evaluate", "--data", f"{guard}/data"), ("manifest", f"{guard}/data")):
        assert call(*words) in (1, 2), words
        assert "127.0.0.1" in capsys.readouterr().err, words


@pytest.mark.parametrize("name", ["film.mp4", "frame.png"])
def test_a_row_of_a_manifest_that_is_an_address_is_not_fetched(guard, seen, tmp_path, name, capsys):
    assert call("manifest", seen, "--out", tmp_path / "manifest.parquet") == 0
    table = pd.read_parquet(tmp_path / "manifest.parquet")
    ours = table[table.path.str.endswith(name[-3:])].assign(path=f"{guard}/{name}")
    ours.to_parquet(tmp_path / "theirs.parquet", index=False)
    assert len(ours) and call("register", tmp_path / "theirs.parquet", "--out", tmp_path / "out", "--quiet") == 2
    assert "127.0.0.1" in capsys.readouterr().err


def test_weights_come_from_here(guard):
    from aufacs_nb import AUClassifiers, AUEstimator, FaceLandmarker, load_generator
    from aufacs_nb.presets import WeightsError
    from aufacs_nb.registration.blendshapes import load_actions

    for load in (AUEstimator.from_pretrained, AUClassifiers.from_pretrained, load_generator):
        with pytest.raises(WeightsError, match="127.0.0.1"):
            load(f"{guard}/small")
    FaceLandmarker.from_pretrained(), load_actions(), load_generator("small")
    for name in ("small", "mesh18", "face18"):
        assert np.isfinite(AUEstimator.from_pretrained(name, device="cpu").predict(astronaut()).AU12_r).all()


def test_the_guard_of_notebooks_and_demos_notes_who_tries(tmp_path):
    """`make test` runs notebooks under tests/guard: other machines are refused and noted, this one is not, children too."""
    code = ("import socket, subprocess, sys\n"
            "with socket.create_server(('127.0.0.1', 0)) as server: socket.create_connection(server.getsockname()).close()\n"
            "try: socket.create_connection(('192.0.2.7', 80), timeout=5)\n"
            "except ConnectionRefusedError: print('refused')\n"
            "child = 'import urllib.request as u; u.urlopen(\"http://example.invalid\")'\n"
            "sys.exit(subprocess.run([sys.executable, '-c', child], capture_output=True).returncode)\n")
    knocks = tmp_path / "knocks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ | {
        "PYTHONPATH": str(Path(__file__).parent / "guard"), "AUFACS_KNOCKS": str(knocks)})
    assert (done.stdout, done.returncode) == ("refused\n", 1), done.stderr
    assert knocks.read_text(encoding="utf-8").split() == ["192.0.2.7", "example.invalid"]
