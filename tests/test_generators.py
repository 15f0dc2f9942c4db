"""Training the generators: many processes, killed runs, full disks, the paper's size; and what the pictures obey."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from aufacs_nb.estimation.resampling import semantic_resample
from aufacs_nb.facs import AUS, au_columns, intensity_to_unit
from aufacs_nb.generation.networks import ARCHITECTURES, build_critic, build_generator
from aufacs_nb.generation.losses import (critic_loss, expression_loss, generator_adversarial_loss, identity_loss,
                                         idiosyncratic_loss, total_loss)
from aufacs_nb.presets import PAPER, SMALL, TINY, GeneratorValues, WeightsError, weights_folder
from aufacs_nb.registration.collections import sample_registered
from aufacs_nb.generation.runs import expression_estimates, load_critic, load_generator, train_generator
from aufacs_nb.generation.training import (GeneratorTrainer, PairSampler, RowSampler, TrainingError, clip_keys, rarity,
                                           train_step)

from forked import Script

TRAIN = """
import sys, time, torch
from dataclasses import replace
from aufacs_nb.facs import au_columns, intensity_to_unit
from aufacs_nb.presets import TINY
from aufacs_nb.registration.collections import sample_registered
from aufacs_nb.generation.runs import train_generator
torch.set_num_threads(1)
data = sample_registered()
labels = intensity_to_unit(data.manifest[au_columns()].to_numpy())
preset = replace(TINY, gen_batch=int(sys.argv[3]), gen_ema=0.5, cycle_share=0.5)
train_generator(data.frames, labels, data.manifest.subject.to_numpy(), preset, sys.argv[1], steps=int(sys.argv[2]),
                checkpoint_every=3, progress=False, device="cpu",
                callback=lambda step, losses: time.sleep(float(sys.argv[4])))
"""


@pytest.fixture(scope="module")
def data():
    registered = sample_registered()
    labels = intensity_to_unit(registered.manifest[au_columns()].to_numpy())
    return registered.frames, labels, registered.manifest.subject.to_numpy()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def start(script, out, steps, batch, pause=0, launcher=(), largest=None):
    """A training as a process of its own: a fork, or what `launcher` starts."""
    words = [str(word) for word in (script, out, steps, batch, pause)]
    if not launcher:
        return Script(*words, largest=largest)
    return subprocess.Popen([sys.executable, *launcher, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def weights(folder):
    return load_file(folder / "weights.safetensors")


def test_two_processes_follow_one_with_twice_the_batch(script, tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    two = start(script, tmp_path / "two", 3, 4, launcher=launcher)
    one = start(script, tmp_path / "one", 3, 8)
    finish(one)
    finish(two)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    begun = build_generator(TINY).state_dict()
    way = np.concatenate([(np.float32(one[k]) - begun[k].numpy()).ravel() for k in one])
    apart = np.concatenate([(np.float32(one[k]) - np.float32(two[k])).ravel() for k in one])
    assert np.linalg.norm(way) > 0.1
    assert np.linalg.norm(apart) < 0.05 * np.linalg.norm(way)  # rounding, which Adam makes larger with every step


def test_killed_without_warning_and_resumed(script, tmp_path):
    whole = start(script, tmp_path / "whole", 9, 4)
    broken = start(script, tmp_path / "broken", 9, 4, pause=0.3)
    latest = tmp_path / "broken" / "checkpoint" / "latest.json"
    while not latest.is_file() and broken.poll() is None:
        time.sleep(0.02)
    time.sleep(0.4)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL and latest.is_file()
    finish(start(script, tmp_path / "broken", 9, 4))
    finish(whole)
    files = ("weights.safetensors", "losses.csv")
    assert all((tmp_path / "whole" / f).read_bytes() == (tmp_path / "broken" / f).read_bytes() for f in files)


def test_ctrl_c_keeps_the_last_step(script, tmp_path):
    process = start(script, tmp_path / "run", 500, 4, pause=0.1)
    while not (tmp_path / "run" / "checkpoint" / "latest.json").is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=300)[1]
    assert "start again to go on there" in errors
    done = int(errors.split("KeyboardInterrupt: stopped after step ")[1].split()[0])
    assert f'"step": {done},' in (tmp_path / "run" / "checkpoint" / "latest.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk_is_named_and_leaves_no_half_of_a_file(script, tmp_path):
    process = start(script, tmp_path / "run", 6, 4, largest=50_000)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode != 0 and "could not be" in errors and "Make room" in errors
    assert not list((tmp_path / "run" / "checkpoint").iterdir())  # no half of a file, not even a hidden one
    finish(start(script, tmp_path / "run", 6, 4))


def test_disk_fills_up_later(data, tmp_path, monkeypatch):
    from aufacs_nb.generation import runs as room

    frames, labels, subjects = data
    run = lambda **more: train_generator(frames, labels, subjects, TINY, tmp_path, steps=6, checkpoint_every=2,
                                         progress=False, device="cpu", **more)
    real = room.save_file

    def fill(tensors, path):
        if "0000004" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(room, "save_file", fill)
    with pytest.raises(TrainingError, match="step 4 .* could not be .*No space left"):
        run()
    names = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert names == ["latest.json", "step_0000002.safetensors"]
    monkeypatch.setattr(room, "save_file", real)
    seen = []
    run(callback=lambda step, losses: seen.append(step))
    assert seen == [3, 4, 5, 6]


def test_labels_that_are_no_labels(data):
    frames, labels, subjects = data
    for wrong in (labels * 5, labels - 0.5, np.where(labels > 0, np.nan, labels)):
        with pytest.raises(ValueError):
            PairSampler(frames, wrong, subjects, TINY)


def test_resume_with_another_preset(data, tmp_path):
    frames, labels, subjects = data
    train_generator(frames, labels, subjects, TINY, tmp_path, steps=2, progress=False, device="cpu")
    with pytest.raises(TrainingError, match="another preset .*gen_arch 'ganimation' → 'stargan'"):
        train_generator(frames, labels, subjects, replace(TINY, gen_arch="stargan"), tmp_path, steps=2, progress=False,
                        device="cpu")


def test_checkpoints_and_cards_from_before_two_fields_say_what_made_them(data, tmp_path):
    frames, labels, subjects = data
    run = lambda preset, steps: train_generator(frames, labels, subjects, preset, tmp_path, steps=steps, device="cpu",
                                                progress=False)
    whole = run(TINY, 4)
    for path in (tmp_path / "checkpoint" / "latest.json", tmp_path / "card.json"):
        stored = json.loads(path.read_text())
        del stored["preset"]["target_draw"], stored["preset"]["pair_across_clips"]
        path.write_text(json.dumps(stored))
    assert load_generator(tmp_path).preset == TINY
    again = run(TINY, 4)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(TrainingError, match="target_draw 'rare' → 'plain'"):
        run(replace(TINY, target_draw="plain"), 4)


@pytest.mark.parametrize("way", ["rare", "plain"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_are_drawn_as_their_weights_say(data, way, share):
    """Shares of 60,000 draws against the weights, row by row: of all frames, and of the mates of each source."""
    _, labels, subjects = data
    keys = clip_keys(subjects.astype(str), subjects.astype(str))
    source, target = RowSampler(labels, keys, replace(TINY, target_draw=way), seed=3).rows(60_000, share).T
    weights = rarity(labels) if way == "rare" else np.ones(len(labels))
    likely = np.where((keys[:, None] == keys) | (share == 0), weights, 0.0)
    np.fill_diagonal(likely, 0.0)
    likely /= likely.sum(1, keepdims=True)
    expected = likely.mean(0)  # sources are drawn evenly
    found = np.bincount(target, minlength=len(labels)) / len(target)
    assert (source != target).all()
    assert np.abs(found - expected).max() < 4 * np.sqrt(expected.max() / len(target))


def test_the_critic_of_a_run(data, tmp_path):
    frames, labels, subjects = data
    values = replace(TINY, warmup_share=0.0)
    train_generator(frames, labels, subjects, values, tmp_path, steps=2, progress=False, device="cpu")
    critic = load_critic(tmp_path)
    stored = load_file(tmp_path / "checkpoint" / "step_0000002.safetensors")
    assert all(np.array_equal(value, stored[f"critic/{name}"]) for name, value in critic.state_dict().items())
    assert not critic.training and critic.preset == values
    read = expression_estimates(critic, frames, batch=7)
    assert read.shape == (len(frames), 7) and 0 <= read.min() and read.max() <= 5
    (tmp_path / "checkpoint" / "step_0000002.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="no critic"):
        load_critic(tmp_path)


def test_a_frame_that_is_broken_stops_the_run_and_is_named(data, tmp_path):
    frames, labels, subjects = data
    preset = replace(TINY, gen_lr=1e30, warmup_share=0.0)  # the second step overflows
    with pytest.raises(TrainingError, match=r"frames \(source, target\) \[\["):
        train_generator(frames, labels, subjects, preset, tmp_path, steps=4, progress=False, device="cpu")
    assert not (tmp_path / "weights.safetensors").exists()


def test_gradients_of_the_critic_stay_out_of_generator_steps(data):
    frames, labels, subjects = data
    sampler = PairSampler(frames, labels, subjects, TINY)
    trainer = GeneratorTrainer(sampler, replace(TINY, warmup_share=0.0), 4, 2, device="cpu")
    train_step(trainer)
    assert not any(parameter.requires_grad for parameter in trainer.critic.parameters())
    critic = {k: v.clone() for k, v in trainer.critic.state_dict().items()}
    trainer.preset = replace(trainer.preset, warmup_share=1.0)  # generator steps only
    train_step(trainer)
    assert all(torch.equal(v, critic[k]) for k, v in trainer.critic.state_dict().items())


def test_a_step_is_the_plain_loop_of_the_notebook(data):
    """The trainer without anything of ours, beside two plain Adam optimisers: the same losses, up to rounding."""
    frames, labels, subjects = data
    values = replace(TINY, warmup_share=0.0, ids_changed_weight=0.0, cycle_share=1.0)
    trainer = GeneratorTrainer(PairSampler(frames, labels, subjects, values), values, 20, 1, device="cpu")
    sampler = PairSampler(frames, labels, subjects, values)
    generator, critic = build_generator(values, 0), build_critic(values, 1)
    adam = lambda network: torch.optim.Adam(network.parameters(), values.gen_lr, values.gen_betas)
    adam_g, adam_c = adam(generator), adam(critic)
    for _ in range(3):
        batch = sampler.batch(values.gen_batch)
        fake = generator(batch.source, batch.target_labels).image
        loss, of_critic = critic_loss(critic, batch.source, fake, batch.source_labels, values, batch.epsilon)
        adam_c.zero_grad(), loss.backward(), adam_c.step()
        scores, estimates = critic(fake)
        parts = {"ids": idiosyncratic_loss(fake, batch.target, batch.same_person),
                 "adv": generator_adversarial_loss(scores), "exp": expression_loss(estimates, batch.target_labels),
                 "idt": identity_loss(generator(fake, batch.source_labels).image, batch.source)}
        adam_g.zero_grad(), total_loss(parts, values).backward(), adam_g.step()
        by_hand = {name: part.item() for name, part in (parts | of_critic).items()}
        assert train_step(trainer) == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


def test_the_generators_own_values_are_enough(data, tmp_path):
    """No room of this wing needs more of a preset than its `GeneratorValues`."""
    frames, labels, subjects = data
    values = GeneratorValues(name="mine", size=16, gen_dim=4, gen_blocks=1, critic_dim=4, critic_layers=2, gen_batch=2,
                             n_critic=1)
    made = train_generator(frames, labels, subjects, values, tmp_path, steps=1, progress=False, device="cpu")
    loaded = load_generator(tmp_path)
    assert (loaded.preset.name, loaded.preset.size, loaded.preset.lambda_exp) == ("mine", 16, PAPER.lambda_exp)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_batches_of_any_size(data, n):
    frames, labels, subjects = data
    for arch in ARCHITECTURES:
        preset = replace(TINY, gen_batch=n, gen_arch=arch, warmup_share=0.0)
        losses = train_step(GeneratorTrainer(PairSampler(frames, labels, subjects, preset), preset, 1, 1, device="cpu"))
        assert all(np.isfinite(value) for value in losses.values())


def test_the_papers_size(data):
    """A step of the `paper` preset (224 px, 64 channels) after one update of the critic; one pair fits any memory."""
    frames, labels, subjects = data
    preset = replace(PAPER, gen_batch=1, n_critic=1)
    trainer = GeneratorTrainer(PairSampler(frames, labels, subjects, preset), preset, 1, 1, device="cpu")
    before = trainer.generator.heads.weight.detach().clone()
    losses = train_step(trainer)
    assert {"ids", "adv", "exp", "idt", "critic_adv", "critic_gp", "critic_exp"} == set(losses)
    assert all(np.isfinite(value) for value in losses.values())
    assert not torch.equal(before, trainer.generator.heads.weight)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_shipped_weights(arch):
    generator = load_generator("small", arch=arch)
    assert generator.preset.size >= 96 and generator.preset.name == SMALL.name
    card = generator.card
    assert card["people"] >= 40 and card["scores"]["paired_error_test"] < 0.6
    with torch.inference_mode():
        made = generator(torch.zeros(1, 3, 96, 96), torch.zeros(1, 7))
    assert made.image.abs().max() <= 1 and (made.attention.max() == 0) == (arch == "stargan")


@pytest.mark.filterwarnings("ignore:AU04, level")
def test_the_ratio_generator_stands_where_the_others_stand(tmp_path):
    generator, frames = load_generator(arch="ratio"), np.full((2, 64, 64, 3), 120, np.uint8)
    assert generator.preset.gen_arch == "ratio" and generator.preset.aus == (1, 4, 6, 10, 12, 14, 17)
    manifest = pd.DataFrame({"partition": "Train", "subject": ["a", "b"]} | {f"AU{au:02d}": [0.0, 3.0] for au in AUS})
    balanced = semantic_resample(frames, manifest, generator, aus=(4,), per_intensity=1, progress=False)
    assert balanced.frames.shape == (6, 128, 128, 3)
    shutil.copytree(weights_folder("medium", "ratio_flow"), tmp_path / "own" / "ratio_flow")
    for folder in (tmp_path / "own", tmp_path / "own" / "ratio_flow"):
        assert load_generator(folder).preset.gen_arch == "ratio", "its card says what it is"
    with pytest.raises(WeightsError, match="not the weights of a ratio generator"):
        load_generator(weights_folder("small", "generator"), arch="ratio")
