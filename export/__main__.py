"""`python -m export`: from a chosen sub-network to verified models for every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command
from shearling.errors import UsageError

app = make_app("Merge a sub-network, export it to Hugging Face, OpenVINO and ONNX, and verify every file.")

CHOICES = {
    "weights": ("fp32", "fp16", "bf16", "int8", "int4"),
    "kernel": ("stock", "sparse"),
    "onnx-kernel": ("stock", "sparse"),
    "merge": ("auto", "masked", "separate", "dense"),
    "verify": ("strict", "warn", "off"),
    "formats": ("openvino", "onnx", "hf", "peft"),
}


@app.command()
def export(
    subnet: Annotated[Path | None, typer.Option(help="best.json, or any sub-network file.", show_default=False)] = None,
    base: Annotated[Path | None, typer.Option(help="Instead of --subnet: a base or sparse artefact, exported as it is.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Default: the run's export directory beside the search.", show_default=False)] = None,
    formats: Annotated[str, typer.Option(help="Comma-separated: openvino, onnx, hf, peft.")] = "openvino,onnx,hf,peft",
    weights: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or int4; of OpenVINO and ONNX.")] = "fp32",
    kernel: Annotated[
        str, typer.Option(help="Of OpenVINO: stock, or sparse, which packs the zeros away and needs the operators of this project to run.")
    ] = "stock",
    onnx_kernel: Annotated[str, typer.Option(help="The same of ONNX; sparse needs the headers of ONNX Runtime as well.")] = "stock",
    merge: Annotated[str, typer.Option(help="auto, masked, separate or dense.")] = "auto",
    allow_approximate: Annotated[
        bool, typer.Option("--allow-approximate", help="Accept a masked merge of an adapter trained without the mask.")
    ] = False,
    verify: Annotated[str, typer.Option(help="strict, warn or off.")] = "strict",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify the inputs, print the plan, write nothing.")] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Export one sub-network (or an unadapted model) and prove what was exported."""
    from export.request import ExportRequest

    wanted = tuple(dict.fromkeys(part.strip() for part in formats.split(",") if part.strip()))
    chosen = {"weights": weights, "kernel": kernel, "onnx-kernel": onnx_kernel, "merge": merge, "verify": verify}
    for name, value in [*chosen.items(), *(("formats", part) for part in wanted or [""])]:
        if value not in CHOICES[name]:
            raise UsageError(f"{value!r} is not one of {', '.join(CHOICES[name])}", where=f"--{name}")
    if (subnet is None) == (base is None):
        raise UsageError("give exactly one of --subnet and --base")
    request = ExportRequest(
        output=output or _default_output(subnet, base),
        formats=wanted,  # type: ignore[arg-type] # checked above
        weights=weights,  # type: ignore[arg-type] # checked above
        kernel=kernel,  # type: ignore[arg-type] # checked above
        onnx_kernel=onnx_kernel,  # type: ignore[arg-type] # checked above
        merge=None if merge == "auto" else merge,  # type: ignore[arg-type] # checked above
        allow_approximate=allow_approximate,
        verify=verify,  # type: ignore[arg-type] # checked above
        force=force,
    )
    return _run(subnet, base, request, dry_run=dry_run)


def _run(subnet: Path | None, base: Path | None, request: object, *, dry_run: bool) -> Result:
    from export.pipeline import export_frozen, export_subnet, plan
    from export.request import ExportRequest
    from export.screen import show_export, show_plan

    if not isinstance(request, ExportRequest):
        raise TypeError(type(request))
    if dry_run:
        if subnet is None:
            raise UsageError("--dry-run checks a sub-network", where="--base", remedy="Give --subnet")
        return show_plan(plan(subnet, request))
    artefact = export_frozen(base, request) if base is not None else export_subnet(subnet, request)  # type: ignore[arg-type] # one of the two is given
    return show_export(artefact)


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
