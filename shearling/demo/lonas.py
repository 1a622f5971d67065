"""The demo of elastic widths: LoRA at full width beside the middle and the searched sub-network of one model, cut to
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from shearling.command_line import Result
from shearling.console import log
from shearling.demo.derived_recipe import derive_recipe
from shearling.demo.layout import RECIPES
from shearling.demo.plan import Action, Scale, share
from shearling.demo.step import Ledger, Step, carry_out
from shearling.errors import ArtefactMissing
from shearling.run import Run
from shearling.strict_json import Document, read_json, write_document, write_text

HEURISTIC_ROW = 1
"""NSGA-II measures the maximal, the heuristic and the minimal sub-network first, in this order."""
BENCHMARK = "benchmark.json"

Kind = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Subject:
    """What a demo of one kind of model works on.

    Attributes:
        title: of its report.
        recipe: of the super-network; the baseline is LoRA at full width with the same adapters, trained likewise.
        formats: of the exports.
        timed: what is timed.
    """

    title: str
    recipe: Path
    formats: str
    timed: str


SUBJECTS: Mapping[Kind, Subject] = {
    "encoder": Subject("LoNAS on an encoder", RECIPES / "minilm-lonas.toml", "hf,openvino,onnx", "a forward"),
    "decoder": Subject("LoNAS on a decoder", RECIPES / "smollm2-lonas.toml", "hf,openvino", "a token"),
}


class Compared(Document):
    """One model of the table.

    Attributes:
        interval: of the accuracy on test rows, Wilson, 95 %.
        macs_m: of one forward over 256 tokens, millions, without the products inside attention.
        ms: of a forward of an encoder, of a token of a decoder; OpenVINO on this CPU, batch 1.
        speedup: of that against LoRA at full width, with its interval.
    """

    label: str
    accuracy: float
    interval: tuple[float, float]
    parameters: int
    macs_m: float
    ms: float
    speedup: tuple[float, float, float]


class Comparison(Document):
    """The content of `summary.json`.

    Attributes:
        n: unseen rows of the accuracy.
        timed: what `Compared.ms` is of, in words.
    """

    kind: Kind
    seed: int
    n: int
    timed: str
    models: tuple[Compared, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Layout:
    """Where the demo puts things."""

    path: Path

    @property
    def lora(self) -> Run:
        """LoRA at full width."""
        return Run(self.path / "lora")

    @property
    def lonas(self) -> Run:
        """Elastic ranks and widths."""
        return Run(self.path / "lonas")

    @property
    def heuristic(self) -> Path:
        """The document of the middle sub-network."""
        return self.lonas.path / "heuristic.json"

    @property
    def forward(self) -> Path:
        """Times of an encoder."""
        return self.path / "forward.json"

    @property
    def benchmark(self) -> Path:
        """Times of a decoder: a `benchmark` artefact."""
        return self.path / "benchmark"

    @property
    def exports(self) -> dict[str, Path]:
        """Label -> export, the reference first."""
        return {
            "LoRA, full width": self.lora.export,
            "LoNAS, heuristic": self.lonas.path / "export-heuristic",
            "LoNAS, searched": self.lonas.export,
        }


def run_demo(out: Path, *, kind: Kind, scale: Scale, seed: int, force: bool) -> Result:
    """Do all steps, then write `summary.json` and `report.md`.

    Args:
        out: the directory of the demo; what is there already and fits is kept.
        kind: which model.
        scale: `smoke` goes the same road in a fraction of the time, for tests.
        seed: of the recipes.
        force: replace what stands there and was not made by the demo.

    Raises:
        ArtefactMissing: the recipes are not beside the package.
        ShearlingError: whatever a step refuses; see `shearling.demo.step.carry_out`.
    """
    if not RECIPES.is_dir():
        raise ArtefactMissing(
            "the recipes are not here",
            where=RECIPES,
            remedy="Run the demo from a checkout, or from an editable install of one",
        )
    layout = Layout(out)
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / "demo.json")
    actions = plan_comparison(layout, kind, scale, seed)
    for number, action in enumerate(actions, start=1):
        log.print(f"\nstep {number} of {len(actions)}: {action.step.title}", style="bold", markup=False)
        action.prepare()
        carry_out(action.step, ledger, force=force)
    seconds = {
        action.step.title: round(entry.seconds, 1)
        for action in actions
        if (entry := ledger.find(action.step)) is not None
    }
    comparison = _compare(layout, kind, seed=seed, seconds=seconds)
    write_document(out / "summary.json", comparison)
    write_text(out / "report.md", _markdown(comparison))
    return Result({"report": str(out / "report.md"), **comparison.model_dump(mode="json")}, _screen(comparison, out))


def plan_comparison(layout: Layout, kind: Kind, scale: Scale, seed: int) -> list[Action]:
    """All steps, for a directory in any state."""
    subject, smoke, recipes = SUBJECTS[kind], scale == "smoke", layout.path / "recipes"
    lora = derive_recipe(subject.recipe, recipes / "lora.toml", smoke=smoke, seed=seed, lora=True)
    lonas = derive_recipe(subject.recipe, recipes / "lonas.toml", smoke=smoke, seed=seed)
    exports, shared = tuple(layout.exports.values()), (layout.lonas.base, layout.lonas.task)

    def share_inputs() -> None:
        for name in ("task", "base"):
            share(layout.lora.path / name, layout.lonas.path / name)

    def export(title: str, subnet: Path, source: Path, destination: Path) -> Step:
        command = (
            "-m",
            "export",
            "--subnet",
            str(subnet),
            "--output",
            str(destination),
            "--formats",
            subject.formats,
            "--verify",
            "warn",
        )
        return Step(title, command, destination, (source,), 30)

    evaluate = ("-m", "shearling", "evaluate", *map(str, exports), "--task", str(layout.lonas.task))
    heuristic = (
        "-m",
        "search.pick",
        "--run",
        str(layout.lonas.path),
        "--row",
        str(HEURISTIC_ROW),
        "--output",
        str(layout.heuristic),
    )
    return [
        Action(_train("Baseline: LoRA at full width", lora, layout.lora)),
        Action(_search("Baseline: describe its only rank", layout.lora)),
        Action(
            export(
                "Baseline: merge and export it",
                layout.lora.search / "best.json",
                layout.lora.search,
                layout.lora.export,
            )
        ),
        Action(
            _train("Train one super-network of elastic ranks and widths", lonas, layout.lonas, *shared), share_inputs
        ),
        Action(_search("Search: least MACs at an accuracy within a point of the largest", layout.lonas)),
        Action(
            export(
                "Cut the best sub-network to size and export it",
                layout.lonas.search / "best.json",
                layout.lonas.search,
                layout.lonas.export,
            )
        ),
        Action(Step("Describe the middle sub-network", heuristic, layout.heuristic, (layout.lonas.search,), 5)),
        Action(export("Cut it to size and export it", layout.heuristic, layout.heuristic, exports[1])),
        Action(
            Step("Accuracy on unseen headlines", evaluate, layout.path / "evaluation.json", exports, 30, keep_json=True)
        ),
        Action(_time(layout, kind, smoke=smoke)),
    ]


def _time(layout: Layout, kind: Kind, *, smoke: bool) -> Step:
    exports = tuple(layout.exports.values())
    if kind == "encoder":
        forward = ("-m", "serve", "forward", *map(str, exports), *(("--blocks", "4") if smoke else ()))
        return Step("Time of a forward, all models in turn", forward, layout.forward, exports, 30, keep_json=True)
    work = ("--prompt-tokens", "32", "--max-new-tokens", "16" if smoke else "64", "--repeats", "2" if smoke else "6")
    bench = (
        "-m",
        "serve",
        "bench",
        *map(str, exports),
        "--format",
        "openvino",
        *work,
        "--output",
        str(layout.benchmark),
    )
    return Step("Time of a token, all models interleaved", bench, layout.benchmark, exports, 60)


def _train(title: str, recipe: Path, run: Run, *shared: Path) -> Step:
    return Step(
        title,
        ("-m", "train", "--recipe", str(recipe), "--out", str(run.path)),
        run.super_adapter,
        (recipe, *shared),
        120,
    )


def _search(title: str, run: Run) -> Step:
    return Step(title, ("-m", "search", "--run", str(run.path)), run.search, (run.super_adapter,), 60)


def _compare(layout: Layout, kind: Kind, *, seed: int, seconds: dict[str, float]) -> Comparison:
    evaluation = read_json(layout.path / "evaluation.json")
    scores = {score["directory"]: score for score in evaluation["scores"]}
    times, timed = _forward_times(layout) if kind == "encoder" else _token_times(layout)
    models = tuple(
        _compared(label, path, scores[str(path)], *times[str(path)]) for label, path in layout.exports.items()
    )
    return Comparison(
        kind=kind, seed=seed, n=int(evaluation["scores"][0]["n"]), timed=timed, models=models, seconds=seconds
    )


Timed = tuple[float, tuple[float, float, float]]
"""Milliseconds, and the speed-up over the first model with its interval."""


def _forward_times(layout: Layout) -> tuple[dict[str, Timed], str]:
    forward = read_json(layout.forward)
    times = {item["directory"]: (item["ms"], (item["speedup"], item["low"], item["high"])) for item in forward["times"]}
    return times, f"a forward of {forward['tokens']} tokens"


def _token_times(layout: Layout) -> tuple[dict[str, Timed], str]:
    benchmark, times = read_json(layout.benchmark / BENCHMARK), dict[str, Timed]()
    for subject in benchmark["subjects"]:
        # The first has no ratio to itself. A ratio is of times, so its reciprocal is a speed-up, and its ends change
        # places.
        ratio = subject["ratios"].get("tpot_s", {"median": 1.0, "low": 1.0, "high": 1.0})
        speedup = (1 / ratio["median"], 1 / ratio["high"], 1 / ratio["low"])
        times[subject["deployment"]["label"]] = (1e3 * subject["metrics"]["tpot_s"]["median"], speedup)
    work = benchmark["workload"]
    return times, f"a token, of {work['new_tokens']} after a prompt of {work['prompt_tokens']}"


def _compared(
    label: str, export: Path, score: dict[str, Any], ms: float, speedup: tuple[float, float, float]
) -> Compared:
    report = read_json(export / "report.json")
    return Compared(
        label=label,
        accuracy=score["accuracy"],
        interval=(score["interval"][0], score["interval"][1]),
        parameters=report["parameters"],
        macs_m=report["macs_m"],
        ms=ms,
        speedup=speedup,
    )


def _cells(comparison: Comparison) -> list[tuple[str, ...]]:
    reference = comparison.models[0]
    return [
        (
            model.label,
            f"{100 * model.accuracy:.1f} ({100 * model.interval[0]:.1f}-{100 * model.interval[1]:.1f})",
            f"{model.parameters / 1e6:.2f}",
            f"{model.macs_m / 1e3:.3f} ({model.macs_m / reference.macs_m - 1:+.0%})",
            f"{model.ms:.2f}",
            f"{model.speedup[0]:.2f} ({model.speedup[1]:.2f}-{model.speedup[2]:.2f})",
        )
        for model in comparison.models
    ]


def _headings(comparison: Comparison) -> tuple[str, ...]:
    return (
        "model",
        "accuracy, % (95 %)",
        "parameters, M",
        "MACs at 256 tokens, G",
        f"{SUBJECTS[comparison.kind].timed}, ms",
        "speed-up (95 %)",
    )


def _markdown(comparison: Comparison) -> str:
    headings = _headings(comparison)
    rows = [headings, ("---",) * len(headings), *_cells(comparison)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    note = (
        f"Seed {comparison.seed}; {comparison.n} unseen rows; times of {comparison.timed}, on "
        "OpenVINO, batch 1, all models in turn."
    )
    return f"# {SUBJECTS[comparison.kind].title}\n\n{table}\n\n{note}\n"


def _screen(comparison: Comparison, out: Path) -> Table:
    table = Table(title=f"{comparison.n} unseen rows", title_justify="left", caption_justify="left")
    for heading in _headings(comparison):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for cells in _cells(comparison):
        table.add_row(*cells)
    minutes = sum(comparison.seconds.values()) / 60
    table.caption = f"{minutes:.1f} minutes; report: {out / 'report.md'}"
    return table
