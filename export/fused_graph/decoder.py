"""What the fused graph is made from: a decoder as transformers has it, looked through and checked.

Known are the architectures whose layers are

    h = x + W_o attention(W_q n, W_k n, W_v n), n = norm(x)
    y = h + W_down(act(W_gate m) * (W_up m)), m = norm(h)

with rotary positions: what GroupQueryAttention of ONNX Runtime computes in one node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from shearling.errors import ModelUnsupported, UsageError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Array = npt.NDArray[Any]
Activation = Literal["silu", "gelu_tanh", "gelu_erf"]

GENAI_TYPES = {
    "gemma": "gemma",
    "llama": "llama",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""model_type of Hugging Face -> that of ONNX Runtime GenAI."""
WINDOWED_TYPES = ("mistral", "phi3", "qwen2", "qwen3")
"""Those of them whose attention may have a window."""
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu_erf",
}
ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone, not on the length of the text."""
HEAD_STEP = 16
"""What GroupQueryAttention asks of the width of a head, and of how many of its numbers are rotated."""
REMEDY = "Use --formats onnx, which takes every architecture"


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b.

    Attributes:
        path: of the module.
        weight: [out, in] float32.
        bias: [out]; None where there is none.
    """

    path: str
    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class RmsNorm:
    """gamma * x / sqrt(mean(x²) + epsilon), over the width of gamma.

    Attributes:
        path: of the module.
        gamma: [width] float32.
    """

    path: str
    gamma: Array
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Attributes:
        path: of the module.
        inputs: q, k and v; or one linear that gives the three side by side.
        output: behind the heads.
        head_norms: of q and k, head by head; empty where there are none.
        window: positions that a token sees, itself included; None is all.
    """

    path: str
    inputs: tuple[Linear, ...]
    output: Linear
    head_norms: tuple[RmsNorm, ...]
    window: int | None


@dataclass(frozen=True)
class FeedForward:
    """down(act(gate x) * (up x)).

    Attributes:
        path: of the module.
        inputs: gate and up; or one linear that gives both side by side.
    """

    path: str
    inputs: tuple[Linear, ...]
    down: Linear


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    attention_norm: RmsNorm
    attention: Attention
    feed_forward_norm: RmsNorm
    feed_forward: FeedForward

    @property
    def linears(self) -> tuple[Linear, ...]:
        """In the order of execution."""
        attention, feed_forward = self.attention, self.feed_forward
        return (*attention.inputs, attention.output, *feed_forward.inputs, feed_forward.down)


@dataclass(frozen=True)
class FusedDecoder:
    """A whole model.

    Attributes:
        model_type: of Hugging Face.
        embedding: its path, and [vocabulary, hidden] float32.
        embedding_scale: what looked-up rows are multiplied with.
        head: the same array as the embedding's where they are tied.
        cosines, sines: [context, rotated / 2] float32.
        scale: of the scores.
        context: most positions.
    """

    model_type: str
    embedding: tuple[str, Array]
    embedding_scale: float
    layers: tuple[Layer, ...]
    norm: RmsNorm
    head: Linear
    cosines: Array
    sines: Array
    heads: int
    key_value_heads: int
    head_size: int
    scale: float
    activation: Activation
    context: int

    @property
    def tied(self) -> bool:
        """Whether the embedding and the head are one matrix."""
        return self.head.weight is self.embedding[1]

    @property
    def hidden(self) -> int:
        """Width between the layers."""
        return int(self.embedding[1].shape[1])

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.embedding[1].shape[0])


def check_model_type(model_type: str) -> None:
    """Check that the architecture is one of those known here.

    Raises:
        UsageError: it is not.
    """
    if model_type not in GENAI_TYPES:
        raise UsageError(
            f"onnx-genai does not hold the architecture {model_type}, only {', '.join(GENAI_TYPES)}",
            where="--formats",
            remedy=REMEDY,
        )


def check_layers(config: Mapping[str, Any], *, where: Path | str) -> None:
    """Check what a config.json says of layers of a known architecture.

    Args:
        config: what it leaves out is taken to be right.
        where: the file.

    Raises:
        ModelUnsupported: the fused operators do not compute it.
    """
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    width = config.get("head_dim") or (hidden // heads if hidden and heads else HEAD_STEP)
    rope = config.get("rope_parameters") or {}
    rotated = int(width * (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0))
    activation = config.get("hidden_act", "silu")
    fault = None
    if width % HEAD_STEP:
        fault = f"its attention heads are {width} wide, ONNX Runtime takes multiples of {HEAD_STEP}"
    elif rotated % HEAD_STEP:
        fault = f"it rotates {rotated} numbers of a head, ONNX Runtime takes multiples of {HEAD_STEP}"
    elif activation not in ACTIVATIONS:
        fault = f"its activation is {activation}; known are {', '.join(ACTIVATIONS)}"
    if fault is not None:
        raise ModelUnsupported(fault, where=where, remedy=REMEDY)


def read_decoder(model: PreTrainedModel) -> FusedDecoder:
    """Look a model through.

    Args:
        model: eval mode; weights in float32 are shared, not copied, others converted.

    Raises:
        ModelUnsupported: something in it that the fused operators do not compute.
    """
    config: Any = model.config
    names = {module: path for path, module in model.named_modules()}
    base: Any = model.base_model
    check_layers(config.to_dict(), where="onnx-genai")
    head_size = int(base.layers[0].self_attn.head_dim)
    layers = tuple(_layer(layer, names, config, index) for index, layer in enumerate(base.layers))
    heads, key_value_heads = _heads(layers, config, head_size)
    head: Any = model.get_output_embeddings()
    embedding = _array(base.embed_tokens.weight)
    tied = head.weight is base.embed_tokens.weight
    cosines, sines = _rotations(base, config)
    return FusedDecoder(
        model_type=config.model_type,
        embedding=(names[base.embed_tokens], embedding),
        embedding_scale=float(embedding.shape[1]) ** 0.5 if config.model_type == "gemma" else 1.0,
        layers=layers,
        norm=_norm(base.norm, names, config),
        head=Linear(names[head], embedding if tied else _array(head.weight), _bias(head)),
        cosines=cosines,
        sines=sines,
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        scale=float(base.layers[0].self_attn.scaling),
        activation=_activation(base.layers[0].mlp),
        context=int(config.max_position_embeddings),
    )


def _layer(layer: Any, names: Mapping[nn.Module, str], config: Any, index: int) -> Layer:
    attention, feed_forward = layer.self_attn, layer.mlp
    packed = hasattr(attention, "qkv_proj")
    projections = ("qkv_proj",) if packed else ("q_proj", "k_proj", "v_proj")
    gated = ("gate_up_proj",) if hasattr(feed_forward, "gate_up_proj") else ("gate_proj", "up_proj")
    norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return Layer(
        _norm(layer.input_layernorm, names, config),
        Attention(
            names[attention],
            tuple(_linear(getattr(attention, name), names) for name in projections),
            _linear(attention.o_proj, names),
            tuple(_norm(norm, names, config) for norm in norms),
            _window(config, index),
        ),
        _norm(layer.post_attention_layernorm, names, config),
        FeedForward(
            names[feed_forward],
            tuple(_linear(getattr(feed_forward, name), names) for name in gated),
            _linear(feed_forward.down_proj, names),
        ),
    )


def _linear(module: Any, names: Mapping[nn.Module, str]) -> Linear:
    return Linear(names[module], _array(module.weight), _bias(module))


def _norm(module: Any, names: Mapping[nn.Module, str], config: Any) -> RmsNorm:
    gamma = _array(module.weight)
    epsilon = getattr(module, "variance_epsilon", None)
    # Gemma keeps what is added to one.
    gamma = gamma + 1 if config.model_type == "gemma" else gamma
    return RmsNorm(names[module], gamma, float(module.eps if epsilon is None else epsilon))


def _window(config: Any, index: int) -> int | None:
    # Others ignore one that a converted config.json still names.
    if config.model_type not in WINDOWED_TYPES:
        return None
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[index] == "sliding_attention"
    window = getattr(config, "sliding_window", None)
    return int(window) if slides and window else None


def _heads(layers: tuple[Layer, ...], config: Any, head_size: int) -> tuple[int, int]:
    """Heads, and those of keys and values: one number each for all layers, since the cache has one shape."""
    found = {tuple(len(linear.weight) // head_size for linear in layer.attention.inputs) for layer in layers}
    if len(found) > 1:
        raise ModelUnsupported(
            "its layers have different numbers of attention heads, and ONNX Runtime GenAI has one shape of cache",
            where="onnx-genai",
            remedy=REMEDY,
        )
    heads, *rest = found.pop()
    # A packed projection does not tell its parts apart.
    return (heads, rest[0]) if rest else (config.num_attention_heads, config.num_key_value_heads)


def _activation(feed_forward: Any) -> Activation:
    """Of the module, since some configurations name two."""
    from transformers.activations import ACT2FN

    function = getattr(feed_forward, "activation_fn", None) or feed_forward.act_fn
    for name, activation in ACTIVATIONS.items():
        if type(ACT2FN[name]) is type(function):
            return activation
    raise ModelUnsupported(f"its activation is {type(function).__name__}", where="onnx-genai", remedy=REMEDY)


def _rotations(base: Any, config: Any) -> tuple[Array, Array]:
    """Cosines and sines, as the model itself computes them."""
    import torch

    kind = base.rotary_emb.rope_type
    if kind not in ROPES:
        raise ModelUnsupported(
            f"its rotary embedding is of the kind {kind}; known are {', '.join(ROPES)}",
            where="onnx-genai",
            remedy=REMEDY,
        )
    positions = torch.arange(config.max_position_embeddings)[None]
    with torch.no_grad():
        cosines, sines = base.rotary_emb(torch.zeros(1, 1, 1), positions)
    # Both halves of the angles are the same.
    half = cosines.shape[-1] // 2
    return cosines[0, :, :half].numpy(), sines[0, :, :half].numpy()


def _bias(module: Any) -> Array | None:
    return None if module.bias is None else _array(module.bias)


def _array(parameter: Any) -> Array:
    # A view where it is float32 already.
    array: Array = parameter.detach().float().numpy()
    return array
