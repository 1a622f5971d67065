"""What a model is for: a language model continues text, a classifier reads it whole and names its class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shearling.strict_json import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Parameter
    from transformers import PretrainedConfig, PreTrainedModel

Head = Literal["language_model", "classifier"]
CLASSIFIER_SUFFIX = "ForSequenceClassification"
NEW_WEIGHTS = "shearling_new_weights"
"""Key in the config.json of a classifier: names of the parameters of its body that its checkpoint did not have."""


def names_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json says that the model classifies."""
    return any(str(name).endswith(CLASSIFIER_SUFFIX) for name in config.get("architectures") or [])


def head_of(config: Mapping[str, Any]) -> Head:
    """What a model is for, by the content of its config.json."""
    return "classifier" if names_classifier(config) else "language_model"


def read_head(directory: Path) -> Head:
    """What the model of a checkpoint directory is for, by its config.json.

    Raises:
        ArtefactMissing, DocumentInvalid: there is none, or it is malformed.
    """
    return head_of(read_json(directory / "config.json"))


def classifies(directory: Path) -> bool:
    """Whether the model of a checkpoint directory classifies; see `read_head`."""
    return read_head(directory) == "classifier"


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the model of this configuration classifies."""
    return names_classifier({"architectures": config.architectures})


def auto_class(config: PretrainedConfig, head: Head | None = None) -> Any:
    """What loads this configuration in transformers, with another head than its own where one is given."""
    import transformers

    classifier = is_classifier(config) if head is None else head == "classifier"
    return transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM


def head_parameters(model: PreTrainedModel) -> dict[str, Parameter]:
    """The parameters of a classifier that its body was not pretrained with: its head, and of the body what the
    configuration names as new; none of a language model.
    """
    if not is_classifier(model.config):
        return {}
    new = getattr(model.config, NEW_WEIGHTS, None) or ()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name in new or not name.startswith(f"{model.base_model_prefix}.")
    }
