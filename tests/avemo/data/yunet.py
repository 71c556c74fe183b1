"""A network that is read as YuNet is, and takes each bright cell of 32 x 32 pixels for a face of 64 x 64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

CELL, SIDE = 32, 64
_OPSET = 13
_CENTRE = (0.5, 0.5)  # of a box in its cell


def write_yunet(path: Path) -> Path:
    """Writes the network; its outputs are those of YuNet's three strides, of which two find nothing."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, outputs = [], [], []
    for stride in (8, 16, CELL):
        bright = 1 / (3 * stride**2 * 255) if stride == CELL else 0.0
        heads = {
            "cls": (bright, [0.0]),
            "obj": (0.0, [1.0]),
            "bbox": (0.0, [*_CENTRE, math.log(SIDE / stride), math.log(SIDE / stride)]),
            "kps": (0.0, [0.0] * 10),
        }
        for head, (value, bias) in heads.items():
            name, width = f"{head}_{stride}", len(bias)
            arrays = {
                "weight": np.full((width, 3, stride, stride), value, np.float32),
                "bias": np.array(bias, np.float32),
                "shape": np.array([1, -1, width], np.int64),
            }
            weights += [numpy_helper.from_array(x, f"{name}.{k}") for k, x in arrays.items()]
            given = ["input", f"{name}.weight", f"{name}.bias"]
            sides = [stride, stride]
            nodes += [
                helper.make_node("Conv", given, [f"{name}.map"], kernel_shape=sides, strides=sides),
                helper.make_node("Transpose", [f"{name}.map"], [f"{name}.last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.last", f"{name}.shape"], [name]),
            ]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, width]))
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None])
    graph = helper.make_graph(nodes, "yunet", [picture], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)]), path)
    return path
