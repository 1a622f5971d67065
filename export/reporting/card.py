"""The model card of an export: what it is, how it was made, how it was checked, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from export.reporting.lineage import Lineage, is_hub_id
from export.reporting.report import ExportReport
from export.verification.task_check import TaskCheck
from shearling.elastic.subnet import HeldBack
from shearling.markdown import escape_markdown

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

EXPECTED = "the sub-network, on rows held back from its search"
HUB_TAGS = {"hf": "transformers"}
"""Formats that the hub calls otherwise than we do."""
PUBLISH = """\
## Publish

This directory is a repository of the Hugging Face hub as it stands, and this file its card. The
tool is that of the package `huggingface_hub`:

```sh
hf auth login
hf upload YOUR-NAME/YOUR-MODEL . . --private
```

Leave `--private` out for everybody to see it. `manifest.json` holds the command line that made the
export, with its paths. Who downloads it, `hf download YOUR-NAME/YOUR-MODEL --local-dir model`, runs
it as above from that directory, and verifies every byte with `shearling inspect model`."""


def write_card(path: Path, report: ExportReport, usages: Mapping[str, str]) -> None:
    """Write `README.md` of an export.

    Args:
        path: of the file.
        report: what it says.
        usages: directory -> Python that loads it.
    """
    path.write_text("\n\n".join(_sections(report, usages)) + "\n", encoding="utf-8")


def _sections(report: ExportReport, usages: Mapping[str, str]) -> list[str]:
    lineage = report.lineage
    return [
        f"---\n{_metadata(report).to_yaml()}\n---",
        f"# {_title(report)}",
        _made(report),
        *_results(report),
        *_verified(report),
        *_tokenizers(report),
        "## Use",
        *(f"`{name}/`\n\n```python\n{usages[name]}\n```" for name in report.sizes_bytes if name in usages),
        *([] if lineage is None else [_recipe(lineage), _license(report, lineage), PUBLISH]),
    ]


def _title(report: ExportReport) -> str:
    return f"{report.model_id}, sub-network {report.subnet_id or 'none'}"


def _metadata(report: ExportReport) -> ModelCardData:
    """The block at the top, which the hub reads; what is not known is not in it."""
    from huggingface_hub import ModelCardData

    lineage = report.lineage
    task = None if lineage is None else lineage.task
    licensed = {} if lineage is None else lineage.license
    results = _eval_results(report)
    return ModelCardData(
        base_model=report.model_id if is_hub_id(report.model_id) else None,
        datasets=None if task is None or task.hub_id is None else [task.hub_id],
        library_name="shearling",
        pipeline_tag=_pipeline_tag(report),
        metrics=["accuracy"] if results else None,
        model_name=_title(report),
        eval_results=results or None,
        tags=_tags(report),
        license=licensed.get("license"),
        license_name=licensed.get("license_name"),
        license_link=licensed.get("license_link"),
    )


def _tags(report: ExportReport) -> list[str]:
    made = {"pruned": report.sparsity is not None, "lora": report.merge != "none", "quantized": report.rounded}
    formats = [HUB_TAGS.get(name, name) for name in report.formats]
    return ["shearling", *formats, *(name for name, is_so in made.items() if is_so)]


def _pipeline_tag(report: ExportReport) -> str:
    return "text-classification" if report.head == "classifier" else "text-generation"


def _eval_results(report: ExportReport) -> list[EvalResult]:
    """What was measured when the files were made: answers to validation rows."""
    from huggingface_hub import EvalResult

    lineage = report.lineage
    task = None if lineage is None else lineage.task
    expected = _expected(report)
    named: list[tuple[str, TaskCheck | HeldBack]] = [
        (f"accuracy of {check.candidate} in {report.weight_format}", check) for check in report.tasks
    ]
    named += [] if expected is None else [(EXPECTED, expected)]
    if task is None:
        return []
    return [
        EvalResult(
            task_type=_pipeline_tag(report),
            dataset_name=task.name,
            dataset_type=task.hub_id or task.name,
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=f"{name}, {measured.n} rows",
            metric_value=measured.accuracy,
            verified=False,
        )
        for name, measured in named
    ]


def _expected(report: ExportReport) -> HeldBack | None:
    """What the search measured; that of an approximate merge is of another model."""
    return None if report.lineage is None or not report.exact else report.lineage.expected


def _results(report: ExportReport) -> list[str]:
    expected = _expected(report)
    rows = []
    if expected is not None:
        low, high = (f"{100 * end:.1f}" for end in expected.interval)
        rows.append(f"| {EXPECTED} | - | {100 * expected.accuracy:.1f} ({low} to {high}) | - | {expected.n} |")
    checks = {check.candidate: check for check in report.tasks}
    for name, size in report.sizes_bytes.items():
        accuracy, difference, n = "-", "-", "-"
        if name in checks:
            check = checks[name]
            low, high = (f"{100 * end:+.1f}" for end in check.interval)
            accuracy, n = f"{100 * check.accuracy:.1f}", str(check.n)
            difference = f"{100 * check.difference:+.1f} ({low} to {high})"
        rows.append(f"| `{name}/` | {size / 1e6:.1f} | {accuracy} | {difference} | {n} |")
    head = "| what | MB | accuracy, % | difference to float32, points (95 %) | validation rows |\n|---|---|---|---|---|"
    task = None if report.lineage is None else report.lineage.task
    data = [] if task is None else [f"The task is {task.name}; its data is {task.source}."]
    return ["## Results", *data, "\n".join([head, *rows])]


def _recipe(lineage: Lineage) -> str:
    import tomli_w

    trained, exported = (
        ", ".join(f"{name} {version}" for name, version in tools.items())
        for tools in (lineage.trained_with, lineage.exported_with)
    )
    versions = f"Made with {trained}." if trained == exported else f"Trained with {trained}; exported with {exported}."
    commands = "```sh\n" + "\n".join(lineage.commands) + "\n```"
    if lineage.recipe is None:
        return f"## Recipe\n\nThe run holds no whole recipe. The export was made by\n\n{commands}\n\n{versions}"
    return (
        f"## Recipe\n\n`recipe.toml`; paths are relative to it:\n\n```toml\n{tomli_w.dumps(lineage.recipe)}```\n\n"
        f"{commands}\n\n{versions}"
    )


def _license(report: ExportReport, lineage: Lineage) -> str:
    if not lineage.license:
        return (
            f"## Licence\n\nThat of {report.model_id} holds, and is not stated in its files. Give `license` in "
            "`[model]` of the recipe, train with it and export again before you publish this."
        )
    name = lineage.license.get("license_name", lineage.license["license"])
    link = lineage.license.get("license_link")
    return f"## Licence\n\nThat of {report.model_id}: {f'[{name}]({link})' if link else name}."


def _made(report: ExportReport) -> str:
    exact = "exact" if report.exact else "approximate: the adapter was trained without the mask"
    lines = [
        f"- merge: {report.merge} ({exact})",
        f"- adapter weights: {report.adapter_params:,}",
        f"- stored weights: {report.stored_as}",
    ]
    if report.quantization is not None:
        made = report.quantization
        lines.append(
            f"- {made.matrices} matrices rounded on {', '.join(made.dataset)} ({made.method}), other linear layers in "
            + ("int8, in plain ONNX embedding and head in float32" if _leaves_head(report) else "int8")
        )
        lines += [] if made.mended is None else [f"- {made.mended}"]
    if report.trained_bits is not None:
        lines.append(f"- weights trained as integers of {report.trained_bits} bits; embeddings and head are apart")
    if report.mixture is not None:
        lines += [f"- {line}" for line in report.mixture.words]
    if report.narrowed:
        lines.append(
            f"- narrowed: {report.narrowed} linear layers; {report.parameters:,} weights, "
            f"{report.macs_m / 1e3:.2f} G MACs at 256 tokens"
        )
    return "\n".join([*lines, *_zeros(report), *_packed(report)])


def _leaves_head(report: ExportReport) -> bool:
    return "onnx" in report.formats and report.quantization is not None and not report.quantization.all_layers


def _zeros(report: ExportReport) -> list[str]:
    """What was pruned, and where its zeros were found again."""
    lines = []
    if report.sparsity is not None:
        lines.append(
            f"- pruned by {report.sparsity['method']} ({report.sparsity['pattern']}), target "
            f"{report.sparsity['target']:.0%}"
        )
    if report.left_by_merge is not None:
        lines.append(f"- {report.left_by_merge}")
    if report.counted_by_nncf is not None:
        lines.append(f"- {report.counted_by_nncf}")
    return lines + [
        f"- {check.format}: {check.zeros:,} of {check.pruned:,} pruned weights are exactly zero"
        for check in report.zeros
    ]


def _packed(report: ExportReport) -> list[str]:
    """What runs each directory, where there is a choice."""
    lines = [f"- {name}: {kernel} kernel" for name, kernel in report.kernels.items() if report.packings]
    for name, packing in report.packings.items():
        lines.append(
            f"- {name} is packed for the sparse kernel: {len(packing.layers)} matrices, "
            f"{packing.bytes_before:,} bytes became {packing.bytes_after:,}; the runtime needs the operators of this "
            "project to read them"
            if packing.packed
            else f"- {name}: nothing was packed, for the reasons in report.json, so any runtime reads it"
        )
    return lines


def _verified(report: ExportReport) -> list[str]:
    broken = [f"- {line}" for line in report.violations]
    compared = ["## Compared" if broken else "## Verified", _parity(report)] if report.parity else []
    if broken:
        compared += ["## Broken gates", "\n".join(broken)]
    names = ", ".join(f"`{name}/`" for name in report.unmeasured)
    return [*compared, "## Not measured", f"Nothing that {names} computes was measured."] if names else compared


def _parity(report: ExportReport) -> str:
    head = "| compared | with | precision | max abs Δlogit | mean KL | top-1 | verdict |\n|---|---|---|---|---|---|---|"
    rows = [
        _row(
            check.candidate,
            check.reference,
            check.precision,
            f"{check.parity.max_abs:.2e}",
            f"{check.parity.kl_mean:.2e}",
            f"{check.parity.top1_agreement:.1%}",
            check.verdict,
        )
        for check in report.parity
    ]
    return "\n".join([head, *rows])


def _tokenizers(report: ExportReport) -> list[str]:
    return [
        f"The converted tokenizer of `{check.candidate}/` and the model's own, on {check.texts} texts: "
        f"{escape_markdown(check.verdict)}."
        for check in report.tokenizers
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(escape_markdown, cells))} |"
