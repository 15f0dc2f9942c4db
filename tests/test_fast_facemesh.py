"""The compiled networks answer as the PyTorch modules do, for any weights, layout, batch and thread."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from aufacs_nb.registration.detection import BlazeFace, FaceLandmarker, FaceMesh, load_networks
from aufacs_nb.registration.fast_facemesh import FastFace, FastMesh
from aufacs_nb.registration.tracking import track
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.simulation.camera import render_person


@pytest.fixture(scope="module")
def shipped():
    """{name: (network, the same compiled, eight random pictures)}."""
    blazeface, facemesh, _ = load_networks()
    draw = torch.Generator().manual_seed(0)
    return {"mesh": (facemesh, FastMesh(facemesh), torch.rand(8, 3, 256, 256, generator=draw)),
            "face": (blazeface, FastFace(blazeface), 2 * torch.rand(8, 3, 128, 128, generator=draw) - 1)}


both = pytest.mark.parametrize("name", ["mesh", "face"])


def farthest(answers, expected):
    """Largest difference between two pairs of tensors of equal shapes."""
    assert [each.shape for each in answers] == [each.shape for each in expected]
    return max((a - b).abs().max().item() for a, b in zip(answers, expected))


@both
@torch.inference_mode()
def test_answers_are_those_of_the_modules(shipped, name):
    network, fast, images = shipped[name]
    assert farthest(fast(images), network(images)) < {"mesh": 2e-3, "face": 1e-3}[name]


@both
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_any_weights_and_not_only_the_shipped_ones(name, seed):
    torch.manual_seed(seed)
    network = {"mesh": FaceMesh, "face": BlazeFace}[name]().eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.PReLU):
            layer.weight.data.uniform_(-1, 2)
    images = torch.randn(2, 3, network.SIZE, network.SIZE)
    expected = network(images)
    fast = {"mesh": FastMesh, "face": FastFace}[name](network)
    assert farthest(fast(images), expected) < 1e-4 * max(1, *(each.abs().max().item() for each in expected))


@both
def test_batch_layout_and_threads_change_nothing(shipped, name):
    _, fast, images = shipped[name]
    whole = fast(images)
    others = [fast(images.contiguous(memory_format=torch.channels_last)), fast(images.flip(3).contiguous().flip(3))]
    with ThreadPoolExecutor(2) as pool:
        for parts in ([fast(image[None]) for image in images], list(pool.map(fast, images.split(4)))):
            others.append([torch.cat(tensors) for tensors in zip(*parts)])
    assert all(torch.equal(a, b) for other in others for a, b in zip(whole, other))


def test_a_film_is_followed_to_the_same_bits_on_any_number_of_threads():
    landmarker, person = FaceLandmarker.from_pretrained(), sample_person(21)
    frames = [(k / 25, render_person(person, {26: k % 3}, yaw=3 * k, size=160)) for k in range(12)]

    def followed():
        return [face.landmarks for frame in track(frames, landmarker) for face in frame.faces]

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        alone = pool.submit(followed).result()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(3,)) as pool:
        together = pool.submit(followed).result()
    assert len(alone) == len(together) == 12 and all((a == b).all() for a, b in zip(alone, together))


@both
def test_weights_are_copied_and_inputs_are_left_alone(shipped, name):
    network, _, images = shipped[name]
    own = type(network)().eval().requires_grad_(False)
    own.load_state_dict(network.state_dict())
    fast, before = type(shipped[name][1])(own), images[:1].clone()
    expected = fast(images[:1])
    for parameter in fast.parameters():
        parameter.zero_()
    assert farthest(fast(images[:1]), expected) == 0 and torch.equal(images[:1], before)


@both
def test_trained_modules_and_pictures_with_gradients_are_taken(shipped, name):
    network, fast, images = shipped[name]
    own = type(network)().eval()
    own.load_state_dict(network.state_dict())
    answers = type(fast)(own)(images[:1].clone().requires_grad_())
    assert farthest(answers, fast(images[:1])) == 0 and not answers[0].requires_grad


@both
def test_no_picture_is_no_answer(shipped, name):
    _, fast, images = shipped[name]
    assert [each.shape[1:] for each in fast(images[:0])] == [each.shape[1:] for each in fast(images[:1])]
    assert [len(each) for each in fast(images[:0])] == [0, 0]


@both
@pytest.mark.parametrize("spoil", [lambda x: x[0], lambda x: x[:, :1], lambda x: x[..., :-1], lambda x: x.double(),
                                   lambda x: (255 * x).byte(), lambda x: x.to("meta")])
def test_other_input_is_refused(shipped, name, spoil):
    _, fast, images = shipped[name]
    with pytest.raises(ValueError, match=rf"takes float32 images \(N, 3, {fast.SIZE}, {fast.SIZE}\) on the CPU"):
        fast(spoil(images))


@both
def test_a_network_elsewhere_is_refused(shipped, name):
    network, fast, _ = shipped[name]
    with pytest.raises(ValueError, match="give it a network that is there"):
        type(fast)(type(network)().to("meta"))
