"""What `python -m serve generate` prints beside the text itself."""

from __future__ import annotations

from serve.generate import Answer


def answer_line(answer: Answer) -> str:
    """How fast it was, and what ran."""
    speed = f", then {answer.tokens_per_s:.1f} tokens/s" if answer.tokens_per_s else ""
    facts = answer.facts
    return (
        f"{len(answer.token_ids)} tokens: first after {1e3 * answer.ttft_s:.0f} ms{speed}; loaded "
        f"in {answer.load_s:.1f} s ({facts.runtime}, {facts.provider}, {facts.precision})"
    )
