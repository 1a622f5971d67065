"""Which widths of a model can be cut, found by following the data through one forward of shapes alone.

Every linear layer tags what it computes, and every operator passes tags on. A linear whose input carries the tags of
other linears and not that of the residual stream reads something private, and so closes a block:

    feed forward   the tagged values arrive channel by channel: elementwise operators alone stand in between
    attention      they arrive through a softmax, after having been split into heads

Nothing is known of class or module names. What only looks like a block (a fused projection, unequal value heads) is
reported as uncuttable with the module that makes it so, and what is cut is tried out, as shapes again, before anybody
trains it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shearling.errors import ModelUnsupported
from shearling.model.head import auto_class
from shearling.model.layers import TransformerLayers, find_layers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

Part = Literal["feed_forward", "attention"]
PARTS: tuple[Part, ...] = ("feed_forward", "attention")

STREAM = "(residual stream)"
PROBE_TOKENS = 5
ATTENTION_OPERATORS = ("softmax", "scaled_dot_product")


@dataclass(frozen=True)
class WidthBlock:
    """One width of one layer: who produces its channels, and who consumes them.

    Attributes:
        part: what it is.
        producers: names inside the layer, whose output is as wide as the consumer's input.
        grouped: key and value projections with fewer heads than the queries; their width is the value divided by
            `group`.
        consumer: name inside the layer.
        width: full.
        head_dim: channels that stay together; 1 in a feed-forward block.
        group: query heads that share a key-value head.
    """

    part: Part
    producers: tuple[str, ...]
    grouped: tuple[str, ...]
    consumer: str
    width: int
    head_dim: int = 1
    group: int = 1

    @property
    def unit(self) -> int:
        """Widths are multiples of it: a channel, or all heads that share a key-value head."""
        return self.head_dim * self.group

    @property
    def shape(self) -> tuple[object, ...]:
        """What must be the same in every layer; the width may differ."""
        return self.producers, self.grouped, self.consumer, self.head_dim, self.group


@dataclass(frozen=True)
class Structure:
    """The cuttable widths of a model.

    Attributes:
        transformer: its layers, as shapes alone.
        blocks: part -> one block for each layer.
        uncuttable: part -> why it cannot be cut, naming the module.
    """

    transformer: TransformerLayers
    blocks: Mapping[Part, tuple[WidthBlock, ...]]
    uncuttable: Mapping[Part, str]

    def require(self, part: Part) -> tuple[WidthBlock, ...]:
        """The blocks of a part.

        Raises:
            ModelUnsupported: it cannot be cut; says why and names the module.
        """
        if part not in self.blocks:
            where, _, reason = self.uncuttable[part].partition(": ")
            raise ModelUnsupported(
                f"the {part.replace('_', '-')} width cannot be cut: {reason}", where=where, remedy=self._alternative()
            )
        return self.blocks[part]

    def _alternative(self) -> str:
        cuttable = " and ".join(part for part in PARTS if part in self.blocks)
        return (
            f"Of this model the width of {cuttable} can be cut"
            if cuttable
            else "Adapter ranks stay elastic without [width]"
        )


@dataclass
class _Source:
    """How the output of one linear has come to where it is."""

    channelwise: bool = True
    attended: bool = False

    def through(self, *, pointwise: bool, attends: bool) -> _Source:
        return _Source(self.channelwise and pointwise, self.attended or attends)


Tags = dict[str, _Source]


@dataclass
class _Trace:
    """What one forward showed.

    Attributes:
        reads: linear -> tags of its input.
        head_dims: linear -> width of the heads that its output was split into.
    """

    reads: dict[str, Tags] = field(default_factory=dict)
    head_dims: dict[str, int] = field(default_factory=dict)


def find_structure(config: PretrainedConfig) -> Structure:
    """Find the widths of a model from its configuration alone, without weights.

    Args:
        config: of a decoder, or of an encoder for sequence classification, that transformers knows.

    Raises:
        ModelUnsupported: no layers are found, they differ from each other, or the model cannot be built as shapes
            alone, or its forward followed.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Not the meta device: there autocast, which rotary embeddings switch off, does not know where it is.
    with FakeTensorMode():
        return _find(config)


def _find(config: PretrainedConfig) -> Structure:
    with _refusing("it cannot be built as shapes alone", where=(config.architectures or [config.model_type])[0]):
        model = build_from_config(config)
    transformer = find_layers(model)
    if transformer.routed_names:
        raise ModelUnsupported(
            "the widths of a mixture of experts cannot be cut",
            where=type(model).__name__,
            remedy="Leave [width] out; ranks of the attention can be elastic",
        )
    with _refusing("its forward cannot be followed", where=type(model).__name__):
        trace = _follow(model, transformer)
    blocks: dict[Part, tuple[WidthBlock, ...]] = {}
    uncuttable: dict[Part, str] = {}
    for part in PARTS:
        try:
            found = tuple(_find_block(part, transformer, trace, layer) for layer in range(len(transformer.layers)))
            _refuse_unlike(found, transformer)
            _try_narrow(build_from_config(config), transformer, found)
            blocks[part] = found
        except ModelUnsupported as error:
            uncuttable[part] = f"{error.where}: {error.message}"
    return Structure(transformer, blocks, uncuttable)


@contextmanager
def _refusing(problem: str, *, where: str) -> Iterator[None]:
    """ModelUnsupported for whatever stops what is done here."""
    try:
        yield
    # Operators refuse shapes with errors of every kind; a bare assert says nothing.
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelUnsupported(f"{problem}: {reason}", where=where) from error


def build_from_config(config: PretrainedConfig) -> PreTrainedModel:
    """A model of the tensors that the surrounding device or mode makes, its attention spelled out in single
    operators.
    """
    import copy

    from shearling.model.plain_modules import make_plain

    model: PreTrainedModel = auto_class(config).from_config(
        copy.deepcopy(config), trust_remote_code=False, attn_implementation="eager"
    )
    make_plain(model)
    return model.eval()


def _follow(model: PreTrainedModel, transformer: TransformerLayers) -> _Trace:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    trace, tags_of = _Trace(), _TagsOfTensors()

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tags_of.pass_on(func, [*args, *(kwargs or {}).values()], result, trace)
            return result

    def read(path: str) -> Any:
        return lambda _module, inputs: trace.reads.__setitem__(path, tags_of.get(inputs[0]))

    def tag(path: str) -> Any:
        return lambda _module, _inputs, output: tags_of.set(output, {path: _Source()})

    # Every layer starts anew: what earlier layers wrote into the stream belongs to all, and to no block.
    def enter_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tags_of.set(args[0] if args else kwargs["hidden_states"], {STREAM: _Source()})

    with ExitStack() as hooks, torch.no_grad():
        for layer in transformer.layers:
            hooks.enter_context(layer.register_forward_pre_hook(enter_layer, with_kwargs=True))
        for path, linear in transformer.linears().items():
            hooks.enter_context(linear.register_forward_pre_hook(read(path)))
            hooks.enter_context(linear.register_forward_hook(tag(path)))
        with Follow():
            _forward(model)
    return trace


def _forward(model: PreTrainedModel) -> None:
    import torch

    tokens = torch.ones(1, PROBE_TOKENS, dtype=torch.long)
    options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    # With a mask: without one the model would look at values, of which there are none, for packed sequences.
    model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)


class _TagsOfTensors:
    """Tags by tensor; the tensors are kept alive, so that none takes another's identity."""

    def __init__(self) -> None:
        self._tags: dict[int, Tags] = {}
        self._alive: list[Tensor] = []

    def get(self, tensor: Tensor) -> Tags:
        return self._tags.get(id(tensor), {})

    def set(self, tensor: Tensor, tags: Tags) -> None:
        self._tags[id(tensor)] = tags
        self._alive.append(tensor)

    def pass_on(self, operator: Any, inputs: list[Any], result: Any, trace: _Trace) -> None:
        import torch

        tensors = list(_tensors(inputs))
        name = str(operator)
        # Copies keep every channel where it is, but torch does not count them among the pointwise operators.
        pointwise = torch.Tag.pointwise in operator.tags or "clone" in name or "_to_copy" in name
        attends = any(part in name for part in ATTENTION_OPERATORS)
        for output in _tensors([result]):
            merged: Tags = {}
            for tensor in tensors:
                # A pointwise operator may still broadcast [..., 1] over the channels: a gate, not a channel.
                same_width = tensor.ndim > 0 and tensor.shape[-1] == output.shape[-1] if output.ndim else False
                for path, source in self.get(tensor).items():
                    moved = source.through(pointwise=pointwise and same_width, attends=attends)
                    # By two ways, as through a gate and around it: channelwise only if both are, attended if one is.
                    known = merged.get(path, moved)
                    merged[path] = _Source(known.channelwise and moved.channelwise, known.attended or moved.attended)
            self.set(output, merged)
            _note_heads(name, tensors, output, self, trace)


def _tensors(values: list[Any]) -> Iterator[Tensor]:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(list(value))


def _note_heads(name: str, inputs: list[Tensor], output: Tensor, tags_of: _TagsOfTensors, trace: _Trace) -> None:
    """A view of [..., width] as [..., heads, head_dim] tells the width of a head."""
    if "view" not in name and "reshape" not in name:
        return
    source = inputs[0]
    tags = tags_of.get(source)
    if len(tags) == 1 and output.ndim == source.ndim + 1 and output.shape[-1] * output.shape[-2] == source.shape[-1]:
        path, how = next(iter(tags.items()))
        # The first split counts: rotary embeddings and repeated key-value heads view the same values again, otherwise.
        if how.channelwise:
            trace.head_dims.setdefault(path, output.shape[-1])


def _find_block(part: Part, transformer: TransformerLayers, trace: _Trace, layer: int) -> WidthBlock:
    linears = transformer.linears()
    prefix = transformer.module_path(layer, "")
    inside = [path for path in linears if path.startswith(prefix)]
    closing = {path: trace.reads[path] for path in inside if trace.reads.get(path) and STREAM not in trace.reads[path]}
    wanted = {
        path: tags
        for path, tags in closing.items()
        if any(source.attended for source in tags.values()) == (part == "attention")
    }
    if len(wanted) != 1:
        found = (
            f"{len(wanted)} linear layers close such a block ({', '.join(wanted)})"
            if wanted
            else "no linear layer closes such a block"
        )
        raise ModelUnsupported(found, where=prefix.removesuffix("."))
    consumer, tags = next(iter(wanted.items()))
    producers = sorted(tags, key=inside.index)
    _refuse_other_readers(consumer, producers, trace)
    names = tuple(path.removeprefix(prefix) for path in producers)
    width = linears[consumer].in_features
    if part == "feed_forward":
        odd = [path for path in producers if not tags[path].channelwise or linears[path].out_features != width]
        if odd:
            raise ModelUnsupported(
                "its output is split or mixed before it is consumed, so that no channel can be dropped alone",
                where=odd[0],
            )
        return WidthBlock(part, names, (), consumer.removeprefix(prefix), width)
    return _attention_block(names, producers, consumer, prefix, linears, trace)


def _refuse_other_readers(consumer: str, producers: list[str], trace: _Trace) -> None:
    readers = Counter(
        path for tags in trace.reads.values() for path in tags if path in producers and STREAM not in tags
    )
    shared = [path for path in producers if readers[path] != 1]
    if shared:
        raise ModelUnsupported(f"read by {readers[shared[0]]} linear layers, not by {consumer} alone", where=shared[0])


def _attention_block(
    names: tuple[str, ...],
    producers: list[str],
    consumer: str,
    prefix: str,
    linears: Mapping[str, nn.Linear],
    trace: _Trace,
) -> WidthBlock:
    width = linears[consumer].in_features
    if len(producers) != 3:
        raise ModelUnsupported("one fused projection for queries, keys and values", where=producers[0])
    heads = {trace.head_dims.get(path) for path in producers}
    if len(heads) != 1 or None in heads:
        raise ModelUnsupported("its heads are not like those of the other two projections", where=producers[-1])
    head_dim = next(size for size in heads if size is not None)
    narrow = {path: linears[path].out_features for path in producers if linears[path].out_features != width}
    if len(narrow) not in (0, 2) or len(set(narrow.values())) > 1 or any(width % size for size in narrow.values()):
        raise ModelUnsupported(
            f"key and value widths {sorted(narrow.values())} do not divide the queries' {width}",
            where=next(iter(narrow)),
        )
    group = width // next(iter(narrow.values())) if narrow else 1
    full = tuple(name for name, path in zip(names, producers, strict=True) if path not in narrow)
    grouped = tuple(name for name, path in zip(names, producers, strict=True) if path in narrow)
    return WidthBlock("attention", full, grouped, consumer.removeprefix(prefix), width, head_dim, group)


def _refuse_unlike(blocks: tuple[WidthBlock, ...], transformer: TransformerLayers) -> None:
    for layer, block in enumerate(blocks):
        if block.shape != blocks[0].shape:
            raise ModelUnsupported(
                "its block is laid out differently from layer 0", where=transformer.module_path(layer, block.consumer)
            )


def _try_narrow(model: PreTrainedModel, transformer: TransformerLayers, blocks: tuple[WidthBlock, ...]) -> None:
    """Run the model with every block at its smallest width: a size or a number of heads that the code fixes elsewhere
    shows here.
    """
    from torch import nn

    for layer, block in enumerate(blocks):
        cuts: dict[str, tuple[int | None, int | None]] = dict.fromkeys(block.producers, (None, block.unit))
        cuts |= dict.fromkeys(block.grouped, (None, block.head_dim))
        cuts[block.consumer] = (block.unit, None)
        for name, (in_features, out_features) in cuts.items():
            path = transformer.module_path(layer, name)
            old: Any = model.get_submodule(path)
            new = nn.Linear(in_features or old.in_features, out_features or old.out_features, bias=old.bias is not None)
            model.set_submodule(path, new)
    narrowed = find_layers(model)
    try:
        trace = _follow(model, narrowed)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelUnsupported(
            f"its code fixes the width: {reason}", where=transformer.module_path(0, blocks[0].consumer)
        ) from error
    for layer, block in enumerate(blocks):
        _refuse_other_heads(block, narrowed, layer, trace)


def _refuse_other_heads(block: WidthBlock, transformer: TransformerLayers, layer: int, trace: _Trace) -> None:
    """A forward that counts heads makes narrower ones of a narrower output, not fewer."""
    if block.part != "attention":
        return
    for name in (*block.producers, *block.grouped):
        path = transformer.module_path(layer, name)
        found = trace.head_dims.get(path)
        if found != block.head_dim:
            raise ModelUnsupported(
                f"its code splits a narrower output into heads of {found}, not of {block.head_dim}", where=path
            )
