"""Weights from elsewhere: every card and every tensor that is wrong is refused by name, and no file leads out of its folder."""
import json
import os
import shutil
import warnings
from dataclasses import replace
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aufacs_nb.estimation.estimator import AUEstimator
from aufacs_nb.estimation.mesh import MeshReader
from aufacs_nb.estimation.pixels import FaceReader
from aufacs_nb.estimation.storage import AUClassifiers
from aufacs_nb.evaluation.image_quality import IdentityCode
from aufacs_nb.generation.networks import build_generator
from aufacs_nb.generation.ratio import load_ratio
from aufacs_nb.generation.runs import load_checkpoint, load_critic, load_generator, train_generator
from aufacs_nb.presets import ASSETS, TINY, Preset, WeightsError, read_card, save_weights, weights_folder
from aufacs_nb.registration.blendshapes import load_actions
from aufacs_nb.registration.detection import load_networks
from aufacs_nb.registration.prnet import load_prnet
from aufacs_nb.weights import VALUES, checked_card, eight_bits

LOADERS = {"small/classifiers": AUClassifiers.from_pretrained, "small/generator": load_generator,
           "mesh18/mesh": MeshReader.from_pretrained, "face18/face": FaceReader.from_pretrained,
           "medium/ratio_flow": load_ratio, "small/prnet": load_prnet}
WRONG = (None, True, -1, 2.5, 10**9, "", "x" * 300_000, [], [0] * 200, {}, {"a": {"b": 1}}, "../../elsewhere", "\0")


def copied(part, folder):
    shutil.copytree(ASSETS / part, folder)
    return folder


def fields_of(card):
    """(path, value) of every field that some reader looks at, in presets too."""
    for name in ("preset", "config"):
        yield from (((name, key), value) for key, value in card.get(name, {}).items() if key in VALUES["properties"])
    yield from (((key,), value) for key, value in card.items() if key in checked_fields())


def checked_fields():
    from aufacs_nb.weights import CARD
    return CARD["properties"]


def changed(card, path, value):
    card = deepcopy(card)
    *tables, last = path
    (card[tables[0]] if tables else card)[last] = value
    return card


def corrupted(card):
    """Cards that are wrong in one field: of another type or size, or gone."""
    for number, (path, value) in enumerate(fields_of(card)):
        for wrong in (WRONG[number % len(WRONG)], WRONG[(5 * number + 3) % len(WRONG)]):
            if type(wrong) is not type(value):
                yield path, wrong, changed(card, path, wrong)
    for path in (("preset",), ("config",), ("preset", "size"), ("preset", "name")):
        short = deepcopy(card)
        if (short.get(path[0], {}) if len(path) > 1 else short).pop(path[-1], None) is not None:
            yield path, "gone", short


@pytest.mark.parametrize("part", LOADERS)
def test_a_corrupted_card_is_refused_or_read_but_never_a_traceback_of_another_kind(part, tmp_path):
    folder, load = copied(part, tmp_path / "own"), LOADERS[part]
    card, refused = json.loads((folder / "card.json").read_text()), 0
    for path, wrong, text in corrupted(card):
        (folder / "card.json").write_text(json.dumps(text))
        try:
            load(str(folder))
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(folder) in str(error), f"{path} = {str(wrong)[:30]}: {error}"
    assert refused >= 4


def test_the_field_that_is_wrong_is_named_with_its_file(tmp_path):
    card, cases = json.loads((ASSETS / "small/classifiers/card.json").read_text()), 0
    for path, wrong, text in corrupted(card):
        (tmp_path / "card.json").write_text(json.dumps(text))
        try:
            checked_card(tmp_path / "card.json")
        except WeightsError as error:
            cases += 1
            assert path[-1] in str(error) and str(tmp_path / "card.json") in str(error)
            assert len(str(error)) < 700
    assert cases >= 60


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "[" * 10_000 + "]" * 10_000, '{"preset": ' * 30 + "1" + "}" * 30,
                                  '{"preset": {"name": "a", "size": NaN}}', '{"preset": {"name": "a", "size": 1e999}}',
                                  '{"preset": {"name": "a", "size": ' + "9" * 5000 + "}}", "\ufeff{}"])
def test_what_is_no_card_is_refused(text, tmp_path):
    folder = copied("small/classifiers", tmp_path / "own")
    (folder / "card.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match="card.json: no readable weights card"):
        AUClassifiers.from_pretrained(str(folder))


def test_every_field_of_a_preset_has_a_rule_and_every_shipped_card_obeys():
    assert not set(Preset.__dataclass_fields__) - set(VALUES["properties"])
    for path in ASSETS.glob("**/card.json"):
        if path.parent.name != "detection":
            checked_card(path, "config" if path.parent.name == "ratio_flow" else "preset")


def spoil(tensors, kind):
    """Tensors with the first large one of floating point made wrong; and its name."""
    name = next(k for k, v in sorted(tensors.items()) if v.is_floating_point() and v.numel() > 3)
    wrong = tensors[name].clone()
    wrong.view(-1)[1] = float("nan") if kind == "nan" else float("inf") if kind == "inf" else 0
    made = {"bfloat16": wrong.bfloat16(), "float8": wrong.to(torch.float8_e4m3fn), "shape": wrong[:-1].contiguous()}
    return {k: v for k, v in tensors.items() if k != name or kind != "missing"} | (
        {} if kind == "missing" else {name: made.get(kind, wrong)}), name


@pytest.mark.parametrize("kind", ["nan", "inf", "bfloat16", "float8", "shape", "missing", "more"])
@pytest.mark.parametrize("part", [*LOADERS, "small/identity"])
def test_tensors_that_are_wrong_are_refused_with_their_name(part, kind, tmp_path):
    folder = copied(part, tmp_path / "own")
    tensors = load_file(folder / "weights.safetensors")
    if kind == "more":
        tensors, name = tensors | {"somebody.else": torch.zeros(3)}, "somebody.else"
    else:
        tensors, name = spoil(tensors, kind)
    if kind == "more" and part in ("mesh18/mesh", "face18/face"):
        pytest.skip("what a reader does not ask for does no harm")
    save_file(tensors, folder / "weights.safetensors")
    load = (LOADERS | {"small/identity": IdentityCode.from_pretrained})[part]
    with pytest.raises(WeightsError) as error:
        load(str(folder))
    assert str(folder) in str(error.value) and name.split(".")[-1] in str(error.value)


@pytest.mark.parametrize("file", ["blazeface.safetensors", "blendshapes.safetensors"])
def test_networks_of_landmarks_are_looked_at_too(file, tmp_path):
    folder = copied("detection", tmp_path / "own")
    tensors, name = spoil(load_file(folder / file), "nan")
    save_file(tensors, folder / file)
    with pytest.raises(WeightsError, match=name):
        (load_actions if "shapes" in file else load_networks)(folder)
    (folder / file).write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="damaged"):
        (load_actions if "shapes" in file else load_networks)(folder)


def in_memory(path):
    """The tensors of a file that may be written over: `load_file` maps it, and older versions read it only when asked."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def test_a_calibration_that_is_none_is_refused(tmp_path):
    folder = copied("small/classifiers", tmp_path / "own")
    tensors = in_memory(folder / "weights.safetensors")
    for wrong in (tensors["calibration"] * 2, -tensors["calibration"], tensors["calibration"][:, :5].contiguous(),
                  torch.full_like(tensors["calibration"], float("nan"))):
        save_file(tensors | {"calibration": wrong}, folder / "weights.safetensors")
        with pytest.raises(WeightsError, match="calibration"):
            AUClassifiers.from_pretrained(str(folder))
    for part in ("mesh18/mesh", "face18/face"):
        folder = copied(part, tmp_path / part)
        tensors = in_memory(folder / "weights.safetensors")
        tensors["plain.gain"][2] *= -1  # more of the AU would read as less
        save_file(tensors, folder / "weights.safetensors")
        with pytest.raises(WeightsError, match="plain.gain"):
            LOADERS[part](str(folder))


@pytest.mark.parametrize("base", ["../small", "/tmp/small", "own", ".", "..", "a/b", "small\\..", "no such"])
def test_a_base_is_a_shipped_name_and_no_way_out(base, tmp_path):
    folder = copied("small/classifiers", tmp_path / "own")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"base": base, "base_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="personalise again"):
        AUClassifiers.from_pretrained(str(folder))


@pytest.mark.parametrize("file", ["card.json", "weights.safetensors"])
def test_links_that_lead_out_are_refused(file, tmp_path):
    folder = copied("mesh18/mesh", tmp_path / "own")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / file, tmp_path / "elsewhere" / file)
    os.symlink(tmp_path / "elsewhere" / file, folder / file)
    with pytest.raises(WeightsError, match="leads out of its folder"):
        MeshReader.from_pretrained(str(folder))
    (folder / file).unlink()
    shutil.move(tmp_path / "elsewhere" / file, folder / "other")
    os.symlink("other", folder / file)  # within the folder a link does no harm
    MeshReader.from_pretrained(str(folder))


@pytest.mark.parametrize("file", ["../step.safetensors", "/tmp/step.safetensors", "", None, 3])
def test_a_checkpoint_names_a_file_beside_it(file, tmp_path):
    card = json.loads((ASSETS / "small/generator/card.json").read_text())
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "latest.json").write_text(json.dumps({"preset": card["preset"], "file": file, "step": 1}))
    with pytest.raises(WeightsError, match="in the same folder"):
        load_critic(tmp_path)
    with pytest.raises(ValueError, match="in the same folder"):
        load_checkpoint(tmp_path / "checkpoint", None)


def test_a_bare_name_is_what_is_shipped(tmp_path, monkeypatch):
    copied("mesh18/mesh", tmp_path / "small" / "classifiers")
    copied("mesh18/mesh", tmp_path / "mine" / "mesh")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="say ./small"):
        assert weights_folder("small", "classifiers") == ASSETS / "small/classifiers"
    with warnings.catch_warnings(action="error"):
        assert weights_folder("./small", "classifiers") == Path("small/classifiers")
        assert weights_folder(Path("small"), "classifiers") == Path("small/classifiers")
        assert weights_folder("mine", "mesh") == Path("mine/mesh")  # no shipped weights are called so
    with pytest.warns(UserWarning, match="say ./small"):
        assert AUClassifiers.from_pretrained("small").source == "small"
    with pytest.raises(WeightsError, match="No mesh weights at 'x"):
        weights_folder("x" * 5000, "mesh")


def test_a_card_of_something_else_is_refused(tmp_path):
    for load, part in ((AUClassifiers.from_pretrained, "small/generator"), (AUClassifiers.from_pretrained, "mesh18/mesh"),
                       (load_generator, "mesh18/mesh"), (load_generator, "small/classifiers"), (load_prnet, "small/generator"),
                       (load_ratio, "small/generator"), (MeshReader.from_pretrained, "small/prnet"),
                       (FaceReader.from_pretrained, "mesh18/mesh")):
        with pytest.raises(WeightsError):
            load(str(ASSETS / part))


def test_what_was_adapted_from_a_folder_is_stored_whole(tmp_path):
    small = AUClassifiers.from_pretrained("small")
    small.save(tmp_path / "generic")
    generic = AUClassifiers.from_pretrained(tmp_path / "generic")
    person = AUClassifiers(generic.models, generic.preset, generic.card, generic.calibration, base=generic.source)
    card, _ = read_card(person.save(tmp_path / "person"))
    assert "base" not in card and str(tmp_path) not in json.dumps(card)
    shutil.rmtree(tmp_path / "generic")
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert np.abs(AUClassifiers.from_pretrained(tmp_path / "person").predict(frames) - small.predict(frames)).max() < 0.05


def test_a_zero_belongs_to_the_aus(tmp_path):
    folder = copied("small/classifiers", tmp_path / "own")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"zero": [0.5, 0.5]}))
    with pytest.raises(WeightsError, match="zero has 2 numbers for 7 AUs"):
        AUEstimator.from_pretrained(str(folder))


def test_a_run_does_not_go_on_with_other_data_of_as_many_frames(tmp_path):
    rng, values = np.random.default_rng(0), replace(TINY, gen_batch=4, gen_steps=1)
    frames, labels = rng.integers(1, 256, (8, 32, 32, 3), np.uint8), (rng.random((8, 7)) > 0.5).astype(np.float32)
    run = lambda frames, labels: train_generator(frames, labels, np.repeat(["a", "b"], 4), values, tmp_path,
                                                 progress=False, device="cpu")
    assert "data" not in run(frames, labels).card
    for other in ((255 - frames, labels), (frames, 1 - labels)):
        with pytest.raises(ValueError, match="made with another data"):
            run(*other)
    latest = json.loads((tmp_path / "checkpoint" / "latest.json").read_text())
    del latest["data"]  # as older versions wrote it
    (tmp_path / "checkpoint" / "latest.json").write_text(json.dumps(latest))
    run(frames, labels)


def test_the_generators_have_25_megabytes_and_the_larger_one_is_stored_as_its_card_says():
    files = [path for name in ("small", "medium") for path in (ASSETS / name).glob("*/weights.safetensors")
             if path.parent.name == "ratio_flow" or path.parent.name.startswith("generator")]
    assert len(files) == 5 and sum(path.stat().st_size for path in files) <= 25_000_000
    storage = read_card(ASSETS / "medium/generator")[0]["storage"]
    with safe_open(ASSETS / "medium/generator/weights.safetensors", "np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert [name for name, kind in kinds.items() if kind == "I8"] == storage["eight bits"]
    assert storage["command"].startswith("python tools/eight_bits.py") and "--seed" in storage["command"]
    assert storage["together"]["grey levels"] < 0.1 and max(storage["together"]["reader, levels"].values()) < 0.03


@pytest.mark.parametrize("kind", ["nan", "inf", "missing", "shape", "negative", "zero", "whole", "overflow"])
def test_a_scale_of_eight_bits_that_is_damaged_is_refused_with_its_name(kind, tmp_path):
    network = build_generator(TINY)
    tensors = dict(network.state_dict())
    whole, scale = map(torch.from_numpy, eight_bits(tensors["trunk.1.0.weight"].numpy()))
    name, stored = "trunk.1.0.weight.scale", tensors | {"trunk.1.0.weight": whole}
    save = lambda **more: save_weights(tmp_path, stored | more, TINY, architecture=TINY.gen_arch)
    save(**{name: scale})
    made = load_generator(tmp_path).state_dict()["trunk.1.0.weight"]
    torch.testing.assert_close(made, whole * scale[:, None, None, None])
    assert (made - tensors["trunk.1.0.weight"]).abs().max() <= scale.max() / 2 * 1.01
    wrong = scale.clone()
    wrong[1] = {"nan": torch.nan, "inf": torch.inf, "negative": -1, "zero": 0, "overflow": 3e38}.get(kind, 1)
    wrong = {"shape": wrong[:-1].clone(), "whole": wrong.int()}.get(kind, wrong)
    save(**({} if kind == "missing" else {name: wrong}))
    with pytest.raises(WeightsError, match="trunk.1.0.weight" if kind == "overflow" else name.replace(".", r"\.")):
        load_generator(tmp_path)


def test_the_layers_that_change_pictures_least_are_stored_in_eight_bits():
    from tools.eight_bits import choose, packed, rounded, saved

    tensors = {name: np.ones((n, 8, 3, 3), np.float16) for name, n in (("a", 8), ("b", 8), ("c", 2))}
    found, whole = {"a": 0.2, "b": 0.1, "c": 0.1}, sum(values.nbytes for values in tensors.values())
    assert choose(tensors, found, whole) == [] and choose(tensors, found, whole - 1) == ["b"]
    assert choose(tensors, found, whole - saved(tensors["b"]) - 1) == ["a", "b"]
    with pytest.raises(ValueError, match="--most 0.0004"):
        choose(tensors, found, 400)
    stored = packed(tensors, ["b"])
    assert stored["b"].dtype == np.int8 and stored["b.scale"].shape == (8,) and stored["a"] is tensors["a"]
    assert (rounded(tensors["b"]) == 1).all()
