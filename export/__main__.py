"""`python -m export`: from a chosen sub-network to verified models for every runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import click
import typer

from export.quantization.settings import GROUP_SIZES, Preset, Quantization
from export.request import OWN_FORMAT, ExportRequest, Verify
from shearling.artefact import named_path
from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command
from shearling.errors import UsageError
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.name_option import NameOption, member_of
from shearling.registry.number_formats import NUMBER_FORMATS

app = make_app("Merge a sub-network, export it to Hugging Face, OpenVINO and ONNX, and verify every file.")


def _with_kernel() -> list[str]:
    return [entry.name for entry in EXPORT_FORMATS if entry.has_sparse_kernel]


@app.command()
def export(
    subnet: Annotated[Path | None, typer.Option(help="best.json, or any sub-network file.", show_default=False)] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Instead of --subnet: a base or sparse artefact, exported as it is.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Default: the run's export directory, or one beside the file or base.", show_default=False),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            click_type=NameOption(EXPORT_FORMATS.names, several=True),
            help="Default: all of this project but onnx-genai.",
        ),
    ] = None,
    weight_format: Annotated[
        str | None,
        typer.Option(
            click_type=member_of(NUMBER_FORMATS),
            help="Number format of the weights in OpenVINO and ONNX; default: fp32, or those that layers chose.",
        ),
    ] = None,
    sparse_kernel: Annotated[
        str,
        typer.Option(
            click_type=NameOption(_with_kernel, several=True),
            help="Formats packed for the operators of this project, which leave zeros out and run decoders of integers "
            "faster even without any; ONNX needs the headers of ONNX Runtime.",
            show_default="none",
        ),
    ] = "",
    quantization: Annotated[
        Preset | None,
        typer.Option(
            help="How int4 is made: fast sees no data, balanced rounds on calibration text, best tunes all scales "
            "together as well.",
            show_default="balanced where the run has rows or --dataset is given, else fast",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            click_type=click.Choice(GROUP_SIZES), help="Columns that share a scale in int4.", show_default="64, or less"
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Calibration texts, by turns: task for the run's training rows, and files: plain text, or .jsonl "
            "with the key text.",
            show_default="task",
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Windows of 128 tokens of calibration text.", show_default="64")
    ] = None,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Embedding and output head in int4 too, instead of int8.")
    ] = False,
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the layers' weights in int4; the matrices that it would hurt most are int8.",
            show_default="1",
        ),
    ] = None,
    awq: Annotated[
        bool, typer.Option("--awq", help="int4 by NNCF, which scales weights by what they meet in calibration text.")
    ] = False,
    scale_estimation: Annotated[
        bool, typer.Option("--scale-estimation", help="int4 by NNCF, which fits scales to calibration text.")
    ] = False,
    gptq: Annotated[
        bool, typer.Option("--gptq", help="int4 by NNCF's GPTQ; the zeros that it loses are put back.")
    ] = False,
    merge: Annotated[
        Literal["auto", "masked", "separate", "dense"], typer.Option(help="auto takes what the training allows.")
    ] = "auto",
    allow_approximate: Annotated[
        bool, typer.Option("--allow-approximate", help="Accept a masked merge of an adapter trained without the mask.")
    ] = False,
    verify: Annotated[
        Verify, typer.Option(help="strict fails on a broken gate, warn reports it, off runs no file.")
    ] = "strict",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify the inputs, print the plan, write nothing.")
    ] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Export one sub-network (or an unadapted model) and prove what was exported."""
    source, frozen = _parse_source(subnet, base)
    request = ExportRequest(
        output=_default_output(source, frozen=frozen) if output is None else named_path(output),
        formats=_default_formats() if formats is None else _parse_names(formats, "--formats"),
        weight_format=OWN_FORMAT if weight_format is None else weight_format,
        sparse_kernels=_parse_names(sparse_kernel, "--sparse-kernel"),
        quantization=Quantization(
            quantization,
            group_size,
            _parse_texts(dataset),
            num_samples,
            all_layers,
            ratio,
            awq=awq,
            scale_estimation=scale_estimation,
            gptq=gptq,
        ),
        merge=None if merge == "auto" else merge,
        allow_approximate=allow_approximate,
        verify=verify,
        force=force,
    )
    return _run(source, request, frozen=frozen, dry_run=dry_run)


def _default_formats() -> tuple[str, ...]:
    return tuple(entry.name for entry in EXPORT_FORMATS if entry.by_default)


def _parse_names(text: str, option: str) -> tuple[str, ...]:
    wanted = (part.strip() for part in text.split(",") if part.strip())
    return tuple(dict.fromkeys(EXPORT_FORMATS.get(name, where=option).name for name in wanted))


def _parse_texts(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _parse_source(subnet: Path | None, base: Path | None) -> tuple[Path, bool]:
    """The path that was given, and whether it is a model without a sub-network."""
    match subnet, base:
        case Path(), None:
            return subnet, False
        case None, Path():
            return named_path(base), True
        case _:
            raise UsageError("give exactly one of --subnet and --base")


def _run(source: Path, request: ExportRequest, *, frozen: bool, dry_run: bool) -> Result:
    # Before torch is there, which reads it once: large temporary matrices on large pages take half of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from export.plan import plan_frozen, plan_subnet

    # The plan first: what it refuses is refused before torch is imported, but for a group that a layer does not have.
    plan = plan_frozen(source, request) if frozen else plan_subnet(source, request)
    from export.screen import show_export, show_plan
    from export.stage import export_planned

    return show_plan(plan) if dry_run else show_export(export_planned(plan))


def _default_output(source: Path, *, frozen: bool) -> Path:
    if frozen:
        return source.with_name(f"{source.name}-export")
    # RUN/search/best.json exports to RUN/export; a file that stands elsewhere, beside itself.
    here = source.resolve().parent
    return (here.parent if (here / "manifest.json").is_file() else here) / "export"


def main() -> NoReturn:
    """The console script, which finds this stage from any directory."""
    run_command(app, program="shearling-export")


if __name__ == "__main__":
    run_command(app, program="python -m export")
