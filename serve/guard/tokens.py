"""Is it the same model that answers alike? An upgrade must not change what a model says."""

from __future__ import annotations

from collections.abc import Sequence

from serve.bench.measurement import Sample
from serve.runtimes.deployment import Deployment
from shearling.errors import UsageError
from shearling.strict_json import Document


class TokenAgreement(Document):
    """What two deployments made of the same prompts.

    Attributes:
        prompts: whose answers were compared.
        asked: prompts that both answered; more where a runtime tells the tokens of a batch's first row alone.
        differing: of them, those with another answer.
        first: place of the earliest token that differs, from 1; None where none does.
        allowed: whether it may be so.
    """

    prompts: int
    asked: int
    differing: int
    first: int | None
    allowed: bool

    @property
    def kept(self) -> bool:
        """Nothing speaks against a pass."""
        return self.allowed or self.differing == 0

    def told(self) -> str:
        """In words."""
        whole = self.prompts == self.asked
        compared = f"{self.prompts} prompts" if whole else f"{self.prompts} answers that both sides tell"
        if not self.differing:
            return f"the same tokens for {'all' if whole else 'the'} {compared}"
        return f"other tokens for {self.differing} of {compared}, the earliest at token {self.first}"


def is_upgrade(deployments: Sequence[Deployment]) -> bool:
    """Whether a pair differs in its environment: then the answers are compared."""
    reference, candidate = deployments
    return reference.environment != candidate.environment


def require_same_model(deployments: Sequence[Deployment], *, allow_other: bool) -> None:
    """Refuse an upgrade that changes the model, too: nobody could say which of the two made the difference.

    Raises:
        UsageError: other weights, or another format, in another environment.
    """
    reference, candidate = deployments
    same = (reference.weights_sha256, reference.format) == (candidate.weights_sha256, candidate.format)
    if not is_upgrade(deployments) or same or allow_other:
        return
    raise UsageError(
        f"another model than {reference.label}, and another environment: no figure could say which of the two made it "
        "slower",
        where=candidate.label,
        remedy="Give the same model on both sides, or --allow-other-tokens",
    )


def compare_tokens(samples: Sequence[Sample], *, allowed: bool) -> TokenAgreement:
    """Compare the answers within each block.

    Args:
        samples: of a reference (subject 0) and a candidate (subject 1).
        allowed: see `TokenAgreement`.
    """
    sides = [
        {sample.block: (sample.token_ids, *sample.other_rows) for sample in samples if sample.subject == side}
        for side in (0, 1)
    ]
    # Of a batch, the rows that both tell.
    pairs = [pair for block, rows in sides[0].items() for pair in zip(rows, sides[1][block], strict=False)]
    places = [_first_difference(expected, found) for expected, found in pairs]
    differences = [place for place in places if place is not None]
    return TokenAgreement(
        prompts=len(pairs),
        asked=sum(sample.batch for sample in samples if sample.subject == 0),
        differing=len(differences),
        first=min(differences, default=None),
        allowed=allowed,
    )


def _first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Its place, from 1."""
    place = next((i for i, pair in enumerate(zip(expected, found, strict=False), start=1) if pair[0] != pair[1]), None)
    if place is None and len(expected) != len(found):
        return min(len(expected), len(found)) + 1
    return place
