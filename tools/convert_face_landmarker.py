"""Convert Google's face_landmarker.task into the weights of `aufacs_nb.detection`.

    pip install tflite ai-edge-litert scikit-image
    python tools/convert_face_landmarker.py face_landmarker.task [--out aufacs_nb/assets/detection]

The task file (Apache-2.0) is a zip of TensorFlow Lite graphs. Their convolutions come in the order in which the modules
`BlazeFace` and `FaceMesh` list theirs, so the weights are copied in order, shapes checked. `card.json` gets the source,
and a few answers of Google's own runtime (LiteRT) on scikit-image's astronaut: the oracle of the notebook 10_detection.
"""
import argparse
import hashlib
import json
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tflite
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file
from skimage import data

from aufacs_nb.detection import BlazeFace, FaceMesh

SOURCE = ("https://storage.googleapis.com/mediapipe-models/face_landmarker/"
          "face_landmarker/float16/1/face_landmarker.task")
SOME_LANDMARKS = [1, 33, 61, 152, 263, 291, 468, 473]
THIRD_HEAD = "conv2d_152"


def constants(graph, model):
    """Yield (operator name, arrays of its weights, output name) of the convolutions and PReLUs in graph order."""
    names = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    halves = {}
    for position in range(graph.OperatorsLength()):
        operator = graph.Operators(position)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, output = operator.InputsAsNumpy().tolist(), int(operator.OutputsAsNumpy()[0])
        if name == "DEQUANTIZE":
            halves[output] = read(graph, model, inputs[0])
        elif name in ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU"):
            arrays = [halves[i] if i in halves else read(graph, model, i) for i in inputs[1:]]
            yield name, arrays, graph.Tensors(output).Name().decode()


def read(graph, model, index):
    """Return constant tensor `index` as a float array; raises ValueError if half precision would lose anything."""
    tensor = graph.Tensors(index)
    kind = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}[tensor.Type()]
    array = np.frombuffer(model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes(), kind).reshape(tensor.ShapeAsNumpy())
    if not np.array_equal(array.astype(np.float16).astype(np.float32), array.astype(np.float32)):
        raise ValueError(f"tensor {tensor.Name().decode()} does not fit half precision")
    return array


def tensors(file):
    """Return the weights of a TensorFlow Lite file (bytes) in PyTorch's axis order, in graph order."""
    model = tflite.Model.GetRootAsModel(file, 0)
    found = []
    for name, arrays, output in constants(model.Subgraphs(0), model):
        if name == "PRELU":
            found.append(arrays[0].reshape(-1))
        elif THIRD_HEAD not in output:
            axes = (0, 3, 1, 2) if name == "CONV_2D" else (3, 0, 1, 2)
            found += [arrays[0].transpose(axes), arrays[1]]
    return [torch.from_numpy(np.array(array, np.float16, order="C")) for array in found]


def convert(file, network, path):
    """Name the weights of a TensorFlow Lite file as `network` does and save them; returns the loaded network."""
    names = network.state_dict()
    weights = tensors(file)
    if [tuple(w.shape) for w in weights] != [tuple(w.shape) for w in names.values()]:
        raise SystemExit(f"{path.name}: the graph's weights have other shapes than {type(network).__name__}")
    save_file(dict(zip(names, weights)), path)
    network.load_state_dict({name: weight.float() for name, weight in zip(names, weights)})
    return network.eval()


def litert(file, image):
    """Run Google's runtime on image (H, W, 3) float32: {output name: array}."""
    runtime = Interpreter(model_content=file, num_threads=1)
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], image[None].astype(np.float32))
    runtime.invoke()
    return {output["name"]: runtime.get_tensor(output["index"])[0] for output in runtime.get_output_details()}


def reference(detector, mesh):
    """Return LiteRT's answers for two cuts of the astronaut, as the notebook repeats them."""
    image = data.astronaut()
    faces = litert(detector, image[::4, ::4] / 127.5 - 1)
    best = int(faces["classificators"].argmax())
    points = litert(mesh, image[54:182, 158:286].repeat(2, 0).repeat(2, 1) / 255)
    return {"runtime": f"ai-edge-litert {version('ai-edge-litert')}", "picture": "skimage.data.astronaut()",
            "blazeface": {"cut": "[::4, ::4]", "candidate": best, "logit": float(faces["classificators"][best, 0]),
                          "raw_box": faces["regressors"][best].tolist()},
            "facemesh": {"cut": "[54:182, 158:286], every pixel doubled", "logit": float(points["Identity_1"].item()),
                         "index": SOME_LANDMARKS,
                         "points": points["Identity"].reshape(478, 3)[SOME_LANDMARKS].tolist()}}


def main():
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--out", type=Path, default=Path("aufacs_nb/assets/detection"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.task) as archive:
        detector, mesh = archive.read("face_detector.tflite"), archive.read("face_landmarks_detector.tflite")
    convert(detector, BlazeFace(), options.out / "blazeface.safetensors")
    convert(mesh, FaceMesh(), options.out / "facemesh.safetensors")
    card = {"name": "BlazeFace short range and FaceMesh v2", "licence": "Apache-2.0", "author": "Google (MediaPipe)",
            "source": SOURCE, "sha256": hashlib.sha256(options.task.read_bytes()).hexdigest(), "precision": "float16",
            "command": "python tools/convert_face_landmarker.py face_landmarker.task",
            "left out": "the blendshape network; the third output of the mesh network",
            "reference": reference(detector, mesh)}
    for written in options.out.glob("*.safetensors"):
        written.chmod(0o644)
    (options.out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {', '.join(sorted(path.name for path in options.out.iterdir()))} to {options.out}")


if __name__ == "__main__":
    main()
