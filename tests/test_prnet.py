"""PRNet: shapes, one seed one result, reading the authors' checkpoint format, and whether the shipped weights fit."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from aufacs_nb.registration import prnet
from aufacs_nb.simulation.appearance import sample_person
from aufacs_nb.registration.detection import Square, square_from_landmarks
from aufacs_nb.geometry.meshes import canonical_face
from aufacs_nb.registration.prnet import (PRNet, PRNetTrainer, PRNetValues, WeightsError, fit_prnet, from_map_values,
                                          held_out_faces, landmark_error, load_prnet, position_maps, prnet_values,
                                          render_pool, to_map_values, train_prnet, training_step, vertices_from_maps,
                                          weight_mask)
from aufacs_nb.registration.planar import LANDMARKS_68
from aufacs_nb.registration.published_prnet import (UV_KEYPOINTS, PublishedPRNet, fit_any_prnet, fit_prnet_68,
                                                    fit_published, import_tensorflow, masked_crc, mesh_from_map,
                                                    open_prnet, published_places, tensorflow_names,
                                                    tensorflow_variables)
from aufacs_nb.presets import weights_folder

SHORT = PRNetValues("short", 32, 4, parts=1, people=1, faces=4, steps=2, batch=2)
MAGIC = (0xdb4775248b80fb57).to_bytes(8, "little")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of floats depend on how many threads share them: one for the whole file, the pool of faces included."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool(tmp_path_factory, one_thread):
    return render_pool(tmp_path_factory.mktemp("pool"), parts=1, seed=3, people=1, faces=4, progress=False)


@pytest.mark.parametrize("size, width", [(32, 4), (64, 8), (96, 4)])
def test_maps_have_the_size_of_the_crop(size, width):
    network = PRNet(size, width).eval()
    with torch.inference_mode():
        maps = network(torch.rand(2, 3, size, size))
    assert maps.shape == (2, 3, size, size) and 0 < maps.min() and maps.max() < 1


def test_published_size():
    network = PRNet()
    kernels = sum(p.numel() for p in network.parameters())
    assert (len(network.encoder), len(network.decoder)) == (10, 17)
    assert 13e6 < kernels < 14e6


@pytest.mark.parametrize("size, width", [(100, 16), (0, 16), (256, 6), (256, 0)])
def test_impossible_networks_are_refused(size, width):
    with pytest.raises(ValueError, match="multiple of 32"):
        PRNet(size, width)


@pytest.mark.parametrize("size", [64, 96, 256])
def test_maps_give_back_every_vertex(size):
    points = np.random.default_rng(size).normal(size=(2, 468, 3)).astype(np.float32)  # no smoothness to lean on
    back = vertices_from_maps(position_maps(torch.from_numpy(points), size)).numpy()
    assert np.abs(back - points).max() < .02


def test_map_values_are_turned_back():
    points = np.random.default_rng(0).normal(100, 30, (468, 3)).astype(np.float32)
    points[:, 2] -= points[:, 2].mean()
    square = Square(90, 110, 220, .4)
    np.testing.assert_allclose(from_map_values(to_map_values(points, square), square), points, atol=1e-3)


def test_weights_of_the_regions():
    mask = weight_mask(256)
    assert set(np.unique(mask)) == {0, 3, 4, 16}
    assert 65 <= (mask == 16).sum() <= 68, "the inner rims of closed lips may share a texel"
    assert (mask == 4).sum() < (mask == 3).sum()


def weights_after_two_steps(pool, seed):
    trainer = PRNetTrainer(SHORT, seed)
    for _ in range(SHORT.steps): training_step(trainer, pool)
    return b"".join(tensor.numpy().tobytes() for tensor in trainer.network.state_dict().values())


def test_same_seed_same_bytes(pool):
    assert weights_after_two_steps(pool, 5) == weights_after_two_steps(pool, 5)
    assert weights_after_two_steps(pool, 5) != weights_after_two_steps(pool, 6)


def test_pool_is_the_same_for_the_same_seed_and_not_rendered_twice(pool, tmp_path):
    again = render_pool(tmp_path, parts=1, seed=3, people=1, faces=4, progress=False)
    np.testing.assert_array_equal(again.pictures[0], pool.pictures[0])
    np.testing.assert_array_equal(again.points, pool.points)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    render_pool(tmp_path, parts=1, seed=3, people=1, faces=4, progress=False)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(prnet, "held_out_faces", lambda: held_out_faces(people=1, faces=2))
    step, killed = prnet.training_step, tmp_path / "killed"

    def step_then_die(trainer, pool):
        if len(trainer.losses) == 1: raise KeyboardInterrupt
        return step(trainer, pool)

    whole = train_prnet(tmp_path / "whole", SHORT, every=1, progress=False)
    monkeypatch.setattr(prnet, "training_step", step_then_die)
    with pytest.raises(KeyboardInterrupt):
        train_prnet(killed, SHORT, every=1, progress=False)
    assert not (killed / "weights.safetensors").exists()
    monkeypatch.setattr(prnet, "training_step", step)
    train_prnet(killed, SHORT, every=1, progress=False)
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    with pytest.raises(WeightsError, match="another run"):
        train_prnet(killed, SHORT, seed=1, every=1, progress=False)
    assert load_prnet(killed).size == 32


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="choose one of tiny, small, paper"):
        prnet_values("huge")


@pytest.fixture(scope="module")
def shipped():
    return load_prnet("small")


def test_shipped_weights_beat_the_mean_face(shipped):
    pictures, truth, squares = held_out_faces(people=4, faces=5, seed=515)
    mean = canonical_face().vertices * [1, -1, -1]
    mean = to_map_values(mean, square_from_landmarks(mean))
    laid = np.stack([from_map_values(mean, square) for square in squares])
    found = landmark_error(fit_prnet(shipped, pictures, squares), truth)
    assert found.mean() < .5 * landmark_error(laid, truth).mean()
    assert np.median(found) < .12


def test_batches_do_not_matter(shipped):
    pictures, _, squares = held_out_faces(people=4, faces=5, seed=515)
    together = fit_prnet(shipped, pictures[:3], squares[:3])
    alone = np.concatenate([fit_prnet(shipped, [p], [s]) for p, s in zip(pictures[:3], squares[:3])])
    np.testing.assert_allclose(together, alone, atol=.05)


def test_nothing_and_black_pictures(shipped):
    assert fit_prnet(shipped, [], []).shape == (0, 468, 3)
    black = fit_prnet(shipped, [np.zeros((40, 60, 3), np.uint8)], [Square(30, 20, 40)])
    assert black.shape == (1, 468, 3) and np.isfinite(black).all()


def test_shipped_weights_are_small_and_their_card_tells_how_they_were_made():
    folder = weights_folder("small", "prnet")
    assert (folder / "weights.safetensors").stat().st_size < 8e6
    card = json.loads((folder / "card.json").read_text())
    assert {"preset", "seed", "data", "command", "photographs", "scores"} <= set(card)
    assert card["scores"]["nme"] < .4 * card["scores"]["nme_mean_face"]


def test_damaged_weights_are_named(tmp_path):
    shipped = weights_folder("small", "prnet")
    (tmp_path / "card.json").write_bytes((shipped / "card.json").read_bytes())
    (tmp_path / "weights.safetensors").write_bytes((shipped / "weights.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_prnet(tmp_path)
    other = weights_folder("small", "generator")
    (tmp_path / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(WeightsError):
        load_prnet(tmp_path)


# The authors' format: a small writer of its own, so that reader and writer share no line.

def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(pairs):
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs) + bytes(4) + b"\1\0\0\0"
    return body + b"\0" + masked_crc(body + b"\0").to_bytes(4, "little")


def write_checkpoint(prefix, arrays):
    pairs, data = [(b"", field(1, 1))], bytearray()
    for name, array in sorted(arrays.items()):
        shape = b"".join(field(2, field(1, n)) for n in array.shape)
        checksum = masked_crc(array.tobytes()).to_bytes(4, "little")
        entry = field(1, 1 if array.dtype == np.float32 else 9) + field(2, shape) + field(4, len(data))
        pairs.append((name.encode(), entry + field(5, array.nbytes) + varint(6 << 3 | 5) + checksum))
        data += array.tobytes()
    blocks = [block(pairs[:100]), block(pairs[100:]), block([])]
    starts = np.cumsum([0] + [len(each) for each in blocks])
    handles = [varint(int(start)) + varint(len(each) - 5) for start, each in zip(starts, blocks)]
    index = block([(pairs[:100][-1][0], handles[0]), (b"~", handles[1])])
    footer = handles[2] + varint(int(starts[3])) + varint(len(index) - 5)
    Path(f"{prefix}.index").write_bytes(b"".join(blocks) + index + footer.ljust(40, b"\0") + MAGIC)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(bytes(data))


def published_arrays(network):
    tensors = network.state_dict()
    return {theirs: (tensors[ours].permute(2, 3, 1, 0) if kernel else tensors[ours]).contiguous().numpy()
            for ours, (theirs, kernel) in tensorflow_names().items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    network = PRNet(256, 16).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1: tensor.add_(torch.rand_like(tensor) * .05)
    prefix = tmp_path_factory.mktemp("published") / "256_256_resfcn256_weight"
    arrays = published_arrays(network)
    extras = {"global_step": np.array(7, np.int64), "resfcn256/Conv/weights/Adam": arrays["resfcn256/Conv/weights"]}
    write_checkpoint(prefix, arrays | extras)
    return prefix, network


def test_names_and_shapes_are_the_published_ones(checkpoint):
    variables = tensorflow_variables(checkpoint[0])
    assert variables["resfcn256/Conv/weights"].shape == (4, 4, 3, 16)
    assert variables["resfcn256/resBlock/shortcut/weights"].shape == (1, 1, 16, 32)
    assert "resfcn256/resBlock_1/shortcut/weights" not in variables
    assert variables["resfcn256/resBlock_9/Conv_1/weights"].shape == (4, 4, 256, 256)
    assert variables["resfcn256/resBlock_9/BatchNorm/moving_variance"].shape == (512,)
    assert variables["resfcn256/Conv2d_transpose_1/weights"].shape == (4, 4, 256, 512)
    assert variables["resfcn256/Conv2d_transpose_16/weights"].shape == (4, 4, 3, 3)
    assert len(tensorflow_names()) == 1 + 30 + 5 + 17 + 4 * (1 + 30 + 17)


def test_import_gives_back_every_tensor(checkpoint):
    prefix, network = checkpoint
    imported = import_tensorflow(prefix).state_dict()
    assert all(torch.equal(imported[name], tensor) for name, tensor in network.state_dict().items())


def test_sixty_eight_points_of_an_imported_network(checkpoint):
    picture = np.random.default_rng(0).integers(0, 256, (120, 100, 3), np.uint8)
    points = fit_prnet_68(checkpoint[1], [picture], [Square(50, 60, 90)])
    assert points.shape == (1, 68, 3) and np.isfinite(points).all()


def test_vertices_are_read_where_the_keypoints_say():
    places = published_places()
    columns, rows = torch.meshgrid(torch.arange(256.), torch.arange(256.), indexing="xy")
    maps = torch.stack([columns, rows, columns * 0])[None] / 256 / 1.1   # the face looks like the chart
    assert torch.allclose(mesh_from_map(maps)[0, :, :2] * 256 - .5, torch.tensor(places, dtype=torch.float32), atol=1e-3)
    assert np.linalg.norm(places[LANDMARKS_68] - UV_KEYPOINTS.T, axis=1).mean() < 1.5
    nearer = mesh_from_map(torch.stack([columns, rows, 256 - rows])[None] / 256 / 1.1)[0, :, 2]
    assert np.corrcoef(nearer, places[:, 1])[0, 1] > .999, "what is high in the map is near, so its depth is small"


def test_any_weights_are_opened_by_what_names_them(checkpoint, tmp_path):
    prefix, network = checkpoint
    ways = prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001", prefix.parent
    opened = [open_prnet(way) for way in ways]
    assert all(isinstance(each, PublishedPRNet) for each in opened) and not isinstance(open_prnet(), PublishedPRNet)
    picture = np.random.default_rng(0).integers(0, 256, (120, 100, 3), np.uint8)
    where = [picture], [Square(50, 60, 90)]
    assert np.allclose(fit_any_prnet(opened[3], *where), fit_published(network, *where), atol=1e-3)
    with pytest.raises(WeightsError, match="ends in .index beside one"):
        open_prnet(tmp_path)


@pytest.fixture
def copied(checkpoint, tmp_path):
    for end in ("index", "data-00000-of-00001"):
        Path(f"{tmp_path / 'copy'}.{end}").write_bytes(Path(f"{checkpoint[0]}.{end}").read_bytes())
    return tmp_path / "copy"


def changed(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("end, change, message", [
    ("index", lambda b: b[:-1], "not an intact TensorFlow checkpoint"),
    ("index", lambda b: b[:60] + b"\xff" + b[61:], "checksum of a block"),
    ("index", lambda b: b"", "not an intact TensorFlow checkpoint"),
    ("index", lambda b: b"PK" + bytes(300) + MAGIC, "not an intact TensorFlow checkpoint"),
    ("index", lambda b: b[:-48] + b"\xff" * 40 + MAGIC, "not an intact TensorFlow checkpoint"),
    ("data-00000-of-00001", lambda b: b[:-1], "cut off"),
    ("data-00000-of-00001", lambda b: bytes(len(b)), "wrong checksum"),
    ("data-00000-of-00001", lambda b: b"", "cut off")])
def test_damaged_checkpoints_are_named(copied, end, change, message):
    changed(Path(f"{copied}.{end}"), change)
    with pytest.raises(WeightsError, match=message) as error:
        import_tensorflow(copied)
    assert f"copy.{end}" in str(error.value)


def test_missing_files_are_named(copied):
    Path(f"{copied}.data-00000-of-00001").unlink()
    with pytest.raises(WeightsError, match="belongs beside the index"):
        import_tensorflow(copied)
    with pytest.raises(WeightsError, match="without .index or .data"):
        import_tensorflow(f"{copied}.index")


def test_another_networks_checkpoint_is_named(tmp_path):
    write_checkpoint(tmp_path / "other", {"vgg/conv1/weights": np.zeros((3, 3, 3, 8), np.float32)})
    with pytest.raises(WeightsError, match="another network's checkpoint"):
        import_tensorflow(tmp_path / "other")
    arrays = published_arrays(PRNet(32, 4))
    arrays["resfcn256/resBlock/Conv/weights"] = np.zeros((1, 1, 4, 99), np.float32)
    write_checkpoint(tmp_path / "other", arrays)
    with pytest.raises(WeightsError, match="resBlock/Conv/weights has shape"):
        import_tensorflow(tmp_path / "other", size=32)
