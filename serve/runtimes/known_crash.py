"""The crash of a runtime that is known, and its avoidance where exactly that is met which was seen.

OpenVINO 2026.4 dies of SIGFPE on processors with AMX when a decoder whose weights are float32 computes in bf16, its
default there, with one thread and a prompt of 64 tokens. In float32, with two threads, and at one token it does not.
docs/latency.md has a reproduction without this project.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from serve.visitor.own_process import usable_cpus
from serve.visitor.processor import read_processor
from shearling.errors import DeviceUnavailable
from shearling.kernel.openvino_extension import needs_extension
from shearling.virtual_environment import installed_version

AFFECTED = "2026.4."
"""Releases of OpenVINO in which it was seen."""
HINT = "INFERENCE_PRECISION_HINT"
SMALLER_WEIGHTS = re.compile(rb'element_type="(?:f16|bf16|[iu][48]|nf4|f4e2m1|f8e[45]m[23])"')
AVOIDED = (
    "computed in float32 instead of bf16: OpenVINO 2026.4 dies on processors with AMX where a float32 file runs in "
    "bf16 with one thread (docs/latency.md)"
)


def avoid_known_crash(deployments: Sequence[Deployment], options: RunOptions) -> tuple[list[Deployment], str | None]:
    """The same deployments, but those that would end their process in float32; and why, where there are any.

    Not all of them: a GGUF file takes no precision, and packed products would round nothing. What would die in another
    release of the runtime computes in float32, too, so that two releases do the same work.

    Args:
        deployments: what will run.
        options: as asked for; a precision of `default` is replaced, because it names none.

    Raises:
        DeviceUnavailable: bf16 was asked for, and would crash.
    """
    meeting = [deployment for deployment in deployments if _meets_the_rest(deployment, options)]
    crashing = [deployment for deployment in meeting if _is_affected(deployment)]
    for deployment in crashing:
        if "bf16" in (options.precision, deployment.properties.get(HINT)):
            raise DeviceUnavailable(
                "OpenVINO 2026.4 dies here of SIGFPE: AMX, a float32 file, bf16 and one thread (docs/latency.md)",
                where=deployment.label,
                remedy="Use --threads 2, or --precision fp32",
            )
    if not crashing:
        return list(deployments), None
    changed = [
        deployment.model_copy(update={"properties": {**deployment.properties, HINT: "f32"}})
        if deployment in meeting and HINT not in deployment.properties
        else deployment
        for deployment in deployments
    ]
    return changed, AVOIDED


def _is_affected(deployment: Deployment) -> bool:
    return (installed_version("openvino", deployment.environment) or "").startswith(AFFECTED)


def _meets_the_rest(deployment: Deployment, options: RunOptions) -> bool:
    """Whether only the release decides."""
    return (
        deployment.format == "openvino"
        and options.device == "CPU"
        and _threads(deployment, options) == 1
        and _may_be_bf16(deployment, options)
        and any(flag.startswith("amx") for flag in read_processor()[1])
        and not needs_extension(deployment.model_file)
        and SMALLER_WEIGHTS.search(deployment.model_file.read_bytes()) is None
    )


def _threads(deployment: Deployment, options: RunOptions) -> int:
    own = deployment.properties.get("INFERENCE_NUM_THREADS", "")
    return int(own) if own.isdigit() and own != "0" else options.threads or len(usable_cpus())


def _may_be_bf16(deployment: Deployment, options: RunOptions) -> bool:
    own = deployment.properties.get(HINT)
    return own == "bf16" if own else options.precision != "fp32"


def signal_name(code: int) -> str | None:
    """Of an exit status; None where it is no signal."""
    if code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
