"""Estimators go to a hub and come back the same; only cards and tensors are fetched, and every refusal says what to do.

The hub is `stand_in_hub`, on this machine.
"""
import json
import shutil
import socket
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.data import astronaut

sys.path.insert(0, str(Path(__file__).parent))
from stand_in_hub import TOKEN, StandInHub  # noqa: E402

pytest.importorskip("huggingface_hub")
from aufacs_nb.estimation.estimator import AUEstimator  # noqa: E402
from aufacs_nb.estimation.sharing import HubError, fetch_weights, hub_address, located, push_folder  # noqa: E402
from aufacs_nb.presets import ASSETS  # noqa: E402


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    with StandInHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name, value in {"ENDPOINT": "", "HUGGINGFACE_CO_URL_TEMPLATE": "/{repo_id}/resolve/{revision}/{filename}"}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", server.url + value)  # as the variable does at import
        yield server


@pytest.fixture(scope="module")
def small():
    return AUEstimator.from_pretrained("small", device="cpu")


@pytest.fixture(scope="module")
def mesh18():
    return AUEstimator.from_pretrained("mesh18", device="cpu")


@pytest.mark.parametrize("revision", [None, "v1"])
def test_what_comes_back_says_the_same(hub, mesh18, revision):
    said = mesh18.predict(astronaut())
    assert mesh18.push_to_hub("me/mine", revision=revision).startswith(hub.url + "/me/mine/commit/")
    back = AUEstimator.from_pretrained("hf:me/mine", revision=revision)
    pd.testing.assert_frame_equal(back.predict(astronaut()), said)
    assert hub.repositories["me/mine"].private
    files = hub.repositories["me/mine"].commits[hub.repositories["me/mine"].branches[revision or "main"]]
    assert sorted(files) == ["README.md", "mesh/card.json", "mesh/weights.safetensors"]
    assert 'from_pretrained("hf:me/mine")' in files["README.md"].decode()


def test_a_commit_stays_what_it_was(hub, mesh18, small):
    first = mesh18.push_to_hub("me/mine").rpartition("/")[2]
    small.push_to_hub("me/mine")
    assert len(AUEstimator.from_pretrained("hf:me/mine").classifiers.aus) == 7  # the old files are gone there
    assert len(AUEstimator.from_pretrained(f"hf:me/mine@{first}").classifiers.aus) == 18


def test_a_generator_of_ones_own_goes_along_and_no_path_of_this_machine(hub, small, tmp_path):
    shutil.copytree(ASSETS / "small/generator", tmp_path / "disk/run/generator")
    (tmp_path / "disk/run/generator/secret.py").write_text("print('mine')")
    estimator = AUEstimator(small.classifiers, str(tmp_path / "disk/run"))
    estimator.classifiers.card["command"] = f"aufacs train --data {tmp_path}/disk/films --out x"
    try:
        estimator.push_to_hub("me/mine", private=False, licence="MIT")
    finally:
        del estimator.classifiers.card["command"]
    files = hub.repositories["me/mine"].commits[hub.repositories["me/mine"].branches["main"]]
    assert {"generator/card.json", "generator/weights.safetensors", "classifiers/card.json"} < set(files)
    assert not [name for name in files if name.endswith(".py")]
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    assert b'license: "mit"' in files["README.md"] and b"--data films" in files["classifiers/card.json"]
    back = AUEstimator.from_pretrained("hf:me/mine")
    assert Path(back.generator).is_relative_to(tmp_path / "cache")
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(back.classifiers.predict(frames), small.classifiers.predict(frames), atol=1e-6)


def test_only_cards_and_tensors_are_fetched(hub, mesh18):
    mesh18.push_to_hub("me/mine")
    hub.repositories["me/mine"].commit("main", {"mesh/model.py": b"boom", "pickle.pkl": b"\x80", "big.bin": b"0" * 99,
                                                "notes.json": b"{}"})
    found = fetch_weights("hf:me/mine")
    assert sorted(str(p.relative_to(found)) for p in found.rglob("*.*")) == ["mesh/card.json", "mesh/weights.safetensors"]
    assert not [path for _, path in hub.requests if path.endswith((".py", ".pkl", ".bin", "notes.json"))]
    assert not [path for _, path in hub.requests if "me/mine" not in path and path not in ("api/repos/create",
                                                                                       "api/validate-yaml")]


@pytest.mark.parametrize("address, said", [
    ("hf:me/nothing", "no such repository"), ("hf:me/mine@v9", "no revision 'v9'"), ("hf:mine", "is no address"),
    ("hf:me/../mine", "is no address"), ("hf:me/empty", "holds no weights of aufacs_nb")])
def test_what_is_not_there_is_said(hub, mesh18, address, said):
    mesh18.push_to_hub("me/mine")
    mesh18.push_to_hub("me/empty", revision="other")
    with pytest.raises(HubError, match=said) as error:
        AUEstimator.from_pretrained(address)
    assert len(str(error.value)) < 300 and "Traceback" not in str(error.value)


def test_without_a_token_private_is_missing_and_writing_refused(hub, mesh18, monkeypatch, tmp_path):
    mesh18.push_to_hub("me/mine")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(HubError, match="hf auth login"):
        AUEstimator.from_pretrained("hf:me/mine")
    with pytest.raises(HubError, match="401: no right to do that; run `hf auth login`"):
        mesh18.push_to_hub("me/other")


def test_nothing_private_goes_to_a_public_repository(hub, mesh18):
    mesh18.push_to_hub("me/open", private=False)
    sent = len(hub.repositories["me/open"].commits)
    with pytest.raises(HubError, match="is public"):
        mesh18.push_to_hub("me/open")
    assert len(hub.repositories["me/open"].commits) == sent
    mesh18.push_to_hub("me/open", private=None)


def test_without_a_network_what_was_fetched_before_still_loads(hub, mesh18, monkeypatch):
    mesh18.push_to_hub("me/mine")
    fetch_weights("hf:me/mine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert len(AUEstimator.from_pretrained("hf:me/mine").classifiers.aus) == 18
        with pytest.raises(HubError, match="cannot be reached"):
            AUEstimator.from_pretrained("hf:me/other")
        with pytest.raises(HubError, match="cannot be reached"):
            mesh18.push_to_hub("me/mine")


def test_the_extra_is_named_where_it_is_missing(monkeypatch, mesh18):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for work in (lambda: AUEstimator.from_pretrained("hf:me/mine"), lambda: mesh18.push_to_hub("me/mine")):
        with pytest.raises(HubError, match=r"pip install 'aufacs_nb\[hub\]'"):
            work()


@pytest.mark.parametrize("name", ["../../secret", "/elsewhere/run", "nowhere"])
def test_a_card_from_a_hub_names_no_folder_here(hub, small, name):
    small.push_to_hub("me/mine")
    card = json.loads((ASSETS / "small/classifiers/card.json").read_text())
    hub.repositories["me/mine"].commit("main", {"classifiers/card.json": json.dumps(card | {"generator": name}).encode()})
    with pytest.raises(HubError, match="which is not shipped"):
        AUEstimator.from_pretrained("hf:me/mine")


def test_damaged_weights_from_a_hub_are_refused_like_others(hub, mesh18):
    mesh18.push_to_hub("me/mine")
    hub.repositories["me/mine"].commit("main", {"mesh/weights.safetensors": b"garbage"})
    with pytest.raises(ValueError, match="damaged"):
        AUEstimator.from_pretrained("hf:me/mine")
    hub.repositories["me/mine"].commit("main", {"mesh/card.json": b'{"preset": {"name": "mesh", "size": "x"}}'})
    with pytest.raises(ValueError, match="preset.size must be integer"):
        AUEstimator.from_pretrained("hf:me/mine")


def test_nobody_is_asked_without_an_address(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a request")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with warnings.catch_warnings(action="error"):
        AUEstimator.from_pretrained("mesh18").save(tmp_path / "own")
        AUEstimator.from_pretrained(str(tmp_path / "own"))
    assert located("small") == "small"
    with pytest.raises(HubError, match="belongs to an address"):
        AUEstimator.from_pretrained("small", revision="v1")


def test_addresses():
    assert hub_address("hf:a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    with pytest.raises(HubError, match="is no address"):
        push_folder("anywhere", "nonsense")
