"""A sub-network of a run that no search has found, such as the largest, as a document: `python -m search describe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search.document import check_document
from search.opening import open_run
from search.strategies.grid import Landmark
from shearling.elastic.mixture import LayerFormat
from shearling.elastic.subnet import Subnet, describe_subnet
from shearling.run import Run
from shearling.strict_json import write_document


def write_landmark(
    run: Run,
    which: Landmark,
    output: Path,
    *,
    ratios: Sequence[float] | None = None,
    formats: Sequence[LayerFormat] | None = None,
    force: bool = False,
) -> Subnet:
    """Write a document that `python -m export --subnet` takes.

    Args:
        run: with a super-adapter.
        which: sub-network.
        output: the document; its directory is made.
        ratios: shares of zeros that layers choose among; None takes those of the recipe.
        formats: number formats that layers choose among; None takes those of the recipe.
        force: replace a file that is there.

    Raises:
        OutputExists, UsageError: see `check_document`.
        ArtefactError: the run is missing or damaged.
    """
    check_document(output, force=force)
    opened = open_run(run)
    opened = opened.mixed(
        ratios=opened.section.ratios if ratios is None else ratios,
        formats=opened.section.layer_formats if formats is None else formats,
    )
    choices = {"largest": opened.space.maximal, "middle": opened.space.heuristic, "smallest": opened.space.minimal}
    subnet = describe_subnet(
        opened.adapter,
        choices[which](),
        subnet_id=which,
        location=output.parent,
        metrics=None,
        provenance=None,
        mixture=opened.mixture,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_document(output, subnet)
    return subnet
