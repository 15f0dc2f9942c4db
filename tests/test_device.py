"""Estimation on a graphics card that is not there: PyTorch's fake tensors have a device but no numbers.

They refuse to meet a tensor of another device, as a real card does. So what runs through here has every tensor where it
belongs: training, hidden maps, classifiers, personalisation. Numbers of a real card are compared by tools/gpu_check.sh.
"""
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses import fake_tensor

from aufacs_nb.estimation import classifiers, estimator, personalization, storage, trunk
from aufacs_nb.facs import AUS
from aufacs_nb.presets import TINY, ClassifierValues

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
LEVELS = np.arange(12) % 6
AUGMENTED = replace(TINY, cls_batch=4, cls_augment=True)
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64, torch.uint8: np.uint8,
         torch.bool: np.bool_}


class Card:
    "What happened on the card: how often a number was fetched from it."

    def __init__(self):
        self.fetched = 0


def _apply(module, change, recurse=True):
    "`Module._apply` without swapping, which fake tensors do not allow."
    for child in module.children():
        child._apply(change)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = torch.nn.Parameter(change(value.detach()), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = change(value)
    return module


def _copied(tensor, memo):
    "`Tensor.__deepcopy__` without a look at the data, which fake tensors do not have."
    made = tensor.detach().clone()
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made


def _leaves(node, seen):
    "The parameters at the end of a graph."
    if node is None or node in seen:
        return []
    seen.add(node)
    own = [node.variable] if hasattr(node, "variable") else []
    return own + [leaf for parent, _ in node.next_functions for leaf in _leaves(parent, seen)]


def _backward(loss, *arguments, **options):
    "Gradients of the right shape and place, without the engine, which wants a driver."
    for parameter in _leaves(loss.grad_fn, set()):
        parameter.grad = torch.zeros_like(parameter)


@pytest.fixture
def card(monkeypatch):
    "A fake mode in which 'cuda' can be had."
    found, mode = Card(), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)

    def numpy(tensor, **options):
        assert tensor.device.type == "cpu", "NumPy cannot look into a card"
        return np.zeros(tensor.shape, NUMPY[tensor.dtype])

    def fetch(tensor):
        found.fetched += tensor.device.type == "cuda"
        return np.ones(tensor.shape).tolist()

    for place, name, stand_in in (
            (torch.nn.Module, "_apply", _apply), (torch.Tensor, "backward", _backward), (torch.Tensor, "numpy", numpy),
            (torch.Tensor, "__deepcopy__", _copied), (torch.nn.Parameter, "__deepcopy__", _copied),
            (torch.Tensor, "item", fetch), (torch.Tensor, "tolist", fetch),
            *((room, "pick_device", torch.device) for room in (trunk, storage, classifiers, estimator)),
            (trunk, "seeded", lambda *_: nullcontext()), (personalization, "seeded", lambda *_: nullcontext()),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch.cuda, "mem_get_info", lambda *_: (1 << 30, 1 << 30)),
            (torch.amp.autocast_mode.torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)):
        monkeypatch.setattr(place, name, stand_in)
    with mode:
        try:
            torch.empty(2, device="cuda:0")[:1]
        except RuntimeError as error:
            if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10):
                raise
            pytest.skip(f"PyTorch {torch.__version__} asks the driver about tensors that are none ({type(error).__name__})")
        yield found


@pytest.mark.parametrize("preset", [AUGMENTED, replace(AUGMENTED, cls_head="ordinal")], ids=["classes", "ordinal"])
def test_training(card, preset, monkeypatch):
    "Frames of another size, augmentation, Valid; nothing is fetched from the card within an epoch."
    kinds, step = [], trunk._Training.step

    def watched(*arguments):
        before, loss = card.fetched, step(*arguments)
        kinds.append((loss.device.type, card.fetched - before))
        return loss

    monkeypatch.setattr(trunk._Training, "step", watched)
    model, history = trunk.train_classifier(FRAMES, LEVELS, (FRAMES, LEVELS), preset, epochs=2, progress=False,
                                            device="cuda:0")
    assert {p.device.type for p in model.parameters()} == {"cpu"} and len(history) == 2
    assert kinds == [("cuda", 0)] * 6


def test_frames_that_do_not_fit_are_uploaded_by_batch(card, monkeypatch):
    fitting = trunk.Pixels(FRAMES, AUGMENTED).to("cuda:0")
    assert fitting.frames.device.type == "cuda" and fitting.draw(np.arange(3), 0).device.type == "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1000, 1000))
    large = trunk.Pixels(FRAMES, AUGMENTED).to("cuda:0")
    assert large.frames is FRAMES and large.draw(np.arange(3), 0).device.type == "cuda"


def test_convolutions_in_bfloat16_and_scores_in_full(card):
    model, frames = trunk.build_classifier(AUGMENTED).to("cuda:0"), trunk.Pixels(FRAMES, AUGMENTED).to("cuda:0")
    kinds = []
    model.features[0].register_forward_hook(lambda layer, inputs, made: kinds.append(made.dtype))
    training = trunk._Training(model, frames, torch.zeros(12, dtype=torch.int64), AUGMENTED, 1e-3, 1, bf16=True)
    assert training.step(torch.arange(4), 0).dtype == torch.float32 and kinds == [torch.bfloat16]
    assert training.optimiser.defaults["fused"]


def test_a_resumed_optimiser_is_on_the_card(card):
    "Moments, and the count of steps too, because one kernel does the whole step."
    model, frames = trunk.build_classifier(AUGMENTED).to("cuda:0"), trunk.Pixels(FRAMES, AUGMENTED).to("cuda:0")
    training = trunk._Training(model, frames, torch.zeros(12, dtype=torch.int64), AUGMENTED, 1e-3, 1)
    training.step(torch.arange(4), 0)
    stored = {"model": {key: value.cpu() for key, value in model.state_dict().items()},
              "optimiser": {key: value.cpu() for key, value in trunk.optimiser_tensors(training.optimiser).items()}}
    rates = {key: value for key, value in training.optimiser.param_groups[0].items() if key != "params"}
    trunk._restore(training, stored, {"rates": rates, "schedule": training.schedule.state_dict()})
    states = list(training.optimiser.state.values())
    assert states and {value.device.type for state in states for value in state.values()} == {"cuda"}
    training.step(torch.arange(4), 0)


def test_hidden_maps_and_what_learns_from_them(card):
    start, rate = trunk.SlimVGG(32, 8), ClassifierValues(classifier="vgg16", cls_size=32, cls_batch=4)
    maps = trunk.hidden_maps(start, trunk.Pixels(FRAMES, AUGMENTED), 2, 5, "cuda:0")
    assert maps.maps.shape[:2] == (2, 12)
    some = maps.select(np.array([0, 0, 3, 5]))
    model, _ = trunk.train_classifier(some, LEVELS[:4], (maps, LEVELS), rate, 0, start, 1, progress=False,
                                      device="cuda:0")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.fixture
def on_card(card, monkeypatch):
    "Untrained classifiers on the card."
    monkeypatch.setattr(storage, "_same", lambda *_: True)  # fake tensors hold no numbers: none can be compared
    monkeypatch.setattr(storage, "_finite", lambda _, outputs: outputs)
    preset = replace(TINY, per_targets="asked", per_pictures="own")
    shared = trunk.build_classifier(preset, n_outputs=7 * 6)
    return storage.AUClassifiers({au: trunk.single_head(shared, i) for i, au in enumerate(AUS)}, preset).to("cuda:0")


def test_classifiers_read(on_card):
    on_card.common = 3
    assert on_card.device.type == "cuda"
    assert on_card.predict(FRAMES).shape == (12, 7) and on_card.features(FRAMES, 12).shape == (12, 128)
    assert on_card.to("cpu").device.type == "cpu"


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_a_person(on_card, place):
    "The generator may be on another device than the classifiers."
    from aufacs_nb.generation.networks import build_generator

    on_card.common = 3
    personal = personalization.personalize(on_card, build_generator(TINY).to(place), FRAMES[0], epochs=2)
    assert personal.device.type == "cuda" and on_card.device.type == "cuda"


def test_a_missing_card_is_refused():
    from aufacs_nb.tensors import pick_device

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    train = lambda: trunk.train_classifier(FRAMES, LEVELS, preset=TINY, device="cuda")
    for act in (train, lambda: pick_device("cuda:1")):
        with pytest.raises(ValueError, match="PyTorch finds no such graphics card"):
            act()
