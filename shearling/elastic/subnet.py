"""`best.json`: one sub-network, described so completely that the export needs nothing else.

It names the frozen model, the mask and the super-adapter by path relative to itself and by digest, and gives the rank
of every adapted module and, in the mode `lonas`, the width of every layer that is cut. Where layers choose their share
of zeros or their number format, the document is of the second version, which adds `mixture`; others stay of the first,
so that what knows no mixtures reads them. `open_subnet` enforces what a reader must refuse before any weight is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

import shearling
from shearling.artefact import Artefact, open_artefact, sha256_file, utc_now
from shearling.elastic.grid_file import GRID_FILE
from shearling.elastic.mask import MASK_FILE, PACKING
from shearling.elastic.merge_rule import MergeRule, merge_rule_of
from shearling.elastic.mixture import Mixture
from shearling.elastic.reordering import REORDERING_FILE
from shearling.elastic.search_space import SEARCH_SPACE_FILE, Choice, SearchSpace, read_search_space
from shearling.elastic.subnet_mixture import MixtureReference, Sha256, check_layers, describe_mixture, reopen_mixture
from shearling.elastic.super_network import ADAPTER_FILE
from shearling.errors import ArtefactMismatch, ArtefactMissing, DocumentInvalid
from shearling.model.checkpoint_safety import CONFIG
from shearling.run import open_frozen
from shearling.strict_json import Document, read_document, read_json

SUBNET_SCHEMA, MIXED_SUBNET_SCHEMA = "shearling.subnet/1", "shearling.subnet/2"

Mode = Literal["rank", "lonas"]
"""What is elastic: the ranks alone (Shears), or ranks and widths (LoNAS)."""


class Tool(Document):
    """Who wrote the document."""

    name: str
    version: str


class BaseReference(Document):
    """The frozen model that the adapter belongs to."""

    model_id: str
    path: str
    kind: Literal["base", "sparse"]
    model_type: str
    torch_dtype: str
    num_layers: int
    manifest_sha256: Sha256
    config_sha256: Sha256
    weights_sha256: Sha256
    weights_hash_scheme: Literal["sha256 over sorted(name, dtype, shape, raw bytes) of every tensor"] = (
        "sha256 over sorted(name, dtype, shape, raw bytes) of every tensor"
    )
    tie_word_embeddings: bool


class MaskReference(Document):
    """The mask that training used."""

    file: str
    packing: Literal["uint8-bits-lsb-first-row-major"] = "uint8-bits-lsb-first-row-major"
    sha256: Sha256


class SparsityReference(Document):
    """How the frozen model was pruned; shares are of the pruned modules and of the whole model."""

    method: str
    target: float
    pattern: str
    scope: tuple[str, ...]
    achieved_scope: float
    achieved_model: float
    zeros: int
    mask: MaskReference
    calibration: dict[str, Any] | None


class AdapterReference(Document):
    """The super-adapter; what would change its scaling or its form is spelled out, and refused where we do not
    support it.
    """

    file: str
    sha256: Sha256
    form: Literal["super"] = "super"
    r_max: int
    alpha: float
    scaling: float
    scaling_rule: Literal["alpha/r_max", "alpha/rank"] = "alpha/r_max"
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    masked_training: bool
    dtype: Literal["float32"] = "float32"
    target_modules: tuple[str, ...]


class PermutationReference(Document):
    """The order that the channels of the frozen model were brought into before training."""

    file: str
    sha256: Sha256
    method: str


class GridReference(Document):
    """The grid of integers that the weights were trained on."""

    file: str
    sha256: Sha256
    bits: int


class Comparison(Document):
    """With the largest sub-network, on the same rows.

    Attributes:
        n: rows.
        largest_accuracy: of the largest sub-network.
        difference: the accuracy less that one.
        interval: of the difference, 95 %, row by row.
        p_value: of the exact one-sided test that the sub-network is no better, not corrected for other candidates.
    """

    n: int
    largest_accuracy: float
    difference: float
    interval: tuple[float, float]
    p_value: float


class HeldBack(Document):
    """What a sub-network reaches on validation rows that had no part in choosing it: the accuracy to expect.

    Attributes:
        n: rows.
        accuracy: share of right answers, 0 to 1.
        interval: Wilson, 95 %.
        rows_sha256: of the rows.
        versus_largest: None for the largest sub-network itself, and where that was not measured.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    rows_sha256: Sha256
    versus_largest: Comparison | None = None


class Metrics(Document):
    """What the search measured, on the rows of `split`; MACs in millions, of one sequence of `macs_seq_len` tokens.

    Bytes and latency are those of the exported form that the search was told of; the latency is predicted.
    The accuracy is that on the rows that chose the sub-network, so that it flatters; `held_back` predicts.
    """

    split: Literal["validation", "test"] = "validation"
    task: str
    n: int
    accuracy: float
    accuracy_stderr: float | None = None
    loss: float | None = None
    versus_largest: Comparison | None = None
    held_back: HeldBack | None = None
    adapter_params: int
    nonzero_params: int
    parameters: int | None = None
    macs_m: float | None = None
    macs_seq_len: int | None = None
    model_bytes: int | None = None
    latency_ms: float | None = None
    seconds: float


class Provenance(Document):
    """Where in which search the choice was found."""

    algorithm: str
    seed: int
    evaluations: int
    results_file: str
    row: int
    best_rule: str


class Subnet(Document):
    """The content of `best.json`."""

    schema_: Literal["shearling.subnet/1", "shearling.subnet/2"] = pydantic.Field("shearling.subnet/1", alias="schema")
    id: str
    created: str
    tool: Tool
    mode: Mode
    base: BaseReference
    sparsity: SparsityReference | None
    adapter: AdapterReference
    search_space_sha256: Sha256
    choice: dict[str, int]
    ranks: dict[str, int]
    widths: dict[str, int] = pydantic.Field(default_factory=dict)
    permutation: PermutationReference | None = None
    grid: GridReference | None = None
    mixture: MixtureReference | None = None
    metrics: Metrics | None
    provenance: Provenance | None
    merge: MergeRule

    @pydantic.model_validator(mode="after")
    def _version(self) -> Subnet:
        if (self.mixture is not None) != (self.schema_ == "shearling.subnet/2"):
            has = "a mixture" if self.mixture is not None else "no mixture"
            raise ValueError(f"it is of the schema {self.schema_} and has {has}")
        return self

    @pydantic.model_serializer(mode="wrap")
    def _without_absent(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Readers of the first version know no such key.
        written: dict[str, Any] = handler(self)
        if self.mixture is None:
            written.pop("mixture", None)
        return written


@dataclass(frozen=True)
class OpenSubnet:
    """A sub-network whose artefacts were found and verified.

    Attributes:
        path: the document.
        frozen: the `sparse` artefact, or `base` where nothing was pruned.
        adapter: the `super_adapter` artefact.
        mixture: None where layers had no choice of zeros or formats; `space` is that of the mixture else.
    """

    path: Path
    subnet: Subnet
    space: SearchSpace
    frozen: Artefact
    adapter: Artefact
    mixture: Mixture | None = None

    @property
    def variants(self) -> Artefact | None:
        """That layers are taken from."""
        return None if self.mixture is None else self.mixture.variants

    @property
    def layer_bits(self) -> dict[str, int]:
        """Module path -> bits of its integers, where layers chose their number format."""
        return self.space.bits(self.subnet.choice)


def describe_subnet(
    adapter: Artefact,
    choice: Choice,
    *,
    subnet_id: str,
    location: Path,
    metrics: Metrics | None,
    provenance: Provenance | None,
    mixture: Mixture | None = None,
) -> Subnet:
    """Describe one sub-network of a trained super-adapter.

    Args:
        adapter: the `super_adapter` artefact.
        choice: group id -> value.
        subnet_id: name of the choice, such as `nsga2-0042`.
        location: the directory that the document will stand in; paths are relative to it.
        metrics: what the search measured.
        provenance: where it was found.
        mixture: that layers chose among; the choice is of its space then.

    Raises:
        DocumentInvalid: the choice is not in the space.
        ArtefactMismatch: the frozen model beside the adapter is another one.
    """
    from shearling.model.checkpoint import hash_config, hash_weights

    frozen = open_frozen(adapter)
    space_file = adapter.path / SEARCH_SPACE_FILE
    space = read_search_space(space_file) if mixture is None else mixture.space
    details = frozen.manifest.details
    sparsity = None
    if frozen.manifest.kind == "sparse":
        mask_file = frozen.path / MASK_FILE
        mask = MaskReference(file=_relative(mask_file, location), packing=PACKING, sha256=sha256_file(mask_file))  # type: ignore[arg-type] # PACKING is the literal
        sparsity = SparsityReference.model_validate({**details["sparsity"], "mask": mask}, strict=False)
    adapter_file = adapter.path / ADAPTER_FILE
    return Subnet(
        schema_="shearling.subnet/1" if mixture is None else "shearling.subnet/2",
        id=subnet_id,
        created=utc_now(),
        tool=Tool(name="shearling", version=shearling.__version__),
        mode=mode_of(space),
        base=BaseReference(
            model_id=details["model_id"],
            path=_relative(frozen.path, location),
            kind=frozen.manifest.kind,  # type: ignore[arg-type] # open_frozen returns one of the two
            model_type=space.model_type,
            torch_dtype=details["torch_dtype"],
            num_layers=space.num_layers,
            manifest_sha256=frozen.sha256,
            config_sha256=hash_config(frozen.path),
            weights_sha256=hash_weights(frozen.path),
            tie_word_embeddings=details["tie_word_embeddings"],
        ),
        sparsity=sparsity,
        adapter=AdapterReference(
            file=_relative(adapter_file, location),
            sha256=sha256_file(adapter_file),
            r_max=space.adapter.r_max,
            alpha=space.adapter.alpha,
            scaling=space.scaling,
            scaling_rule=_scaling_rule(space),
            masked_training=space.adapter.masked_training,
            target_modules=space.adapter.target_modules,
        ),
        search_space_sha256=sha256_file(space_file),
        choice=dict(choice),
        ranks=space.ranks(choice),
        widths=space.widths(choice),
        permutation=_permutation(adapter, location),
        grid=_grid(adapter, space, location),
        mixture=None if mixture is None else describe_mixture(mixture, choice, location),
        metrics=metrics,
        provenance=provenance,
        merge=merge_rule_of(space, sparse=sparsity is not None),
    )


def mode_of(space: SearchSpace) -> Mode:
    """The mode of every sub-network of a space."""
    return "lonas" if space.width_groups else "rank"


def _scaling_rule(space: SearchSpace) -> Literal["alpha/r_max", "alpha/rank"]:
    return "alpha/rank" if space.scales_by_rank else "alpha/r_max"


def _permutation(adapter: Artefact, location: Path) -> PermutationReference | None:
    entry = adapter.manifest.files.get(REORDERING_FILE)
    if entry is None:
        return None
    method = str(adapter.manifest.details["reorder"])
    return PermutationReference(
        file=_relative(adapter.path / REORDERING_FILE, location), sha256=entry.sha256, method=method
    )


def _grid(adapter: Artefact, space: SearchSpace, location: Path) -> GridReference | None:
    entry, spec = adapter.manifest.files.get(GRID_FILE), space.adapter.grid
    if entry is None or spec is None:
        return None
    return GridReference(file=_relative(adapter.path / GRID_FILE, location), sha256=entry.sha256, bits=spec.bits)


def open_subnet(path: Path) -> OpenSubnet:
    """Read a sub-network and verify everything that it names.

    Raises:
        DocumentInvalid: malformed, or its parts contradict each other or the search space.
        ArtefactMissing, ArtefactCorrupt: a named artefact is absent or damaged.
        ArtefactMismatch: a digest differs: another base, mask, adapter or search space.
    """
    from shearling.model.checkpoint import hash_weights

    subnet = read_subnet(path)
    here = path.resolve().parent
    for named in (here / subnet.base.path, (here / subnet.adapter.file).parent):
        if not named.is_dir():
            raise ArtefactMissing(
                f"names {named.resolve()}, by the way from itself, and nothing is there",
                where=path,
                remedy="Leave it where it was made, such as RUN/search, and make others there: python -m search pick",
            )
    frozen = open_artefact(here / subnet.base.path, kind=subnet.base.kind)
    adapter = open_artefact((here / subnet.adapter.file).parent, kind="super_adapter")
    _same(frozen.sha256, subnet.base.manifest_sha256, "manifest of the base", path)
    # Every file was hashed when its artefact was opened; the digest of the weights alone is of another scheme.
    _same(_listed(frozen, CONFIG), subnet.base.config_sha256, "configuration of the base", path)
    _same(hash_weights(frozen.path), subnet.base.weights_sha256, "weights of the base", path)
    _same(
        _digest_in(adapter, here / subnet.adapter.file, ADAPTER_FILE, where=path),
        subnet.adapter.sha256,
        "super-adapter",
        path,
    )
    _same(adapter.manifest.parents.get(subnet.base.kind), frozen.sha256, "base that the adapter was trained on", path)
    _check_permutation(subnet, adapter, here, where=path)
    if subnet.grid is not None:
        found = _digest_in(adapter, here / subnet.grid.file, GRID_FILE, where=path)
        _same(found, subnet.grid.sha256, "grid of the weights", path)
    space_file = adapter.path / SEARCH_SPACE_FILE
    _same(_listed(adapter, SEARCH_SPACE_FILE), subnet.search_space_sha256, "search space", path)
    if (subnet.sparsity is None) != (subnet.base.kind == "base"):
        raise DocumentInvalid(
            f"sparsity is {'missing' if subnet.sparsity is None else 'given'} for a {subnet.base.kind} base", where=path
        )
    if subnet.sparsity is not None:
        _same(
            _digest_in(frozen, here / subnet.sparsity.mask.file, MASK_FILE, where=path),
            subnet.sparsity.mask.sha256,
            "mask",
            path,
        )
    space, mixture = read_search_space(space_file), None
    if subnet.mixture is not None:
        mixture = reopen_mixture(subnet.mixture, space, frozen, where=path)
        space = mixture.space
    _check_against_space(subnet, space, where=path)
    if mixture is not None and subnet.mixture is not None:
        check_layers(subnet.mixture, mixture, subnet.choice, where=path)
    return OpenSubnet(path, subnet, space, frozen, adapter, mixture)


def read_subnet(path: Path) -> Subnet:
    """Read a document of either version; nothing that it names is looked at.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: malformed, or of another schema.
    """
    mixed = read_json(path).get("schema") == MIXED_SUBNET_SCHEMA
    return read_document(path, Subnet, schema=MIXED_SUBNET_SCHEMA if mixed else SUBNET_SCHEMA)


def _check_permutation(subnet: Subnet, adapter: Artefact, here: Path, *, where: Path) -> None:
    ordered = REORDERING_FILE in adapter.manifest.files
    if ordered != (subnet.permutation is not None):
        raise DocumentInvalid(
            f"permutation is {'missing' if ordered else 'given'}, the super-adapter says otherwise", where=where
        )
    if subnet.permutation is not None:
        found = _digest_in(adapter, here / subnet.permutation.file, REORDERING_FILE, where=where)
        _same(found, subnet.permutation.sha256, "order of the channels", where)


def _check_against_space(subnet: Subnet, space: SearchSpace, *, where: Path) -> None:
    if subnet.mode != mode_of(space):
        raise DocumentInvalid(
            f"the mode is {subnet.mode!r}, the search space is of the mode {mode_of(space)!r}", where=where
        )
    try:
        ranks, widths = space.ranks(subnet.choice), space.widths(subnet.choice)
    except DocumentInvalid as error:
        raise DocumentInvalid(f"{error.where}: {error.message}", where=where, remedy=error.remedy) from None
    for name, stated, chosen in (("ranks", subnet.ranks, ranks), ("widths", subnet.widths, widths)):
        if stated != chosen:
            odd = sorted(path for path in chosen.keys() | stated.keys() if chosen.get(path) != stated.get(path))[0]
            raise DocumentInvalid(
                f"{name}[{odd!r}] is {stated.get(odd)}, the choice gives {chosen.get(odd)}", where=where
            )
    expected = {
        "adapter.r_max": (subnet.adapter.r_max, space.adapter.r_max),
        "adapter.alpha": (subnet.adapter.alpha, space.adapter.alpha),
        "adapter.scaling": (subnet.adapter.scaling, space.scaling),
        "adapter.scaling_rule": (subnet.adapter.scaling_rule, _scaling_rule(space)),
        "adapter.masked_training": (subnet.adapter.masked_training, space.adapter.masked_training),
        "adapter.target_modules": (subnet.adapter.target_modules, space.adapter.target_modules),
        "base.model_type": (subnet.base.model_type, space.model_type),
        "base.num_layers": (subnet.base.num_layers, space.num_layers),
        "grid.bits": (subnet.grid and subnet.grid.bits, space.adapter.grid and space.adapter.grid.bits),
        "merge": (subnet.merge, merge_rule_of(space, sparse=subnet.sparsity is not None)),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise DocumentInvalid(f"{field} is {found!r}, the search space says {wanted!r}", where=where)


def _same(found: str | None, expected: str, what: str, path: Path) -> None:
    if found != expected:
        raise ArtefactMismatch(
            f"the {what} differs: sha256 {str(found)[:12]}… found, {expected[:12]}… expected",
            where=path,
            remedy="This sub-network was searched on other artefacts: restore them, or search again",
        )


def _digest_in(artefact: Artefact, file: Path, name: str, *, where: Path) -> str | None:
    """Digest of the file of an artefact that has been verified; `file` must be that very file, for it is what gets
    loaded.
    """
    if file.resolve() != (artefact.path / name).resolve():
        raise DocumentInvalid(f"{file.name} is named, expected {name} of {artefact.path}", where=where)
    return _listed(artefact, name)


def _listed(artefact: Artefact, name: str) -> str | None:
    entry = artefact.manifest.files.get(name)
    return None if entry is None else entry.sha256


def _relative(path: Path, location: Path) -> str:
    return Path(os.path.relpath(path.resolve(), location.resolve())).as_posix()
