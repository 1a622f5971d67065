"""A Llama checkpoint as the ONNX graph that `serve.runtimes.deepsparse` runs: opset 13, no control of its own, every
shape settable.

DeepSparse 1.8.0 reads neither the opset nor the shape arithmetic of today's exporters, so the graph is written node by
node. It computes what the model computes in float32; the caller gives the positions, the mask and the cache, and keeps
the cache.

    inputs   input_ids, position_ids [1, S] int64; mask [1, G*S, P+S] f32, added to the scores, the S rows once for
             each of the G query heads of a key-value head; past_key_values.{i}.key / .value [1, heads, P, width]
    outputs  logits [1, 1, V] of the last position; new.{i}.key / .value [1, heads, S, width]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.errors import ModelUnsupported
from shearling.strict_json import write_json

MODEL, CONFIG = "static_decoder.onnx", "config.json"
MOST_POSITIONS = 4096
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_static_decoder(base: Path, directory: Path) -> None:
    """Write the graph, the sizes that its runtime needs, and the tokenizer.

    Args:
        base: a Llama checkpoint, such as the `model` part of an export; zeros stay zeros.
        directory: made where it does not exist.

    Raises:
        ModelUnsupported: another family, or what a Llama may have and this graph has not.
    """
    import onnx
    from onnx import TensorProto, helper

    from shearling.model.checkpoint import load_model

    model: Any = load_model(base)
    config = model.config
    if (
        config.model_type != "llama"
        or config.rope_parameters["rope_type"] != "default"
        or config.attention_bias
        or config.mlp_bias
    ):
        raise ModelUnsupported("not a Llama with plain rotary embeddings and no biases", where=base)
    graph = _Graph({name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}, config)
    logits = graph.decoder()
    heads, width = config.num_key_value_heads, graph.width
    past = [f"past_key_values.{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.INT64, [1, "sequence"]) for name in ("input_ids", "position_ids")]
    inputs += [info("mask", TensorProto.FLOAT, [1, "rows", "total"])]
    inputs += [info(name, TensorProto.FLOAT, [1, heads, "past", width]) for name in past]
    outputs = [info(logits, TensorProto.FLOAT, [1, 1, config.vocab_size])]
    outputs += [
        info(name.replace("past_key_values", "new"), TensorProto.FLOAT, [1, heads, "sequence", width]) for name in past
    ]
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(directory / MODEL)
    )
    sizes = {
        name: getattr(config, name)
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    }
    end = config.eos_token_id
    facts = {"head_dim": width, "max_position_embeddings": graph.positions, "eos_token_id": end}
    write_json(directory / CONFIG, {**sizes, **facts})
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copy(base / name, directory / name)


class _Graph:
    """Nodes and initializers; every node is named as its one output."""

    def __init__(self, state: dict[str, npt.NDArray[np.float32]], config: Any) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.positions = min(config.max_position_embeddings, MOST_POSITIONS)
        self._state, self._config, self._held = state, config, set[str]()

    def decoder(self) -> str:
        """Everything from tokens to logits; the name of these."""
        x = self.op(
            "Gather",
            self.hold("embedding", self._state["model.embed_tokens.weight"]),
            "input_ids",
            out="tokens",
            axis=0,
        )
        cos, sin = self._rotations()
        for layer in range(self._config.num_hidden_layers):
            x = self._layer(layer, x, cos, sin)
        last = self.op("Slice", x, self.ints(-1), self.ints(2**31 - 1), self.ints(1), out="last")
        tied = self._state["model.embed_tokens.weight"]
        return self._linear(self._norm(last, "model.norm", "norm"), self._state.get("lm_head.weight", tied), "logits")

    def op(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Append a node."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def hold(self, name: str, values: npt.NDArray[Any]) -> str:
        """Append an initializer, once."""
        from onnx import numpy_helper

        if name not in self._held:
            self._held.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        """A constant of integers."""
        return self.hold("ints." + ".".join(map(str, values)), np.array(values, np.int64))

    def _rotations(self) -> tuple[str, str]:
        frequencies = self._config.rope_parameters["rope_theta"] ** -(np.arange(0, self.width, 2) / self.width)
        angles = np.outer(np.arange(self.positions), frequencies)
        angles = np.concatenate([angles, angles], axis=1)
        found = []
        for name, values in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            rows = self.op(
                "Gather", self.hold(name, values.astype(np.float32)), "position_ids", out=f"{name}.rows", axis=0
            )
            found.append(self.op("Unsqueeze", rows, self.ints(1), out=f"{name}.heads"))
        return found[0], found[1]

    def _layer(self, layer: int, x: str, cos: str, sin: str) -> str:
        path, name = f"model.layers.{layer}.", f"{layer}."
        n = self._norm(x, f"{path}input_layernorm", f"{name}norm")
        weights = {kind: self._state[f"{path}self_attn.{kind}_proj.weight"] for kind in "qkvo"}
        query = self._heads(self._linear(n, weights["q"] / np.float32(np.sqrt(self.width)), f"{name}q"), self.heads)
        key = self._heads(self._linear(n, weights["k"], f"{name}k"), self.groups)
        value = self._heads(self._linear(n, weights["v"], f"{name}v"), self.groups, out=f"new.{layer}.value")
        query = self._rotate(query, cos, sin, f"{name}query")
        key = self._rotate(key, cos, sin, f"new.{layer}.key")
        # The query heads of one key-value head are more rows for the same keys.
        keys, values = (
            self.op(
                "Reshape",
                self.op("Concat", f"past_key_values.{layer}.{kind}", new, out=f"{name}{kind}.all", axis=2),
                self.ints(self.groups, -1, self.width),
                out=f"{name}{kind}.groups",
            )
            for kind, new in (("key", key), ("value", value))
        )
        rows = self.op("Reshape", query, self.ints(self.groups, -1, self.width), out=f"{name}query.groups")
        scores = self.op(
            "MatMul", rows, self.op("Transpose", keys, out=f"{name}key.columns", perm=[0, 2, 1]), out=f"{name}scores"
        )
        weighed = self.op("Softmax", self.op("Add", scores, "mask", out=f"{name}masked"), out=f"{name}weights", axis=2)
        mixed = self.op("MatMul", weighed, values, out=f"{name}mixed")
        mixed = self.op("Reshape", mixed, self.ints(1, self.heads, -1, self.width), out=f"{name}mixed.heads")
        mixed = self.op("Transpose", mixed, out=f"{name}mixed.rows", perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, self.ints(1, -1, self.heads * self.width), out=f"{name}mixed.joined")
        h = self.op("Add", x, self._linear(mixed, weights["o"], f"{name}o"), out=f"{name}h")
        n = self._norm(h, f"{path}post_attention_layernorm", f"{name}norm2")
        gate, up = (
            self._linear(n, self._state[f"{path}mlp.{kind}_proj.weight"], name + kind) for kind in ("gate", "up")
        )
        silu = self.op("Mul", gate, self.op("Sigmoid", gate, out=f"{name}sigmoid"), out=f"{name}silu")
        inner = self.op("Mul", silu, up, out=f"{name}inner")
        return self.op(
            "Add", h, self._linear(inner, self._state[f"{path}mlp.down_proj.weight"], f"{name}down"), out=f"{name}y"
        )

    def _norm(self, x: str, path: str, out: str) -> str:
        square = self.op("Pow", x, self.hold("two", np.array(2, np.float32)), out=f"{out}.square")
        mean = self.op("ReduceMean", square, out=f"{out}.mean", axes=[-1], keepdims=1)
        shifted = self.op(
            "Add", mean, self.hold("epsilon", np.array(self._config.rms_norm_eps, np.float32)), out=f"{out}.shifted"
        )
        unit = self.op("Div", x, self.op("Sqrt", shifted, out=f"{out}.root"), out=f"{out}.unit")
        return self.op("Mul", unit, self.hold(f"{out}.gamma", self._state[f"{path}.weight"]), out=out)

    def _linear(self, x: str, weight: npt.NDArray[np.float32], out: str) -> str:
        return self.op("MatMul", x, self.hold(f"{out}.weight", weight.T), out=out)

    def _heads(self, x: str, count: int, *, out: str | None = None) -> str:
        split = self.op("Reshape", x, self.ints(1, -1, count, self.width), out=f"{x}.split")
        return self.op("Transpose", split, out=out or f"{x}.heads", perm=[0, 2, 1, 3])

    def _rotate(self, x: str, cos: str, sin: str, out: str) -> str:
        half = self.width // 2
        first = self.op("Slice", x, self.ints(0), self.ints(half), self.ints(3), out=f"{out}.first")
        second = self.op("Slice", x, self.ints(half), self.ints(self.width), self.ints(3), out=f"{out}.second")
        turned = self.op("Concat", self.op("Neg", second, out=f"{out}.negated"), first, out=f"{out}.turned", axis=3)
        return self.op(
            "Add", self.op("Mul", x, cos, out=f"{out}.cos"), self.op("Mul", turned, sin, out=f"{out}.sin"), out=out
        )
