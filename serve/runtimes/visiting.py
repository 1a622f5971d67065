"""Who is measured without anything of ours: models in somebody else's environment, and those compared with them.

A runtime there may be of any version, and so may Python. Both sides of a comparison are measured by the same code, so
whoever is compared with such a model in the same format is visited as well, where it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from shearling.errors import CheckpointUnsafe, DeviceUnavailable, PackageMissing, UsageError
from shearling.model.checkpoint_safety import check_configuration
from shearling.registry.runtimes import RUNTIMES
from shearling.virtual_environment import ask_python, interpreter_of, isolation

TOKENIZER = tuple(f"openvino_{part}.{suffix}" for part in ("tokenizer", "detokenizer") for suffix in ("xml", "bin"))
OLDEST_PYTHON = (3, 9)
QUESTION = """
import importlib.util, json, sys
names = json.loads(sys.argv[1])
print(json.dumps([list(sys.version_info[:2]), [name for name in names if importlib.util.find_spec(name) is None]]))
"""


def plan_visits(deployments: Sequence[Deployment], options: RunOptions) -> list[Deployment]:
    """Say of each deployment what measures it.

    Args:
        deployments: what is to be compared.
        options: how they will run.

    Returns:
        The same, with an `engine` where it is measured without anything of ours.

    Raises:
        PackageMissing: an environment is none, or lacks the runtime or numpy.
        DeviceUnavailable: a device that nothing there runs on.
        CheckpointUnsafe: a model of Hugging Face that could run code.
        UsageError: a property that means nothing there.
    """
    formats = {deployment.format for deployment in deployments if _asks_for_a_visit(deployment, options)}
    visited = [deployment for deployment in deployments if deployment.format in formats]
    for deployment in visited:
        _require_cpu(deployment, options.device)
        _check_properties(deployment)
        if deployment.format == "torch":
            _refuse_code(deployment)
        missing = missing_modules(deployment.environment, ("numpy", *RUNTIMES.get(deployment.format).visited))
        if missing:
            raise PackageMissing(
                f"{' and '.join(missing)} cannot be imported there",
                where=deployment.environment or "this environment",
                remedy=f"{interpreter_of(deployment.environment)} -m pip install {_installed_as(deployment, missing)}",
            )
    engines = {
        name: _engine(name, [item for item in visited if item.format == name], genai=options.genai) for name in formats
    }
    return [deployment.model_copy(update={"engine": engines.get(deployment.format)}) for deployment in deployments]


def _check_properties(deployment: Deployment) -> None:
    entry = RUNTIMES.get(deployment.format)
    strange = [name for name in deployment.properties if name not in entry.visited_properties]
    if strange and not entry.takes_any_property:
        raise UsageError(
            f"{strange[0]} is unknown where {deployment.format} runs without this toolchain",
            where=deployment.label,
            remedy="Leave it out, and environment= of what it is compared with",
        )


def _asks_for_a_visit(deployment: Deployment, options: RunOptions) -> bool:
    entry = RUNTIMES.get(deployment.format)
    lone_file = entry.file_suffix is not None and deployment.file is not None
    bare = deployment.format == "openvino" and not options.genai
    return bool(entry.visited) and (deployment.environment is not None or lone_file or bare)


def _engine(model_format: str, visited: Sequence[Deployment], *, genai: bool) -> str:
    """GenAI where all sides can, because that is what serves; OpenVINO alone runs any IR."""
    if model_format != "openvino":
        return model_format
    complete = genai and all(
        item.file is None and all((item.directory / name).is_file() for name in TOKENIZER) for item in visited
    )
    if complete and not any(missing_modules(item.environment, ("openvino_genai",)) for item in visited):
        return "genai"
    return "openvino"


def missing_modules(environment: Path | None, modules: Sequence[str]) -> list[str]:
    """Which modules an environment cannot import."""
    interpreter = interpreter_of(environment)
    if not interpreter.is_file():
        raise PackageMissing(
            "no virtual environment here: it has no bin/python",
            where=environment,
            remedy="Make one with python -m venv, and install the runtime into it",
        )
    done = ask_python(environment, [isolation(environment), "-c", QUESTION, json.dumps(list(modules))])
    try:
        version, missing = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise PackageMissing(f"its Python does not answer: {said[0]}", where=environment) from None
    if tuple(version) < OLDEST_PYTHON:
        raise PackageMissing(
            f"its Python is {'.'.join(map(str, version))}; measured are {'.'.join(map(str, OLDEST_PYTHON))} and newer",
            where=environment,
        )
    return [str(name) for name in missing]


def _installed_as(deployment: Deployment, missing: Sequence[str]) -> str:
    packages = RUNTIMES.get(deployment.format).packages
    return " ".join(packages.get(name, name) for name in missing)


def _require_cpu(deployment: Deployment, device: str) -> None:
    if deployment.format != "openvino" and device != "CPU":
        raise DeviceUnavailable(
            f"{RUNTIMES.get(deployment.format).title} is measured on the CPU alone in another environment",
            where=deployment.label,
            remedy="Use --device CPU, or leave environment= out",
        )


def _refuse_code(deployment: Deployment) -> None:
    """See `shearling.model.checkpoint_safety`; its own check asks the installed transformers, which may be another."""
    check_configuration(deployment.directory)
    adapter = deployment.directory / "adapter_config.json"
    if adapter.exists():
        raise CheckpointUnsafe("it would load the base model that its adapter names, from anywhere", where=adapter)
