"""Opens ONNX files with one node of our operator, damaged at random, in a real ONNX Runtime, and runs what it accepts.

    python fuzz_onnx.py LIBRARY SEED CASES

Prints how many there were, were damaged, and were computed with. An access outside of anything ends the process where
LIBRARY was built with a sanitizer.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from shearling.kernel.onnx_runtime_extension import DOMAIN, DOMAIN_VERSION, OPERATOR, node_attributes
from shearling.kernel.packed_format import Encoding, ValueType, pack
from tests.support.matrices import random_matrix

TROUBLE = (0, -1, 1, 15, 16, 17, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 32, 1 << 62, 2**63 - 1, -(2**63))
KINDS: dict[str, Any] = {"uint8": np.uint8, "int8": np.int8, "float": np.float32, "int64": np.int64}
POOL = 24


class Case:
    """A node, its weights and what it is fed, sound until damaged."""

    def __init__(self, random: np.random.Generator, sizes: tuple[int, int], packed: np.ndarray) -> None:
        self.random, self.packed = random, packed.copy()
        self.attributes: dict[str, Any] = dict(node_attributes(*sizes))
        self.kind: Any = np.uint8
        self.constant = True
        self.shape: tuple[int, ...] = (int(random.integers(0, 5)), sizes[1])

    def damage(self) -> None:
        """Change one thing."""
        random = self.random
        choice = random.integers(8)
        if choice < 3 and self.packed.size:
            place = random.integers(min(160, self.packed.size) if random.integers(2) else self.packed.size)
            self.packed[place] ^= 1 << random.integers(8)
        elif choice == 3:
            self.packed = self.packed[: random.integers(self.packed.size + 1)]
        elif choice == 4:
            name = random.choice(["rows", "columns", "format_version"])
            self.attributes[str(name)] = int(TROUBLE[random.integers(len(TROUBLE))])
        elif choice == 5:
            name = str(random.choice(["rows", "columns", "precision", "format_version"]))
            self.attributes[name] = [7, "fast", 0.5, [1, 2]][random.integers(4)]
            if random.integers(2):
                del self.attributes[name]
        elif choice == 6:
            self.shape = [(), (0,), (self.shape[-1] + 1 if self.shape else 1,), (2, 1), (3, 0)][random.integers(5)]
        elif random.integers(2):
            self.constant = False
        else:
            self.kind = KINDS[str(random.choice(list(KINDS)))]

    def model(self) -> bytes:
        """The file."""
        weights = self.packed if self.kind is np.uint8 else self.packed.astype(self.kind)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        stored = numpy_helper.from_array(weights, "weights")
        node = helper.make_node(OPERATOR, ["x", "weights"], ["y"], domain=DOMAIN, **self.attributes)
        inputs = [x] if self.constant else [x, helper.make_tensor_value_info("weights", stored.data_type, None)]
        graph = helper.make_graph([node], "one", inputs, [y], [stored] if self.constant else [])
        imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
        file: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return file.SerializeToString()

    def run(self, options: onnxruntime.SessionOptions) -> None:
        """Compute; raises what ONNX Runtime raises."""
        session = onnxruntime.InferenceSession(self.model(), options, providers=["CPUExecutionProvider"])
        x = np.full(self.shape, 0.5, np.float32)
        for _ in range(2):
            (y,) = session.run(None, {"x": x})
            assert y.shape == (*self.shape[:-1], self.attributes["rows"])


def pool(random: np.random.Generator) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Packed matrices of every kind."""
    found = []
    for number in range(POOL):
        sizes = int(random.integers(1, 40)), int(random.integers(1, 70))
        matrix = random_matrix(list(ValueType)[number % 3], *sizes, seed=number)
        found.append((sizes, pack(matrix, list(Encoding)[number // 3 % 2])))
    return found


def main(library: str, seed: int, cases: int) -> None:
    """Run."""
    random = np.random.default_rng(seed)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    matrices, damaged, computed = pool(random), 0, 0
    for number in range(cases):
        case = Case(random, *matrices[number % POOL])
        damages = int(random.integers(4))
        for _ in range(damages):
            case.damage()
        damaged += damages > 0
        try:
            case.run(options)
        except AssertionError:
            raise
        except Exception as error:
            # ONNX Runtime's exceptions, and those of onnx over what no file can say.
            if not damages:
                raise AssertionError(f"case {number}, which is sound: {error}") from error
        else:
            computed += 1
    sys.stdout.write(f"{cases} {damaged} {computed}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
