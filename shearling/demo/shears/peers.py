"""Models that stand beside those of the demo: files of other makers, or other exports of the same run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.plan import compared_models
from shearling.errors import UsageError
from shearling.evaluation.given_model import find_given_model
from shearling.target import Target


def check_peers(layout: ShearsLayout, peers: Sequence[Target]) -> None:
    """Look for every peer before the work of the demo begins.

    Raises:
        UsageError: one is named twice, or is what the demo compares anyway.
        ArtefactError: there is no model, or a damaged one.
    """
    own = {str(path) for path in compared_models(layout).values()}
    for label, times in Counter(peer.label for peer in peers).items():
        if times > 1 or label in own:
            raise UsageError(
                "the demo compares this already" if label in own else "this peer is named twice",
                where=label,
                remedy="Name each model once",
            )
    for peer in peers:
        find_given_model(peer)


def peer_names(peers: Sequence[Target]) -> list[str]:
    """What tables call them: the name of the file or directory and what is set for it; of two alike all that was
    written.
    """
    short = [_short(peer) for peer in peers]
    return [name if short.count(name) == 1 else peer.label for name, peer in zip(short, peers, strict=True)]


def _short(peer: Target) -> str:
    name = peer.path.resolve().name.removesuffix(".gguf")
    return ", ".join([name, *(f"{key}={value}" for key, value in peer.properties.items())])
