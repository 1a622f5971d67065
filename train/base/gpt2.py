"""GPT-2 imported as GPTBigCode, an architecture of transformers that computes the same with `torch.nn.Linear`.

transformers keeps the matrices of GPT-2 transposed, in a `Conv1D` that no pruning method, mask, adapter or kernel looks
into. GPTBigCode is GPT-2 with linear layers; with as many keys and values as queries, it reads them head by head from
the product that GPT-2 splits into all queries, all keys and all values. So an import transposes every matrix and puts
the rows of that one in another order, and whatever comes behind it meets a model like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.console import log
from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.hard_link import link_or_copy
from shearling.model.checkpoint_safety import CONFIG, INDEX, check_shards, weight_files
from shearling.model.weight_shards import StoredTensor, StoredWeights, writing_weights
from shearling.strict_json import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

GPT2, BIGCODE = "gpt2", "gpt_bigcode"
ARCHITECTURES = {
    "GPT2LMHeadModel": "GPTBigCodeForCausalLM",
    "GPT2ForSequenceClassification": "GPTBigCodeForSequenceClassification",
}
BODY = "transformer."
"""What transformers calls the body of either; checkpoints of GPT-2 leave it out."""
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")
"""What older versions stored with each layer and no version reads."""
QKV = ".attn.c_attn."
TRANSPOSED = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
SCALED_BY_LAYER = "scale_attn_by_inverse_layer_idx"
NO_EQUAL = ("reorder_and_upcast_attn", SCALED_BY_LAYER)
"""Keys that GPTBigCode does not have: the first one chooses in which precision attention is computed, what the second
one says goes into the weights."""


def becomes_another(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json is imported as another architecture."""
    return config.get("model_type") == GPT2


def imported_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json as an import stores it: that of GPT-2 becomes GPTBigCode's, any other stays.

    Args:
        config: the content.

    Raises:
        ModelUnsupported: it is a GPT-2 that attends to an encoder.
    """
    if not becomes_another(config):
        return dict(config)
    if config.get("add_cross_attention"):
        raise ModelUnsupported("a GPT-2 that attends to an encoder (add_cross_attention)", where=CONFIG)
    kept = {key: value for key, value in config.items() if key not in NO_EQUAL}
    activation = config.get("activation_function", "gelu_new")
    return kept | {
        "model_type": BIGCODE,
        "architectures": [ARCHITECTURES[name] for name in config.get("architectures") or [] if name in ARCHITECTURES],
        "multi_query": False,
        # The same formula; runtimes have one operation for it by its other name.
        "activation_function": "gelu_pytorch_tanh" if activation == "gelu_new" else activation,
    }


def imported_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """What an import stores of a GPT-2's tensors, by name."""
    return {
        _name(name): StoredTensor(tensor.dtype, tensor.shape[::-1]) if name.endswith(TRANSPOSED) else tensor
        for name, tensor in tensors.items()
        if not name.endswith(CAUSAL_MASKS)
    }


def imported_directory(source: Path, destination: Path) -> Path:
    """A model directory as it can be imported: GPT-2 is written anew as GPTBigCode, tensor by tensor.

    Args:
        source: a cleaned Hugging Face directory.
        destination: of the new one; does not exist.

    Returns:
        `source` where it is no GPT-2, else `destination`.

    Raises:
        ModelUnsupported: see `imported_configuration`.
        ArtefactCorrupt: the weights are damaged, or of other sizes than the configuration says.
    """
    config = read_json(source / CONFIG)
    if not becomes_another(config):
        return source
    check_shards(source)
    destination.mkdir()
    write_json(destination / CONFIG, imported_configuration(config))
    shards = weight_files(source)
    for path in source.iterdir():
        if path.is_file() and path not in shards and path.name not in (CONFIG, INDEX):
            link_or_copy(path, destination / path.name)
    weights, full = StoredWeights(source), _full_configuration(config)
    with writing_weights(destination, imported_tensors(weights.tensors)) as file:
        for name in weights.tensors:
            if not name.endswith(CAUSAL_MASKS):
                file.write(_name(name), _converted(name, weights.read(name), full, where=source))
    _say()
    return destination


def imported_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same in memory, of a whole language model, such as one from a GGUF file.

    Args:
        model: whose weights may become those of the result.

    Returns:
        `model` where it is no GPT-2; else in eval mode.
    """
    if model.config.model_type != GPT2:
        return model
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        result: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
            imported_config(model.config), dtype=model.dtype, trust_remote_code=False
        )
    weights = {
        _name(name): _converted(name, tensor, model.config, where=Path(CONFIG))
        for name, tensor in model.state_dict().items()
    }
    result.load_state_dict(weights, assign=True)
    result.tie_weights()
    result.generation_config = model.generation_config
    _say()
    return result.eval()


def imported_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """`imported_configuration` of a configuration that has been read."""
    from transformers import AutoConfig

    if config.model_type != GPT2:
        return config
    content = imported_configuration(config.to_dict())
    return AutoConfig.for_model(content.pop("model_type"), **content)


def _converted(name: str, tensor: Tensor, config: PreTrainedConfig, *, where: Path) -> Tensor:
    """A tensor of GPT-2 as GPTBigCode has it.

    Args:
        name: in the checkpoint of GPT-2.
        tensor: a matrix is [in, out].
        config: of GPT-2.
        where: its checkpoint, for errors.

    Returns:
        A matrix as [out, in], all other tensors in their shape; the queries, keys and values head by head.
    """
    import torch

    turned = tensor.t() if name.endswith(TRANSPOSED) else tensor
    if QKV not in name:
        return turned
    heads: int = config.num_attention_heads
    if len(turned) % (3 * heads):
        raise ArtefactCorrupt(
            f"{len(turned)} queries, keys and values are not those of {heads} heads",
            where=f"{where}: {name}",
            remedy="Weights and config.json do not belong together",
        )
    queries, keys, values = (part.unflatten(0, (heads, -1)) for part in turned.chunk(3))
    if getattr(config, SCALED_BY_LAYER):
        queries = queries / (int(name.removeprefix(BODY).split(".")[1]) + 1)
    return torch.cat([queries, keys, values], dim=1).flatten(0, 1)


def _name(name: str) -> str:
    """A tensor's name in the model: heads are beside the body."""
    return name if name.startswith((BODY, "lm_head.", "score.")) else f"{BODY}{name}"


def _full_configuration(config: Mapping[str, Any]) -> PreTrainedConfig:
    """With what a config.json of GPT-2 leaves to its defaults."""
    from transformers import AutoConfig

    content = dict(config)
    return AutoConfig.for_model(content.pop("model_type"), **content)


def _say() -> None:
    log.print("GPT-2 becomes GPTBigCode, which computes the same with torch.nn.Linear")
