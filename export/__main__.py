"""`python -m export`: from a chosen sub-network to verified models for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from export.number_format import FORMATS, Format, Kernel, Weights
from export.request import ExportRequest, Verify
from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command
from shearling.errors import UsageError

app = make_app("Merge a sub-network, export it to Hugging Face, OpenVINO and ONNX, and verify every file.")


@app.command()
def export(
    subnet: Annotated[Path | None, typer.Option(help="best.json, or any sub-network file.", show_default=False)] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Instead of --subnet: a base or sparse artefact, exported as it is.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Default: the run's export directory beside the search.", show_default=False)
    ] = None,
    formats: Annotated[str, typer.Option(help="Comma-separated: openvino, onnx, hf, peft.")] = "openvino,onnx,hf,peft",
    weights: Annotated[Weights, typer.Option(help="Number format of OpenVINO and ONNX.")] = "fp32",
    kernel: Annotated[
        Kernel,
        typer.Option(
            help="Of OpenVINO: stock, or sparse, which packs the zeros away and needs the operators "
            "of this project to run."
        ),
    ] = "stock",
    onnx_kernel: Annotated[
        Kernel, typer.Option(help="The same of ONNX; sparse needs the headers of ONNX Runtime as well.")
    ] = "stock",
    merge: Annotated[
        Literal["auto", "masked", "separate", "dense"], typer.Option(help="auto takes what the training allows.")
    ] = "auto",
    allow_approximate: Annotated[
        bool, typer.Option("--allow-approximate", help="Accept a masked merge of an adapter trained without the mask.")
    ] = False,
    verify: Annotated[
        Verify, typer.Option(help="strict fails on a broken gate, warn reports it, off measures nothing.")
    ] = "strict",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify the inputs, print the plan, write nothing.")
    ] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Export one sub-network (or an unadapted model) and prove what was exported."""
    if (subnet is None) == (base is None):
        raise UsageError("give exactly one of --subnet and --base")
    request = ExportRequest(
        output=output or _default_output(subnet, base),
        formats=_parse_formats(formats),
        weights=weights,
        kernel=kernel,
        onnx_kernel=onnx_kernel,
        merge=None if merge == "auto" else merge,
        allow_approximate=allow_approximate,
        verify=verify,
        force=force,
    )
    return _run(subnet, base, request, dry_run=dry_run)


def _parse_formats(text: str) -> tuple[Format, ...]:
    known: Mapping[str, Format] = {name: name for name in FORMATS}
    wanted = [part.strip() for part in text.split(",") if part.strip()] or [""]
    for name in wanted:
        if name not in known:
            raise UsageError(f"{name!r} is not one of {', '.join(known)}", where="--formats")
    return tuple(dict.fromkeys(known[name] for name in wanted))


def _run(subnet: Path | None, base: Path | None, request: ExportRequest, *, dry_run: bool) -> Result:
    from export.screen import show_export, show_plan
    from export.stage import export_frozen, export_subnet, plan

    if subnet is not None:
        return show_plan(plan(subnet, request)) if dry_run else show_export(export_subnet(subnet, request))
    if base is None:
        raise ValueError("neither a sub-network nor a base")
    if dry_run:
        raise UsageError("--dry-run checks a sub-network", where="--base", remedy="Give --subnet")
    return show_export(export_frozen(base, request))


def _default_output(subnet: Path | None, base: Path | None) -> Path:
    if subnet is None:
        if base is None:
            raise UsageError("give exactly one of --subnet and --base")
        return base.with_name(f"{base.name}-export")
    # RUN/search/best.json exports to RUN/export; a file that stands elsewhere, beside itself.
    here = subnet.resolve().parent
    return (here.parent if (here / "manifest.json").is_file() else here) / "export"


if __name__ == "__main__":
    run_command(app, program="python -m export")
