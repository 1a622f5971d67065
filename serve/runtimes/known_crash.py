"""The crash of OpenVINO that is known, among models that are to be compared: who would die, and who beside them then
computes in float32, too. See `shearling.kernel.loading.known_crash`, and docs/latency.md.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from serve.visitor.ir_settings import make_properties
from shearling.errors import DeviceUnavailable
from shearling.kernel.loading.known_crash import AVOIDED, HINT, REFUSED, REMEDY, dies_in_affected, is_affected
from shearling.kernel.openvino_extension import needs_extension
from shearling.virtual_environment import installed_version


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
        if HINT in _properties(deployment, options):
            raise DeviceUnavailable(REFUSED, where=deployment.label, remedy=REMEDY)
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
    return is_affected(installed_version("openvino", deployment.environment) or "")


def _meets_the_rest(deployment: Deployment, options: RunOptions) -> bool:
    """Whether only the release decides. What is packed is looked at where it is loaded, and may be unpacked."""
    return (
        deployment.format == "openvino"
        and not needs_extension(deployment.model_file)
        and dies_in_affected(
            deployment.model_file.read_bytes(), _properties(deployment, options), device=options.device
        )
    )


def _properties(deployment: Deployment, options: RunOptions) -> dict[str, Any]:
    """With which it will be compiled."""
    asked = make_properties(options.precision, threads=options.threads, hint=options.hint, device=options.device)
    return {**asked, **deployment.properties}


def signal_name(code: int) -> str | None:
    """Of an exit status; None where it is no signal."""
    if code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
