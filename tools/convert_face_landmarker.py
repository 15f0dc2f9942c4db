"""Convert Google's face_landmarker.task into the weights of `aufacs_nb.registration.detection` and `aufacs_nb.registration.blendshapes`.

    pip install tflite ai-edge-litert scikit-image
    python tools/convert_face_landmarker.py face_landmarker.task [--out aufacs_nb/assets/detection]

The task file (Apache-2.0) is a zip of TensorFlow Lite graphs. Their weights come in the order in which the modules
`BlazeFace`, `FaceMesh` and `ActionNet` list theirs, so they are copied in order, shapes checked. `card.json` gets the
source, and a few answers of Google's own runtime (LiteRT) on scikit-image's astronaut: the oracle of the notebooks
10_detection and 15_actions.
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

from aufacs_nb.registration.blendshapes import POINTS, ActionNet
from aufacs_nb.registration.detection import BlazeFace, FaceMesh

SOURCE = ("https://storage.googleapis.com/mediapipe-models/face_landmarker/"
          "face_landmarker/float16/1/face_landmarker.task")
GRAPHS = ("face_detector", "face_landmarks_detector", "face_blendshapes")
SOME_LANDMARKS = [1, 33, 61, 152, 263, 291, 468, 473]
THIRD_HEAD = "conv2d_152"
CONVOLUTIONAL = ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU")
MIXER = ("CONV_2D", "MUL", "CONCATENATION")


def constants(graph, model, wanted):
    """Yield (operator name, arrays of its weights, output name) of the wanted operators in graph order."""
    names = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
    halves = {}
    for position in range(graph.OperatorsLength()):
        operator = graph.Operators(position)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, output = operator.InputsAsNumpy().tolist(), int(operator.OutputsAsNumpy()[0])
        if name == "DEQUANTIZE":
            halves[output] = read(graph, model, inputs[0])
        elif name in wanted:
            stored = [i for i in inputs if i in halves or model.Buffers(graph.Tensors(i).Buffer()).DataLength()]
            arrays = [halves[i] if i in halves else read(graph, model, i) for i in stored]
            yield name, arrays, graph.Tensors(output).Name().decode()


def read(graph, model, index):
    """Return constant tensor `index` as a float array; raises ValueError if half precision would lose anything."""
    tensor = graph.Tensors(index)
    kind = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.FLOAT32: np.float32}[tensor.Type()]
    shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
    array = np.frombuffer(model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes(), kind).reshape(shape)
    if not np.array_equal(array.astype(np.float16).astype(np.float32), array.astype(np.float32)):
        raise ValueError(f"tensor {tensor.Name().decode()} does not fit half precision")
    return array


def halves_of(arrays):
    """Return arrays as float16 tensors."""
    return [torch.from_numpy(np.array(array, np.float16, order="C")) for array in arrays]


def convolution_tensors(file):
    """Return the weights of a convolutional TensorFlow Lite file (bytes) in PyTorch's axis order, in graph order."""
    model = tflite.Model.GetRootAsModel(file, 0)
    found = []
    for name, arrays, output in constants(model.Subgraphs(0), model, CONVOLUTIONAL):
        if name == "PRELU":
            found.append(arrays[0].reshape(-1))
        elif THIRD_HEAD not in output:
            axes = (0, 3, 1, 2) if name == "CONV_2D" else (3, 0, 1, 2)
            found += [arrays[0].transpose(axes), arrays[1]]
    return halves_of(found)


def mixer_tensors(file):
    """Return the weights of the blendshape network (bytes): the learned token, then linear layers and norms in order."""
    model = tflite.Model.GetRootAsModel(file, 0)
    token, found = [], []
    for name, arrays, _ in constants(model.Subgraphs(0), model, MIXER):
        if name == "CONCATENATION":
            token = [arrays[0][0]]
        elif name == "MUL":
            found += [array for array in arrays if array.ndim]
        else:
            found += [arrays[0].reshape(len(arrays[0]), -1), arrays[1]]
    return halves_of(token + found)


def convert(weights, network, path):
    """Name the weights as `network` does and save them; SystemExit if the shapes are not the network's."""
    names = network.state_dict()
    if [tuple(w.shape) for w in weights] != [tuple(w.shape) for w in names.values()]:
        raise SystemExit(f"{path.name}: the graph's weights have other shapes than {type(network).__name__}")
    save_file(dict(zip(names, weights)), path)


def litert(file, example):
    """Run Google's runtime on one example, an image (H, W, 3) or points (146, 2): {output name: array}."""
    runtime = Interpreter(model_content=file, num_threads=1)
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], example[None].astype(np.float32))
    runtime.invoke()
    outputs = {output["name"]: runtime.get_tensor(output["index"]) for output in runtime.get_output_details()}
    return {name: np.atleast_2d(array)[0] for name, array in outputs.items()}


def reference(detector, mesh, blendshapes):
    """Return LiteRT's answers for two cuts of the astronaut, as the notebooks repeat them."""
    image = data.astronaut()
    faces = litert(detector, image[::4, ::4] / 127.5 - 1)
    best = int(faces["classificators"].argmax())
    points = litert(mesh, image[54:182, 158:286].repeat(2, 0).repeat(2, 1) / 255)
    landmarks = points["Identity"].reshape(478, 3)
    actions = next(iter(litert(blendshapes, landmarks[POINTS, :2]).values()))
    return {"runtime": f"ai-edge-litert {version('ai-edge-litert')}", "picture": "skimage.data.astronaut()",
            "blazeface": {"cut": "[::4, ::4]", "candidate": best, "logit": float(faces["classificators"][best, 0]),
                          "raw_box": faces["regressors"][best].tolist()},
            "facemesh": {"cut": "[54:182, 158:286], every pixel doubled", "logit": float(points["Identity_1"].item()),
                         "index": SOME_LANDMARKS, "points": landmarks[SOME_LANDMARKS].tolist()},
            "blendshapes": {"points": "the mesh network's on its cut", "actions": actions.tolist()}}


def main():
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--out", type=Path, default=Path("aufacs_nb/assets/detection"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.task) as archive:
        detector, mesh, blendshapes = [archive.read(f"{name}.tflite") for name in GRAPHS]
    convert(convolution_tensors(detector), BlazeFace(), options.out / "blazeface.safetensors")
    convert(convolution_tensors(mesh), FaceMesh(), options.out / "facemesh.safetensors")
    convert(mixer_tensors(blendshapes), ActionNet(), options.out / "blendshapes.safetensors")
    card = {"name": "BlazeFace short range, FaceMesh v2 and blendshapes v2", "licence": "Apache-2.0",
            "author": "Google (MediaPipe)", "source": SOURCE,
            "sha256": hashlib.sha256(options.task.read_bytes()).hexdigest(), "precision": "float16",
            "command": "python tools/convert_face_landmarker.py face_landmarker.task",
            "left out": "the third output of the mesh network", "reference": reference(detector, mesh, blendshapes)}
    for written in options.out.glob("*.safetensors"):
        written.chmod(0o644)
    (options.out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {', '.join(sorted(path.name for path in options.out.iterdir()))} to {options.out}")


if __name__ == "__main__":
    main()
