"""What an export will do, decided before any work: inputs verified, the merge mode, the formats and their writers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.estimate import FIXED_POSITIONS, estimate_export, keep_pages, parts_to_run, read_sizes
from export.formats.export_format import FLOAT32, FormatWriter, PlannedFormat, Storage
from export.quantization.settings import PlannedQuantization, plan_quantization
from export.request import OWN_FORMAT, ExportRequest
from export.verification.reading import held_back_positions
from shearling.artefact import Artefact, check_destination, open_artefact
from shearling.console import log
from shearling.elastic.mask import MASK_FILE
from shearling.elastic.merge_rule import MergeMode, resolve_merge
from shearling.elastic.subnet import OpenSubnet, open_subnet, read_subnet
from shearling.elastic.subnet_mixture import MixtureReference
from shearling.errors import ArtefactMismatch, UsageError
from shearling.evaluation.task import has_rows, rows_file
from shearling.model.checkpoint_safety import CONFIG
from shearling.model.head import Head, head_of
from shearling.registry.export_formats import EXPORT_FORMATS, ExportFormat
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.resources import Estimate, available_memory_bytes, in_words, require
from shearling.run import Run
from shearling.strict_json import read_json


@dataclass(frozen=True)
class PlannedMerge:
    """The sub-network that is merged, and how."""

    opened: OpenSubnet
    mode: MergeMode

    @property
    def exact(self) -> bool:
        """Whether the merged model computes what was trained."""
        return self.mode in self.opened.subnet.merge.allowed

    @property
    def grid_bits(self) -> int | None:
        """Bits of the integers that the merged weights are; None where they are no integers."""
        grid = self.opened.space.adapter.grid
        return None if grid is None or not self.exact or self.mode == "dense" else grid.bits

    @property
    def in_float32(self) -> bool:
        """Whether the weights, on a grid or rounded as a layer chose, are what their own type could not express."""
        return self.opened.space.adapter.grid is not None or bool(self.opened.layer_bits)

    @property
    def mixture(self) -> MixtureReference | None:
        """What layers chose, where they had a choice of zeros or formats."""
        return self.opened.subnet.mixture

    @property
    def narrowed(self) -> int:
        """Linear layers whose output is narrower than in the frozen model."""
        space = self.opened.space
        full = space.widths(space.maximal())
        return sum(width < full[path] for path, width in self.opened.subnet.widths.items())

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` says of it."""
        return {
            "subnet": self.opened.subnet.id,
            "adapter": str(self.opened.adapter.path),
            "merge": self.mode,
            "exact": self.exact,
            "grid_bits": self.grid_bits,
            "modules": len(self.opened.subnet.ranks),
            "mode": self.opened.subnet.mode,
            "narrowed": self.narrowed,
            **({} if self.mixture is None else {"layers": [layer.model_dump() for layer in self.mixture.layers]}),
        }


@dataclass(frozen=True)
class ExportPlan:
    """A whole export, decided.

    Attributes:
        source: the document or the directory that the user named.
        frozen: the model; verified.
        merge: None where the model is exported as it is.
        head: what the model is for.
        quantization: None where no weight is rounded on calibration text.
        estimate: of memory and disk.
        keeps_pages: whether mapped weights stay in memory from one reader to the next.
    """

    request: ExportRequest
    source: Path
    frozen: Artefact
    merge: PlannedMerge | None
    head: Head
    formats: tuple[PlannedFormat, ...]
    quantization: PlannedQuantization | None
    estimate: Estimate
    keeps_pages: bool

    @property
    def task(self) -> Path:
        """The run's `task` artefact, which need not exist."""
        return Run(self.frozen.path.parent).task

    @property
    def runs_integers(self) -> bool:
        """Whether a format that rounds weights to integers will be run whole, and asked held-back rows."""
        whole = any(item.storage.weight_format.integers and item.parts == 1 for item in self.formats)
        return whole and self.request.verify != "off"

    @property
    def parents(self) -> dict[str, Artefact]:
        """The artefacts that the export is made from, by role."""
        adapter = {} if self.merge is None else {"super_adapter": self.merge.opened.adapter}
        return {self.frozen.manifest.kind: self.frozen, **adapter}

    @property
    def model_id(self) -> str:
        """Name of the frozen model."""
        return str(self.frozen.manifest.details["model_id"])

    def describe(self) -> dict[str, Any]:
        """The answer of `--dry-run`."""
        facts = {
            "base": str(self.frozen.path),
            "merge": "none",
            "exact": True,
            "output": str(self.request.output),
            "formats": [item.entry.name for item in self.formats],
            "weight_format": self.request.weight_format,
            **({} if self.quantization is None else self.quantization.describe()),
            "sparse_kernels": list(self.request.sparse_kernels),
            "memory": in_words(self.estimate.memory_bytes),
            "disk": in_words(self.estimate.disk_bytes),
            "measured_by_layers": [item.entry.name for item in self.formats if item.parts > 1],
        }
        return facts if self.merge is None else {**facts, **self.merge.describe()}


def plan_subnet(path: Path, request: ExportRequest) -> ExportPlan:
    """Decide the export of a sub-network.

    Args:
        path: a `best.json`.
        request: what to write, and where.

    Raises:
        ArtefactError: the document or anything that it names is missing, corrupt or mismatched.
        MergeRefused: the merge would silently change the model.
        OutputExists: the destination is taken.
        UsageError: options that contradict each other.
        EnvironmentFault: a format cannot be written here.
    """
    if request.weight_format == OWN_FORMAT:
        # Options that contradict each other are refused before a document that is not there.
        mixture = read_subnet(path).mixture if path.is_file() else None
        request = replace(request, weight_format=_own_format(mixture))
    _check_request(request)
    opened = open_subnet(path)
    sparse = opened.frozen.manifest.kind == "sparse"
    mode = resolve_merge(opened.subnet.merge, request.merge, allow_approximate=request.allow_approximate, sparse=sparse)
    model_type, head = _read_kind(opened.frozen)
    wanted = [EXPORT_FORMATS.get(name) for name in request.formats]
    rounded = opened.space.adapter.grid is not None
    if opened.space.width_groups or head == "classifier" or opened.mixture is not None or rounded:
        wanted = _without_frozen(wanted, mode)
    formats = _plan_formats(wanted, request, model_type, head, separate=mode == "separate")
    log.print(f"{path}: {opened.subnet.id}, merge mode {mode}")
    merge = PlannedMerge(opened, mode)
    if opened.layer_bits:
        quantization = None
        _check_layer_formats(request, merge)
    elif merge.grid_bits is None:
        quantization = _plan_quantization(request, opened.frozen, formats, head)
        _check_conversion(quantization, model_type, head, separate=mode == "separate")
    else:
        quantization = None
        _check_grid(request, merge.grid_bits)
    return _fitting(request, path, opened.frozen, merge, head, formats, quantization)


def plan_frozen(directory: Path, request: ExportRequest) -> ExportPlan:
    """Decide the export of a `base` or `sparse` artefact as it is.

    Raises:
        ArtefactError: it is missing, corrupt, or neither of the two.
        UsageError: a merge was asked for, or nothing but an adapter.
        OutputExists, EnvironmentFault: see `plan_subnet`.
    """
    if request.merge is not None:
        raise UsageError("there is no adapter to merge", where="--merge", remedy="Leave the option out")
    if request.allow_approximate:
        raise UsageError("no merge is approximate here", where="--allow-approximate", remedy="Leave the option out")
    if request.weight_format == OWN_FORMAT:
        request = replace(request, weight_format=FLOAT32.weight_format.name)
    _check_request(request)
    frozen = open_artefact(directory, kind="sparse" if (directory / MASK_FILE).is_file() else "base")
    model_type, head = _read_kind(frozen)
    asked = [EXPORT_FORMATS.get(name) for name in request.formats]
    wanted = [entry for entry in asked if not entry.needs_adapter]
    if len(wanted) < len(asked):
        log.print(f"left out: {', '.join(entry.name for entry in asked if entry.needs_adapter)}: there is no adapter")
        request = replace(request, formats=tuple(entry.name for entry in wanted))
    formats = _plan_formats(wanted, request, model_type, head, separate=False)
    quantization = _plan_quantization(request, frozen, formats, head)
    _check_conversion(quantization, model_type, head, separate=False)
    return _fitting(request, directory, frozen, None, head, formats, quantization)


def _fitting(
    request: ExportRequest,
    source: Path,
    frozen: Artefact,
    merge: PlannedMerge | None,
    head: Head,
    formats: tuple[PlannedFormat, ...],
    quantization: PlannedQuantization | None,
) -> ExportPlan:
    """The plan, if this machine can carry it out.

    Raises:
        OutputExists: the destination holds what the export is made from.
        UsageError: a layer does not have the group that was asked for.
        ModelUnsupported: a format has no place for the model.
        ArtefactError: rows that weights are rounded or judged on are damaged, or of another task than the adapter's.
        ResourceExhausted: it has too little memory or disk.
    """
    opened = () if merge is None else (merge.opened.adapter, merge.opened.variants)
    inputs = [source, *(artefact.path for artefact in (frozen, *opened) if artefact is not None)]
    check_destination(request.output, kind="export", force=request.force, inputs=inputs)
    config = read_json(frozen.path / CONFIG)
    for item in formats:
        item.writer.check_config(config, where=frozen.path / CONFIG)
    integers = any(item.storage.weight_format.integers for item in formats)
    judged = integers and request.verify != "off"
    _verify_rows(Run(frozen.path.parent), merge, judged=judged, calibrated=quantization)
    if quantization is not None and not quantization.narrower:
        _check_group_size(frozen, merge, quantization)
    sizes = read_sizes(frozen.path, rows=int(config.get("vocab_size") or 0))
    positions = FIXED_POSITIONS
    if head == "language_model" and judged:
        positions += held_back_positions(Run(frozen.path.parent).task)
    room_bytes = available_memory_bytes()
    rounds = merge is not None and merge.in_float32
    formats = tuple(
        replace(item, parts=parts_to_run(sizes, item, positions=positions, room_bytes=room_bytes, rounds=rounds))
        for item in formats
    )
    merges = merge is not None and merge.mode != "separate"
    estimate = estimate_export(
        sizes,
        formats,
        quantization,
        merges=merges,
        rounds=rounds,
        positions=0 if request.verify == "off" else positions,
    )
    if quantization is None:
        remedy = "Give fewer --formats, or int4, which is held while it is written; or use a larger machine"
    else:
        remedy = "Use --quantization fast, without what is for int4 on a text, or a larger machine"
    require(estimate, request.output, remedy=remedy)
    ample = None
    if request.verify != "off":
        # Without gates, all weights are read once or twice.
        ample = keep_pages(estimate, sizes, merges=merges, rounds=rounds, room_bytes=room_bytes)
    estimate = ample or estimate
    log.print(f"about {estimate}")
    return ExportPlan(
        request, source, frozen, merge, head, formats, quantization, estimate, keeps_pages=ample is not None
    )


def _verify_rows(run: Run, merge: PlannedMerge | None, *, judged: bool, calibrated: PlannedQuantization | None) -> None:
    """Verify those rows of the run's task that will be read, where there is a task."""
    # Where there are none the fixed text stands.
    names = [rows_file(Path(), "validation").name] if judged and has_rows(run.task, "validation") else []
    if calibrated is not None and calibrated.text.reads_task:
        names.append(rows_file(Path(), "train").name)
    if not names or not run.task.exists():
        return
    task = open_artefact(run.task, kind="task", only=names)
    # The validation rows of another task may be what the adapter has learnt.
    if merge is not None and merge.opened.adapter.manifest.parents.get("task") != task.sha256:
        raise ArtefactMismatch(
            "this task is not the one that the adapter was trained on",
            where=task.path,
            remedy="Put that one back; without any task, fixed text stands for its rows",
        )


def _check_group_size(frozen: Artefact, merge: PlannedMerge | None, quantization: PlannedQuantization) -> None:
    # Imported here: it takes seconds, and hardly anybody asks for a group.
    from export.quantization.quantize import check_group_size

    cuts = {} if merge is None else merge.opened.space.cuts(merge.opened.subnet.choice)
    narrowed = {path: cut.in_features for path, cut in cuts.items() if cut.in_features is not None}
    check_group_size(frozen.path, quantization, narrowed=narrowed)


def _own_format(mixture: MixtureReference | None) -> str:
    """What a sub-network is stored in where nobody says: integers where its layers chose them; those of four bits hold
    layers of eight as well.
    """
    chosen = set() if mixture is None else {layer.weight_format for layer in mixture.layers} - {None}
    return "int4" if "int4" in chosen else str(chosen.pop()) if chosen else FLOAT32.weight_format.name


def _check_layer_formats(request: ExportRequest, merge: PlannedMerge) -> None:
    """Refuse what would round again what layers chose."""
    own = _own_format(merge.mixture)
    if merge.mode == "separate":
        raise UsageError(
            "the merged weights were chosen in integers, and ranks that stay apart have none",
            where="--merge",
            remedy="Leave the option out",
        )
    given = request.quantization.asked_for
    if given:
        raise UsageError(
            "the layers of this sub-network have the formats that its search measured, and need no rounding",
            where=next(iter(given)),
            remedy="Leave the option out",
        )
    if request.weight_format not in (own, FLOAT32.weight_format.name):
        raise UsageError(
            f"the layers of this sub-network were chosen in their own formats, {request.weight_format} would round "
            "them again",
            where="--weight-format",
            remedy=f"Leave the option out, or use {own} or fp32",
        )


def _check_grid(request: ExportRequest, bits: int) -> None:
    """Refuse what would round again what was trained on integers."""
    given = request.quantization.asked_for
    if given:
        raise UsageError(
            f"the weights were trained as integers of {bits} bits, and need no rounding",
            where=next(iter(given)),
            remedy="Leave the option out",
        )
    if request.weight_format.startswith("int") and request.weight_format != integers_of(bits):
        raise UsageError(
            f"the weights were trained as integers of {bits} bits, {request.weight_format} would round them again",
            where="--weight-format",
            remedy=f"Use {integers_of(bits)}, or fp32",
        )


def integers_of(bits: int) -> str:
    """The number format that stores integers of so many bits."""
    return f"int{bits}"


def _plan_quantization(
    request: ExportRequest, frozen: Artefact, formats: tuple[PlannedFormat, ...], head: Head
) -> PlannedQuantization | None:
    task = Run(frozen.path.parent).task
    planned = plan_quantization(request.quantization, weight_format=request.weight_format, task=task, head=head)
    if any(item.entry.takes_weight_format for item in formats):
        return planned
    given = request.quantization.asked_for
    if given:
        raise UsageError(
            f"nothing would be rounded: {' and '.join(item.entry.name for item in formats)} keeps the type of the base",
            where=next(iter(given)),
            remedy="Add openvino or onnx to --formats, or leave the option out",
        )
    return None


def _check_conversion(quantization: PlannedQuantization | None, model_type: str, head: Head, *, separate: bool) -> None:
    """Refuse what NNCF's algorithms, which run on OpenVINO's form of a model, have no place for."""
    if quantization is None or not quantization.algorithms:
        return
    if separate and "awq" in quantization.algorithms:
        raise UsageError(
            "AWQ scales the rows of one matrix for the next, and ranks that stay apart would not be scaled",
            where="--awq",
            remedy="Leave the option out, or use another --merge",
        )
    writer: FormatWriter = EXPORT_FORMATS.get("openvino").load_for(head)()
    writer.check(model_type, FLOAT32)


def _check_request(request: ExportRequest) -> None:
    """Refuse what the options alone show to be impossible."""
    check_destination(request.output, kind="export", force=request.force)
    number_format = NUMBER_FORMATS.get(request.weight_format, where="--weight-format")
    for entry in (EXPORT_FORMATS.get(name, where="--formats") for name in request.formats):
        if entry.takes_weight_format:
            number_format.load_for(entry.name)
    packable = [item.name for item in NUMBER_FORMATS if item.packable]
    for entry in (EXPORT_FORMATS.get(name, where="--sparse-kernel") for name in request.sparse_kernels):
        if not entry.has_sparse_kernel:
            able = ", ".join(item.name for item in EXPORT_FORMATS if item.has_sparse_kernel)
            raise UsageError(
                f"there is no sparse kernel for {entry.name}", where="--sparse-kernel", remedy=f"There is for: {able}"
            )
        if not number_format.packable or entry.name not in request.formats:
            raise UsageError(
                f"the sparse kernel reads {', '.join(packable)} in {entry.name}; asked for are "
                f"{number_format.name} and {', '.join(request.formats)}",
                where="--sparse-kernel",
                remedy=f"Give --weight-format int8 and leave {entry.name} in --formats",
            )


def _read_kind(frozen: Artefact) -> tuple[str, Head]:
    """The model's type, such as `llama`, and what it is for: read once, and a value from here on."""
    config = read_json(frozen.path / CONFIG)
    return str(config.get("model_type")), head_of(config)


def _without_frozen(wanted: list[ExportFormat], mode: MergeMode) -> list[ExportFormat]:
    """Leave out what a narrowed model, a classifier, a mixture of variants or a model on a grid has no use for: the
    adapter, whose base is the frozen model at full width, without a trained head, with its own zeros and not rounded,
    and the model beside which it would be kept.
    """
    dropped = [
        entry for entry in wanted if entry.needs_adapter or (mode == "separate" and entry.frozen_directory is not None)
    ]
    if dropped:
        log.print(
            f"left out: {', '.join(entry.name for entry in dropped)}, which would belong to the frozen model, at full "
            "width, with its own head and its own zeros, and not rounded"
        )
    return [entry for entry in wanted if entry not in dropped]


def _plan_formats(
    wanted: list[ExportFormat], request: ExportRequest, model_type: str, head: Head, *, separate: bool
) -> tuple[PlannedFormat, ...]:
    if not wanted:
        raise UsageError(
            "nothing is left to write",
            where="--formats",
            remedy="Add openvino or onnx, or another --merge where the ranks stay apart",
        )
    plain = [entry.name for entry in wanted if not entry.takes_weight_format]
    if plain and request.weight_format != FLOAT32.weight_format.name:
        log.print(f"{', '.join(plain)}: written in the type of the base, since --weight-format is not for them")
    # Those that take the model as it is come first: a converter leaves marks in the model's configuration.
    ordered = sorted(wanted, key=lambda entry: entry.takes_weight_format)
    return tuple(_plan_format(entry, request, model_type, head, separate=separate) for entry in ordered)


def _plan_format(
    entry: ExportFormat, request: ExportRequest, model_type: str, head: Head, *, separate: bool
) -> PlannedFormat:
    if not entry.holds(head):
        raise UsageError(
            f"{entry.name} does not hold a {head.replace('_', ' ')}",
            where="--formats",
            remedy=f"Formats that do: {', '.join(item.name for item in EXPORT_FORMATS if item.holds(head))}",
        )
    if separate and not entry.holds_separate and entry.frozen_directory is None:
        raise UsageError(
            f"{entry.name} has no place for ranks that are kept apart",
            where="--formats",
            remedy="Leave it out, or merge them: --merge dense loses the zeros of the adapted layers",
        )
    number_format = NUMBER_FORMATS.get(request.weight_format)
    storage = Storage(number_format, entry.name in request.sparse_kernels) if entry.takes_weight_format else FLOAT32
    writer: FormatWriter = entry.load_for(head)()
    writer.check(model_type, storage)
    kept_apart = separate and entry.frozen_directory is not None
    return PlannedFormat(entry, writer, storage, str(entry.frozen_directory) if kept_apart else entry.directory)
