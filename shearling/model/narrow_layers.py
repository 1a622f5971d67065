"""Models with layers of different widths, as Hugging Face directories.

A configuration of transformers has one width for all layers. A narrowed model adds the key `shearling_widths` to its
config.json: for each linear layer that was cut, by its name inside a layer, the sizes in every layer.

    "shearling_widths": {
      "schema": "shearling.widths/1", "layers_path": "model.layers",
      "out_features": {"mlp.gate_proj": [1152, 768], "mlp.up_proj": [1152, 768]},
      "in_features": {"mlp.down_proj": [1152, 768]}
    }

`shearling.model.checkpoint.load_model` reads it. Stock transformers refuses such a directory: the shapes do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from shearling.errors import ArtefactMismatch, DocumentInvalid
from shearling.strict_json import Document, validate_document

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

CONFIG_KEY = "shearling_widths"
WIDTHS_SCHEMA = "shearling.widths/1"

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """Active sizes of one linear layer; None leaves a side whole."""

    out_features: int | None = None
    in_features: int | None = None


class LayerWidths(Document):
    """The value of `shearling_widths`.

    Attributes:
        layers_path: where the layers are, such as `model.layers`.
        out_features: name inside a layer -> output width in every layer.
        in_features: likewise of the input.
    """

    schema_: Literal["shearling.widths/1"] = pydantic.Field("shearling.widths/1", alias="schema")
    layers_path: str
    out_features: dict[str, Sizes]
    in_features: dict[str, Sizes]

    @pydantic.model_validator(mode="after")
    def _sizes(self) -> LayerWidths:
        lists = [*self.out_features.values(), *self.in_features.values()]
        if len({len(sizes) for sizes in lists}) > 1 or any(size < 1 for sizes in lists for size in sizes):
            raise ValueError("every list needs one size of at least 1 for each layer")
        return self

    def cuts(self) -> dict[str, Cut]:
        """Absolute path -> sizes of every linear layer that was cut."""
        cuts: dict[str, Cut] = {}
        for name in dict.fromkeys((*self.out_features, *self.in_features)):
            outs, ins = self.out_features.get(name), self.in_features.get(name)
            for layer in range(len(outs or ins or ())):
                cuts[f"{self.layers_path}.{layer}.{name}"] = Cut(
                    outs[layer] if outs else None, ins[layer] if ins else None
                )
        return cuts


def read_layer_widths(config: PretrainedConfig, *, where: Path | None = None) -> LayerWidths | None:
    """The extension of a configuration, validated; None where there is none.

    Raises:
        DocumentInvalid: it is malformed.
    """
    value = getattr(config, CONFIG_KEY, None)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise DocumentInvalid(
            f"expected an object, found {type(value).__name__}", where=f"{where or 'config.json'}: {CONFIG_KEY}"
        )
    return validate_document(value, LayerWidths, schema=WIDTHS_SCHEMA, where=f"{where or 'config.json'}: {CONFIG_KEY}")


def narrow_class(model_class: type[PreTrainedModel], widths: LayerWidths) -> type[PreTrainedModel]:
    """A model class whose linear layers have the widths of every layer; saved, it names the stock class.

    Args:
        model_class: of transformers.
        widths: read from the configuration that the class is to be made with.
    """

    def init(self: Any, config: PretrainedConfig, *args: Any, **options: Any) -> None:
        model_class.__init__(self, config, *args, **options)
        narrow_linears(self, widths.cuts())

    return type(model_class.__name__, (model_class,), {"__init__": init, "__module__": model_class.__module__})


def narrow_linears(model: nn.Module, cuts: Mapping[str, Cut]) -> None:
    """Replace linear layers by smaller ones, whose weights are yet to be loaded.

    Raises:
        ArtefactMismatch: a path is not a linear layer, or a size exceeds the full one.
    """
    from torch import nn

    modules = dict(model.named_modules())
    for path, cut in cuts.items():
        old = modules.get(path)
        if not isinstance(old, nn.Linear):
            raise ArtefactMismatch(f"{CONFIG_KEY} names a module that is not a linear layer of this model", where=path)
        out_features, in_features = cut.out_features or old.out_features, cut.in_features or old.in_features
        if out_features > old.out_features or in_features > old.in_features:
            raise ArtefactMismatch(
                f"[{out_features}, {in_features}] exceeds the full size [{old.out_features}, {old.in_features}]",
                where=path,
            )
        weight = old.weight
        narrow = nn.Linear(
            in_features, out_features, bias=old.bias is not None, device=weight.device, dtype=weight.dtype
        )
        model.set_submodule(path, narrow)
