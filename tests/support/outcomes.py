"""A made-up outcome, for what only shows outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shearling.demo.documents import Spread
from shearling.demo.shears.findings import describe
from shearling.demo.shears.outcome import LABELS, Candidate, ShearsOutcome
from shearling.demo.shears.rows import ShearsRow, Speed

ACCURACY = {"dense": 0.48, "lora": 0.82, "sparse": 0.70, "ours": 0.81, "packed": 0.81}


def spread(value: float) -> Spread:
    return Spread(median=value, low=value * 0.9, high=value * 1.1)


def make_speed(decode_ratio: Spread | None, *, tokens_per_s: float = 50.0) -> Speed:
    return Speed(
        weight_bytes=538_090_408,
        ttft_s=spread(0.2),
        tpot_s=spread(0.02),
        tokens_per_s=spread(tokens_per_s),
        decode_ratio=decode_ratio,
    )


def make_row(role: str, **changes: Any) -> ShearsRow:
    accuracy = ACCURACY.get(role, 0.8)
    facts = {
        "role": role,
        "label": LABELS.get(role, "a peer"),
        "accuracy": accuracy,
        "interval": (accuracy - 0.03, accuracy + 0.03),
        "bits_per_byte": 1.6 if role == "sparse" else 1.2,
        "sparsity": {"dense": 0.0, "lora": None}.get(role, 0.5),
        "speed": make_speed(None if role == "lora" else spread(1.0)) if role in ("lora", "packed", "peer") else None,
    }
    return ShearsRow(**(facts | changes))


def make_outcome(scale: str = "full", *, peers: Sequence[ShearsRow] = ()) -> ShearsOutcome:
    rows = (*(make_row(role) for role in LABELS), *peers)
    return ShearsOutcome(
        scale=scale,
        model_id="someone/<model> & more",
        task="sarcasm_test",
        n=1000,
        precision="bf16",
        rows=rows,
        candidates=(
            Candidate(id="a-0000", adapter_params=3_000_000, accuracy=0.80, pareto=True, best=True),
            Candidate(id="a-0001", adapter_params=2_000_000, accuracy=0.78, pareto=True, best=False),
            Candidate(id="a-0002", adapter_params=3_500_000, accuracy=0.77, pareto=False, best=False),
        ),
        losses={
            "under the mask (pruned)": tuple((step, 3 - step / 100) for step in range(1, 101)),
            "plain LoRA (dense)": ((1, 2.5), (2, 2.4)),
        },
        seconds={"Prune": 200.0, "Search": 90.0},
        machine="A processor, 2 CPUs",
        workload="128 prompt and 64 new tokens",
        findings=tuple(describe(rows, 1000)),
    )
