"""A decoder layer with its attention inside OpenVINO, and what surrounds the attention in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import node_factory
from shearling.kernel.packed_format import Encoding, ValueType, bundle, pack
from tests.support.matrices import dense, random_matrix

HIDDEN, INNER, EPSILON = 48, 80, 1e-5


@dataclass(frozen=True)
class Heads:
    """Of one attention."""

    count: int
    groups: int
    size: int

    @property
    def columns(self) -> int:
        return self.count * self.size

    @property
    def widths(self) -> list[int]:
        return [self.columns, self.groups * self.size, self.groups * self.size]


class Layer:
    """One layer, compiled, and the same in numpy."""

    def __init__(
        self,
        heads: Heads,
        *,
        seed: int = 0,
        order: tuple[int, ...] = (0, 1, 2),
        window: int = 0,
        angles: int = 0,
        sets: int = 1,
        rotary: int = 0,
        interleaved: bool = False,
        cache: str = "f16",
    ) -> None:
        self.heads, self.order, self.window, self.angles, self.sets = heads, order, window, angles, sets
        self.rotary, self.interleaved, self.cache = rotary or heads.size, interleaved, cache
        shapes = [(HIDDEN, heads.columns), (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
        shapes += [(width, HIDDEN) for width in heads.widths]
        self.matrices = [random_matrix(ValueType.BF16, *shape, seed=seed + place) for place, shape in enumerate(shapes)]
        rng = np.random.default_rng(seed)
        self.gammas = [rng.standard_normal(HIDDEN).astype(np.float32) for _ in range(2)]
        self.request = self._compile().create_infer_request()

    def _compile(self) -> ov.CompiledModel:
        heads = self.heads
        qkv = op.parameter([-1, -1, sum(heads.widths)], np.float32)
        residual = op.parameter([-1, -1, HIDDEN], np.float32)
        angles = [op.parameter([-1, -1, self.rotary], np.float32) for _ in range(2 * self.sets)]
        mask, beam = op.parameter([-1, -1], np.int64), op.parameter([-1], np.int32)
        factory = node_factory()
        step = factory.create("SparseStep", [*(a.output(0) for a in angles), mask.output(0), beam.output(0)], STEP)
        info = VariableInfo()
        slot = SLOTS[self.cache](heads.size)
        info.data_shape = ov.PartialShape([-1, 2 * heads.groups, -1, slot])
        info.data_type, info.variable_id = ov.Type.u8, "cache"
        cache = Variable(info)
        read = op.read_value(op.broadcast(np.uint8(0), np.array([0, 2 * heads.groups, 0, slot])), cache)
        weights = op.constant(bundle([pack(m, Encoding.BITMASK) for m in self.matrices], self.gammas))
        node = factory.create(
            "SparseDecoder",
            [qkv.output(0), residual.output(0), step.output(0), read.output(0), weights.output(0)],
            {
                **attributes(heads),
                "order": list(self.order),
                "windows": [self.window],
                "angles": [self.angles],
                "rotary_size": self.rotary,
                "interleaved": self.interleaved,
                "cache": self.cache,
            },
        )
        assign = op.assign(read, cache)
        assign.input(0).replace_source_output(node.output(1))
        results = [op.result(node.output(place)) for place in (0, 2)]
        model = ov.Model(results, [assign], [qkv, residual, *angles, mask, beam], "layer")
        return openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def infer(self, qkv, residual, cosines, sines, mask, beam) -> tuple[np.ndarray, np.ndarray]:
        """y and the next queries, keys and values; sets of angles that are not this layer's are other ones."""
        tables = [2.0 * (cosines + number) for number in range(2 * self.sets)]
        if self.angles >= 0:
            tables[2 * self.angles : 2 * self.angles + 2] = [cosines, sines]
        inputs = [self.join(qkv), residual, *tables, mask, np.asarray(beam, np.int32)]
        self.request.infer(dict(enumerate(inputs)))
        return self.request.get_output_tensor(0).data.copy(), self.request.get_output_tensor(1).data.copy()

    def join(self, qkv: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([qkv[part] for part in self.order], axis=-1)

    def expected(self, attention: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        projection, gate, up, down, *following = [dense(m).astype(np.float64) for m in self.matrices]
        h = residual + attention @ projection.T
        first = norm(h, self.gammas[0])
        gated = first @ gate.T
        y = h + (gated / (1 + np.exp(-gated)) * (first @ up.T)) @ down.T
        behind = norm(y, self.gammas[1])
        return y, np.concatenate([behind @ m.T for m in following], axis=-1)


STEP = {"format_version": 1}
SLOTS = {
    "f16": lambda size: 2 * size,
    "i8": lambda size: size + 2 * -(-size // 32),
    "f32": lambda size: 4 * size,
    "bf16": lambda size: 2 * size,
}
"""Bytes of a position in a head, by the type of the cache."""


def attributes(heads: Heads) -> dict[str, object]:
    return {
        "rows": heads.widths,
        "columns": heads.columns,
        "hidden": HIDDEN,
        "inner": INNER,
        "activation": "silu",
        "gated": True,
        "norm_epsilon": EPSILON,
        "next_epsilon": EPSILON,
        "bias": False,
        "layers": 1,
        "heads": heads.count,
        "kv_heads": heads.groups,
        "head_size": heads.size,
        "scale": heads.size**-0.5,
        "order": [0, 1, 2],
        "qkv_bias": False,
        "head_norm_epsilon": 0.0,
        "precision": "auto",
        "format_version": 1,
    }


def layer_weights(heads: Heads, *, seed: int) -> np.ndarray:
    shapes = [(HIDDEN, heads.columns), (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
    shapes += [(width, HIDDEN) for width in heads.widths]
    matrices = [random_matrix(ValueType.INT8, *shape, seed=seed + place) for place, shape in enumerate(shapes)]
    gammas = [np.random.default_rng(seed).uniform(0.5, 1, HIDDEN).astype(np.float32) for _ in range(2)]
    return bundle([pack(matrix, Encoding.BITMASK) for matrix in matrices], gammas)


def norm(x, gamma):
    return gamma * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)
