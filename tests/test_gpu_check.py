"""The GPU check on a CPU: its rule of parity, the sampler of true pairs, what its weights load as, and a tiny run."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from aufacs_nb import load_generator, synthesize
from aufacs_nb.presets import SMALL

slow = pytest.mark.skipif(os.environ.get("AUFACS_SLOW") != "1", reason="a minute of two cores: AUFACS_SLOW=1 runs it")


@pytest.fixture(scope="module")
def tools(root):
    """The tools as modules, by name."""
    sys.path.insert(0, str(root))
    import tools.gpu_check
    import tools.medium_training
    import tools.render_true_pairs

    yield tools
    sys.path.remove(str(root))


# ---------------------------------------------------------------- parity

def network():
    """A convolution, an instance norm, a rectifier and a pool, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Conv2d(8, 2, 3))


def picture(seed=0):
    """(2, 3, 24, 24) in [-1, 1]."""
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_limit_is_three_times_the_cpus_own_error_or_a_thousandth(tools):
    check = tools.gpu_check
    assert check.over_limit({"forward": 9e-4, "backward": 1.1e-3}) == ["backward"]
    assert check.over_limit({"backward": 5e-3, "CPU's own backward": 2e-3}) == []
    assert check.over_limit({"backward": 7e-3, "CPU's own backward": 2e-3}) == ["backward"]
    assert check.over_limit({"backward": float("nan"), "CPU's own backward": 2e-3}) == ["backward"]
    assert check.over_limit({"CPU's own backward": 1.0}) == [], "the CPU's own error is not judged"
    assert check.over_limit({"backward, smooth": 2e-3, "CPU's own backward": 1.0}) == ["backward, smooth"]


def test_the_cpu_agrees_with_itself_and_float64_is_the_reference(tools):
    errors = tools.gpu_check.compare(network, [picture()], "cpu")
    assert set(errors) == {"forward", "backward", "CPU's own forward", "CPU's own backward", "backward, smooth"}
    assert errors["backward, smooth"] == 0 and errors["forward"] == errors["CPU's own forward"]
    assert 0 < errors["forward"] < 1e-5 and 0 < errors["CPU's own backward"] < 1e-5
    assert tools.gpu_check.over_limit(errors) == [] and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("arch", ["ganimation", "flow"])
def test_a_generator_computes_in_float64_what_it_does_in_float32(tools, arch):
    from dataclasses import replace

    from aufacs_nb.generation.networks import build_generator

    preset = replace(SMALL, size=32, gen_dim=8, gen_blocks=1, gen_arch=arch)
    inputs = [torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.full((1, 7), 0.5)]
    true = tools.gpu_check.forward_backward(lambda: build_generator(preset), inputs, "cpu", exact=True)
    found = tools.gpu_check.forward_backward(lambda: build_generator(preset), inputs, "cpu")
    assert all(x.dtype == torch.float64 for part in true for x in part)
    assert tools.gpu_check.relative(found[0], true[0]) < 1e-4 and torch.ones(1).float().dtype == torch.float32


def test_one_rectifier_that_flips_changes_the_gradient_but_not_that_of_the_smooth_network(tools):
    def at(bias, soft):
        "Gradient of a layer whose rectifier stands at `bias`."
        layer = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        with torch.no_grad():
            layer[0].weight.fill_(1)
            layer[0].bias.fill_(bias)
        layer = tools.gpu_check.smooth(layer) if soft else layer
        layer(torch.zeros(1, 1)).sum().backward()
        return layer[0].bias.grad.item()
    assert abs(at(1e-7, False) - at(-1e-7, False)) == 1
    assert abs(at(1e-7, True) - at(-1e-7, True)) < 1e-6


def test_a_wrong_network_is_found(tools):
    check, calls = tools.gpu_check, []

    def spoilt():
        "Every other one has a wrong weight."
        calls.append(0)
        built = network()
        if len(calls) == 3:  # float64, the CPU's own, then the device's
            built[0].weight.data[0] *= 1.01
        return built
    assert "backward" in check.over_limit(check.compare(spoilt, [picture()], "cpu"))


# ---------------------------------------------------------------- true pairs

@pytest.fixture(scope="module")
def frames():
    """Three people, two instants, four variants at 8 px; the eighteen labels, of which AU2 (not the paper's) stands."""
    from aufacs_nb.facs import AU_NAMES

    names, rows = list(AU_NAMES), []
    for person in range(3):
        for instant in range(2):
            for variant in range(4):
                labels = np.zeros(len(names), np.float32)
                labels[names.index(12)] = variant / 5
                labels[names.index(2)] = 0.6 if variant == 3 else 0
                grey = np.full((8, 8, 3), 40 * person + 10 * instant + variant, np.uint8)
                rows.append((grey, labels, person, instant, variant))
    columns = [np.array(column) for column in zip(*rows)]
    return dict(zip(("frames", "labels", "person", "instant", "variant"), columns)) | {
        "names": np.array(names), "held_out": np.array([2]), "vertices": np.zeros((len(rows), 468, 3), np.float16)}


def test_true_pairs_share_person_instant_and_the_other_aus_and_differ(tools, frames):
    from dataclasses import replace

    from tools.render_true_pairs import PAPER_COLUMNS

    preset = replace(SMALL, size=8, neutral_share=0.0)
    seen = np.flatnonzero(frames["person"] != 2)
    pairs = tools.medium_training.PairRows(frames, seen, PAPER_COLUMNS, preset, "cpu", seed=0)
    source, target = (pairs.rows[rows.numpy()] for rows in pairs.draw(400, 1.0))
    others = [k for k in range(18) if k not in PAPER_COLUMNS]
    assert (source != target).all() and set(frames["person"][source]) == {0, 1}, "nobody who is held out"
    for name in ("person", "instant"):
        assert (frames[name][source] == frames[name][target]).all()
    assert (frames["labels"][source][:, others] == frames["labels"][target][:, others]).all()
    assert set(frames["variant"][source]) == {0, 1, 2}, "the variant whose AU2 stands alone has no mate"
    assert len({*zip(source, target)}) == 4 * 3 * 2, "every ordered pair is drawn"


def test_the_seed_fixes_the_batch_and_half_of_the_pairs_may_be_anyone(tools, frames):
    from dataclasses import replace

    from tools.render_true_pairs import PAPER_COLUMNS

    preset = replace(SMALL, size=8)
    make = lambda seed: tools.medium_training.PairRows(frames, np.arange(16), PAPER_COLUMNS, preset, "cpu", seed)
    first, again, other = (make(seed).batch(64, 0.5, 4, torch.contiguous_format) for seed in (0, 0, 1))
    assert torch.equal(first.rows, again.rows) and torch.equal(first.source, again.source)
    assert not torch.equal(first.rows, other.rows) and first.source.shape == (64, 3, 4, 4)
    assert 0 < first.same_person.sum() < 64 and first.target_labels.shape == (64, 7)


def test_no_true_pair_is_an_error(tools, frames):
    from tools.render_true_pairs import PAPER_COLUMNS

    with pytest.raises(ValueError, match="no true pair"):
        tools.medium_training.PairRows(frames, np.array([0, 4]), PAPER_COLUMNS, SMALL, "cpu")


# ---------------------------------------------------------------- the weights it brought

def test_the_medium_generator_loads_and_its_card_says_how_it_came_about():
    generator = load_generator("medium")
    preset, card = generator.preset, generator.card
    assert (preset.name, preset.size, preset.gen_arch) == ("medium", 128, "ganimation")
    assert card["command"].startswith("bash tools/gpu_check.sh") and "clock" in card["reproducible"]
    assert card["people"] == 179 and card["seed"] == 0 and card["scores"]["share where changed"] < 0.3
    face = np.full((1, 64, 64, 3), 120, np.uint8)
    assert synthesize(generator, face, np.eye(7)[:1]).shape == (1, 128, 128, 3)


def test_the_stored_report_has_no_paths_and_no_private_names(root):
    text = (root / "data_samples" / "results" / "gpu_check.json").read_text()
    assert "/root" not in text and "/tmp" not in text and json.loads(text)["machine"]["name"] == "NVIDIA H200"


# ---------------------------------------------------------------- everything at once

@slow
def test_everything_runs_in_a_tiny_way_on_a_cpu(root, tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", root / "tools" / "gpu_check.sh", "--tiny", "--also", "ratio_training", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=330)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert report["checks"]["parity"] == "all items within their limits" and "done" in report["checks"]
    failed = [name for name, found in report["checks"].items() if isinstance(found, dict) and "failed" in found]
    assert failed == [] and not any("no time left" in str(found) for found in report["checks"].values())
    assert report["medium"]["facts"]["steps"] > 0 and report["also"]["result"]["steps"] > 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"medium.json", "medium.safetensors", "ratio_flow"}
    assert (tmp_path / "ratio_flow" / "weights.safetensors").is_file()
