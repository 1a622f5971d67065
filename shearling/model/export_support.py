"""Whether the installed versions can export an architecture, asked before hours of training rather than after.

optimum-intel knows for every architecture the oldest and newest transformers that its export works with, and refuses
only when the export begins. The limits stand in its configuration classes; this reads them there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import warnings
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from shearling.errors import ExportUnavailable, ModelUnsupported, PackageMissing
from shearling.model.head import Head

EXPORT_TASK = "text-generation-with-past"
TASKS: dict[Head, str] = {"language_model": EXPORT_TASK, "classifier": "text-classification"}


@dataclass(frozen=True)
class ExportLimits:
    """The transformers versions that the export of one architecture works with.

    Attributes:
        minimum: the oldest; None where there is no bound.
        maximum: the newest, inclusive; None where there is no bound.
    """

    minimum: str | None
    maximum: str | None

    def allow(self, version: str) -> bool:
        """Whether `version` lies within; compared as optimum-intel compares, so 5.0 allows 5.0.0 and not 5.0.1."""
        installed = Version(version)
        if self.minimum is not None and installed < Version(self.minimum):
            return False
        return self.maximum is None or installed <= Version(self.maximum)

    def specifier(self) -> str:
        """The same as a requirement for pip: `transformers>=4.57,<=5.0`."""
        bounds = ([f">={self.minimum}"] if self.minimum else []) + ([f"<={self.maximum}"] if self.maximum else [])
        return f"transformers{','.join(bounds)}"


def check_exportable(model_type: str, *, head: Head = "language_model") -> None:
    """Check that the installed transformers and optimum-intel can export this architecture.

    Args:
        model_type: of config.json, such as `llama`.
        head: what the model is for.

    Raises:
        ExportUnavailable: optimum-intel does not know the architecture, or only with other versions of transformers.
        PackageMissing: optimum-intel is not installed.
    """
    limits = export_limits(model_type, head=head)
    installed = importlib.metadata.version("transformers")
    if not limits.allow(installed):
        raise ExportUnavailable(
            f"the export needs {limits.specifier()}, installed is {installed}",
            where=f"model type '{model_type}'",
            remedy=f"Run: pip install '{limits.specifier()}'",
        )


def export_limits(model_type: str, *, head: Head = "language_model") -> ExportLimits:
    """The limits that optimum-intel sets for an architecture.

    Raises:
        ExportUnavailable: it does not export this architecture with this head.
        ModelUnsupported: it does so with the other head.
        PackageMissing: optimum-intel is not installed.
    """
    configurations = _configurations(head)
    if model_type not in configurations:
        if head == "language_model" and model_type in _configurations("classifier"):
            raise ModelUnsupported(
                "this architecture continues no text: optimum-intel exports it as a classifier alone",
                where=f"model type '{model_type}'",
                remedy='To classify with it, give head = "classifier" in [model]',
            )
        raise ExportUnavailable(
            f"optimum-intel {importlib.metadata.version('optimum-intel')} does not export this "
            f"architecture as a {head.replace('_', ' ')}",
            where=f"model type '{model_type}'",
            remedy=f"Known are: {', '.join(sorted(configurations))}",
        )
    configuration = _configuration_class(configurations[model_type])
    return ExportLimits(
        minimum=_text(getattr(configuration, "MIN_TRANSFORMERS_VERSION", None)),
        maximum=_text(getattr(configuration, "MAX_TRANSFORMERS_VERSION", None)),
    )


def export_configuration(model_type: str) -> Any:
    """The configuration class that optimum-intel exports a decoder architecture with; see `check_exportable` first."""
    return _configuration_class(_configurations("language_model")[model_type])


def _configuration_class(constructor: Any) -> Any:
    # The registry holds functools.partial(ConfigurationClass, ...).
    return getattr(constructor, "func", constructor)


def _configurations(head: Head) -> dict[str, Any]:
    try:
        # The import announces what other libraries lack; none of it concerns the registry.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import optimum.exporters.openvino.model_configs  # noqa: F401  (registers the architectures)
            from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise PackageMissing(
            f"optimum-intel does not import: {error}", remedy="Run: pip install 'optimum-intel~=2.2.0'"
        ) from error
    registry: dict[str, dict[str, dict[str, Any]]] = TasksManager._SUPPORTED_MODEL_TYPE
    tasks = {name: exporters.get("openvino", {}) for name, exporters in registry.items()}
    return {name: found[TASKS[head]] for name, found in tasks.items() if TASKS[head] in found}


def _text(version: Any) -> str | None:
    return None if version is None else str(version)
