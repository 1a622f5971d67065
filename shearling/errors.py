"""What can go wrong, as a tree whose branches are the exit codes.

    ShearlingError                  5   a defect of ours, or of a member of a table, when raised bare
    ├── CheckFailed                 1   the work was done, and the result is not good enough
    │   ├── ParityFailed                 an exported model disagrees with the trained one
    │   ├── SparsityLost                 a pruned weight is not zero any more
    │   ├── NoCandidate                  no sub-network meets the constraint
    │   └── TrainingDiverged             the loss is NaN or infinite
    ├── UsageError                  2   the request is wrong
    │   ├── RecipeInvalid                a recipe breaks its schema
    │   ├── OutputExists                 the destination is taken and --force was not given
    │   └── MergeRefused                 this merge would silently change the model
    ├── ArtefactError               3   a file or directory that was given to us is not usable
    │   ├── ArtefactMissing              it is not there
    │   ├── DocumentInvalid              JSON that is malformed or breaks its schema
    │   ├── ArtefactCorrupt              content differs from the manifest
    │   ├── ArtefactMismatch             intact, but made for another base, mask or search space
    │   ├── CheckpointUnsafe             pickles, links, or keys that name code
    │   ├── ModelUnsupported             a structure or a feature we cannot handle
    │   ├── ShapeMismatch                two tensors that belong together disagree
    │   └── NonFiniteWeights             NaN or infinity in a tensor
    └── EnvironmentFault            4   this machine or installation cannot do it
        ├── PackageMissing               an optional package is not installed
        ├── CompilerMissing              the sparse kernels have to be built, and nothing here can
        ├── PackageShadowed              a stage is imported from another project
        ├── ExportUnavailable            installed versions cannot export this architecture
        ├── DeviceUnavailable            a device or execution provider is absent or was replaced
        ├── RuntimeCrashed               a runtime ended the process that it ran in
        ├── ResourceExhausted            not enough disk or memory
        └── OutputLocked                 another process is writing the same artefact

Every message says what happened (with the values), where, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class ShearlingError(Exception):
    """Base of every error that Shearling raises on purpose.

    Args:
        message: what happened, with the values involved.
        where: the file, tensor or field concerned.
        remedy: what the reader can do about it.
    """

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        if not self.remedy:
            return head
        return f"{head} {self.remedy}" if head.endswith(("?", "!")) else f"{head}. {self.remedy}"


class CheckFailed(ShearlingError):
    """The work was done, and the result does not pass.

    Args:
        message: what happened, with the values involved.
        where: the file, tensor or field concerned.
        remedy: what the reader can do about it.
        result: as of a result that passes; what `--json` prints beside the error.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | Path | None = None,
        remedy: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.result = dict(result or {})


class ParityFailed(CheckFailed):
    """An exported model disagrees with its reference beyond the gate."""


class SparsityLost(CheckFailed):
    """A weight that was pruned is nonzero in a result."""


class NoCandidate(CheckFailed):
    """No evaluated sub-network meets the constraint."""


class TrainingDiverged(CheckFailed):
    """The training loss became NaN or infinite."""


class UsageError(ShearlingError):
    """The request contradicts itself, the interface, or what exists already."""

    exit_code = 2


class RecipeInvalid(UsageError):
    """A recipe is not TOML or breaks the published schema."""


class OutputExists(UsageError):
    """The destination exists and replacing it was not asked for."""


class MergeRefused(UsageError):
    """The merge mode does not fit how the adapter was trained."""


class ArtefactError(ShearlingError):
    """A file or directory that was handed to us cannot be used."""

    exit_code = 3


class ArtefactMissing(ArtefactError):
    """The file or directory does not exist."""


class DocumentInvalid(ArtefactError):
    """A JSON document is malformed, hostile, or breaks its schema."""


class ArtefactCorrupt(ArtefactError):
    """Content differs from what the manifest promises."""


class ArtefactMismatch(ArtefactError):
    """Intact, but made for another base, mask or search space."""


class CheckpointUnsafe(ArtefactError):
    """Loading it could run code or read outside its directory."""


class ModelUnsupported(ArtefactError):
    """The structure of the model, or a feature of the adapter, is not supported."""


class ShapeMismatch(ArtefactError):
    """Two tensors that belong together have shapes that do not fit."""


class NonFiniteWeights(ArtefactError):
    """A tensor holds NaN or infinity."""


class EnvironmentFault(ShearlingError):
    """This machine or this installation cannot do what was asked."""

    exit_code = 4


class PackageMissing(EnvironmentFault):
    """An optional package is needed and not installed."""


class CompilerMissing(EnvironmentFault):
    """A C++ compiler is needed and not installed, or cannot compile the sparse kernels."""


class PackageShadowed(EnvironmentFault):
    """A stage package would be imported from somewhere else than this project."""


class ExportUnavailable(EnvironmentFault):
    """The installed versions cannot export this architecture."""


class DeviceUnavailable(EnvironmentFault):
    """A device or execution provider is absent, or the runtime replaced it silently."""


class RuntimeCrashed(EnvironmentFault):
    """A runtime, or something from outside, ended the process that it ran in."""


class ResourceExhausted(EnvironmentFault):
    """Not enough disk or memory."""


class OutputLocked(EnvironmentFault):
    """Another process is writing the same artefact."""
