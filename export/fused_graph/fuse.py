"""The fused graph of a decoder: normalizations with the residual inside, GroupQueryAttention with rotary positions.

Weights stand in it as Hugging Face has them, [out, in], each before a Transpose, under their names there; so
`export.quantization.integer_graph` and `export.packing.packed_onnx` find them as in any other graph.

Positions follow from the mask: the rows of a batch are padded on the right, and a cache holds no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from export.fused_graph.decoder import Attention, FeedForward, FusedDecoder, Linear, RmsNorm
from export.fused_graph.graph_writer import CONTRIB, GraphWriter
from shearling.kernel.onnx_runtime_extension import CACHE_BUFFER, PADDING

CACHE = "past_key_values.{}.{}"
PRESENT = "present.{}.{}"
PARTS = ("key", "value")
CONVENTIONS = {PADDING: "right", CACHE_BUFFER: "in place"}
"""Kept in the file, for those who run it without GenAI."""


def fused_graph(decoder: FusedDecoder, dtype: npt.DTypeLike = np.float32) -> Any:
    """Write the graph.

    Inputs input_ids [B, S] and attention_mask [B, P + S] int64, past_key_values.{i}.key and .value
    [B, heads, P, head size]; outputs logits [B, S, V], present.{i}.key and .value [B, heads, P + S, head size]. A cache
    longer than P + S may be given, and the same memory for what comes out: it is then written in place.

    Args:
        decoder: what is computed.
        dtype: in what: float32 or float16.

    Returns:
        An `onnx_ir.Model`.
    """
    graph = _Fusion(decoder, GraphWriter(dtype)).write()
    graph.metadata_props.update(CONVENTIONS)
    return graph


class _Fusion:
    def __init__(self, decoder: FusedDecoder, writer: GraphWriter) -> None:
        self._decoder = decoder
        self._writer = writer

    def write(self) -> Any:
        decoder, writer = self._decoder, self._writer
        tokens = writer.input("input_ids", ["batch_size", "sequence_length"], np.int64)
        mask = writer.input("attention_mask", ["batch_size", "total_sequence_length"], np.int64)
        caches = [
            [writer.input(CACHE.format(place, part), self._cache_shape("past")) for part in PARTS]
            for place in range(len(decoder.layers))
        ]
        lengths = self._lengths(mask)
        x, branch = self._embedding(tokens), None
        presents = []
        for layer, cache in zip(decoder.layers, caches, strict=True):
            n, x = self._norm(layer.attention_norm, x, branch)
            branch, present = self._attention(layer.attention, n, cache, lengths)
            presents.append(present)
            m, x = self._norm(layer.feed_forward_norm, x, branch)
            branch = self._feed_forward(layer.feed_forward, m)
        last, _ = self._norm(decoder.norm, x, branch)
        writer.output(self._linear(decoder.head, last), "logits", ["batch_size", "sequence_length", decoder.vocabulary])
        for place, present in enumerate(presents):
            for part, value in zip(PARTS, present, strict=True):
                writer.output(value, PRESENT.format(place, part), self._cache_shape("total"))
        return writer.finish(decoder.model_type)

    def _cache_shape(self, positions: str) -> list[int | str]:
        return [
            "batch_size",
            self._decoder.key_value_heads,
            f"{positions}_sequence_length",
            self._decoder.head_size,
        ]

    def _lengths(self, mask: Any) -> Sequence[Any]:
        """Last position of each row [B], and the length of the longest, both int32."""
        writer = self._writer
        axis, one = (writer.constant(f"mask/{name}", np.array([1], np.int64)) for name in ("axis", "one"))
        rows = writer.node("ReduceSum", [mask, axis], "mask/lengths", {"keepdims": 0})
        last = writer.node("Sub", [rows, one], "mask/last")
        shape = writer.node("Shape", [mask], "mask/shape", {"start": 1, "end": 2})
        scalar = writer.node("Squeeze", [shape], "mask/total")
        to_int32 = {"to": 6}  # onnx.TensorProto.INT32
        return [writer.node("Cast", [value], f"{value.name}/int32", to_int32) for value in (last, scalar)]

    def _embedding(self, tokens: Any) -> Any:
        path, weight = self._decoder.embedding
        rows = self._writer.node("Gather", [self._writer.number(f"{path}.weight", weight), tokens], path)
        if self._decoder.embedding_scale == 1:
            return rows
        scale = self._writer.number(f"{path}.scale", np.array(self._decoder.embedding_scale))
        return self._writer.node("Mul", [rows, scale], f"{path}/scaled")

    def _norm(self, norm: RmsNorm, x: Any, branch: Any | None) -> tuple[Any, Any]:
        """norm(x + branch), and x + branch."""
        if branch is None:
            return self._plain_norm(norm, x), x
        gamma = self._writer.number(f"{norm.path}.weight", norm.gamma)
        outputs = self._writer.nodes(
            "SkipSimplifiedLayerNormalization",
            [x, branch, gamma],
            norm.path,
            {"epsilon": norm.epsilon},
            domain=CONTRIB,
            outputs=4,
        )
        # The mean and the deviation between them are for training.
        for unused in outputs[1:3]:
            unused.name = ""
        return outputs[0], outputs[3]

    def _plain_norm(self, norm: RmsNorm, x: Any) -> Any:
        gamma = self._writer.number(f"{norm.path}.weight", norm.gamma)
        return self._writer.node("RMSNormalization", [x, gamma], norm.path, {"epsilon": norm.epsilon, "axis": -1})

    def _attention(
        self, attention: Attention, x: Any, cache: Sequence[Any], lengths: Sequence[Any]
    ) -> tuple[Any, Sequence[Any]]:
        decoder, writer = self._decoder, self._writer
        inputs = [self._linear(linear, x) for linear in attention.inputs]
        if attention.head_norms:
            inputs[:2] = [
                self._head_norm(norm, value) for norm, value in zip(attention.head_norms, inputs[:2], strict=True)
            ]
        # One packed input stands for all three.
        inputs += [None] * (3 - len(inputs))
        rotations = [writer.number("rotary/cosines", decoder.cosines), writer.number("rotary/sines", decoder.sines)]
        attributes = {
            "num_heads": decoder.heads,
            "kv_num_heads": decoder.key_value_heads,
            "scale": decoder.scale,
            "do_rotary": 1,
            "rotary_interleaved": 0,
            "local_window_size": attention.window or -1,
        }
        heads, *present = writer.nodes(
            "GroupQueryAttention",
            [*inputs, *cache, *lengths, *rotations],
            attention.path,
            attributes,
            domain=CONTRIB,
            outputs=3,
        )
        return self._linear(attention.output, heads), present

    def _head_norm(self, norm: RmsNorm, x: Any) -> Any:
        writer, width = self._writer, self._decoder.head_size
        split = writer.constant("head_norm/heads", np.array([0, 0, -1, width], np.int64))
        joined = writer.constant("head_norm/joined", np.array([0, 0, -1], np.int64))
        heads = writer.node("Reshape", [x, split], f"{norm.path}/heads")
        return writer.node("Reshape", [self._plain_norm(norm, heads), joined], f"{norm.path}/joined")

    def _feed_forward(self, feed_forward: FeedForward, x: Any) -> Any:
        writer, path = self._writer, feed_forward.path
        halves: Sequence[Any] = [self._linear(linear, x) for linear in feed_forward.inputs]
        if len(halves) == 1:
            halves = writer.nodes("Split", halves, f"{path}/halves", {"axis": -1, "num_outputs": 2}, outputs=2)
        gate, up = halves
        gated = writer.node("Mul", [self._activation(gate, path), up], f"{path}/gated")
        return self._linear(feed_forward.down, gated)

    def _activation(self, x: Any, path: str) -> Any:
        writer, kind = self._writer, self._decoder.activation
        if kind == "silu":
            # x * sigmoid(alpha x)
            return writer.node("QuickGelu", [x], f"{path}/silu", {"alpha": 1.0}, domain=CONTRIB)
        return writer.node("Gelu", [x], f"{path}/gelu", {"approximate": "tanh" if kind == "gelu_tanh" else "none"})

    def _linear(self, linear: Linear, x: Any) -> Any:
        writer = self._writer
        embedding, rows = self._decoder.embedding
        # A tied head reads the embedding's own weight.
        owner = embedding if linear.weight is rows else linear.path
        weight = writer.number(f"{owner}.weight", linear.weight)
        transposed = writer.node("Transpose", [weight], f"{linear.path}/transposed", {"perm": [1, 0]})
        product = writer.node("MatMul", [x, transposed], linear.path)
        if linear.bias is None:
            return product
        bias = writer.number(f"{linear.path}.bias", linear.bias)
        return writer.node("Add", [product, bias], f"{linear.path}/biased")
