"""The bill of materials of a wheel, in CycloneDX's format: every distribution that it brings along, with version,
licence and what needs it.

`cyclonedx-py` describes an environment; here it is given one that holds what the wheel depends on and nothing of what
develops it. The versions are those of the environment that builds the wheel, which `constraints.txt` pins.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shearling.console import log

FOR_DEVELOPERS = frozenset({"dev"})
"""Extras that nobody installs to use a wheel."""


def write_bill(wheel: Path, project: Path) -> Path:
    """Write `NAME-VERSION.cdx.json` beside a wheel.

    Args:
        wheel: what the bill is of.
        project: the directory of its `pyproject.toml`.

    Returns:
        The bill. Components that only an extra needs have the scope `optional`.

    Raises:
        PackageNotFoundError: the wheel needs what is not installed here.
        ValueError: cyclonedx-py made what breaks the schema.
    """
    metadata = _metadata(wheel)
    requirements = [
        requirement
        for requirement in map(Requirement, metadata.get_all("Requires-Dist", []))
        # An extra that brings another extra needs the distribution itself.
        if canonicalize_name(requirement.name) != canonicalize_name(metadata["Name"])
    ]
    required = _brought_by(requirements, frozenset(), absent=None)
    extras = frozenset(metadata.get_all("Provides-Extra", [])) - FOR_DEVELOPERS
    absent: set[str] = set()
    everything = required | _brought_by(requirements, extras, absent=absent)
    if absent:
        log.print(f"{wheel.name}: not in its bill, since not installed here: {', '.join(sorted(absent))}")
    bill = _describe_environment(everything.values(), project / "pyproject.toml")
    root = bill["metadata"]["component"]
    root["purl"] = f"pkg:pypi/{canonicalize_name(metadata['Name'])}@{metadata['Version']}"
    root["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    direct = {canonicalize_name(requirement.name) for requirement in requirements if _applies(requirement, extras)}
    names = {}
    for component in bill["components"]:
        names[component["bom-ref"]] = canonicalize_name(component["name"])
        component["scope"] = "required" if canonicalize_name(component["name"]) in required else "optional"
    for dependency in bill["dependencies"]:
        # cyclonedx-py takes those of developers for needed where something else brings them along.
        if dependency["ref"] == root["bom-ref"]:
            dependency["dependsOn"] = [name for name in dependency.get("dependsOn", ()) if names[name] in direct]
    text = json.dumps(bill, indent=2, sort_keys=True) + "\n"
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the bill of {wheel.name} breaks CycloneDX's schema: {error}")
    path = wheel.with_name(f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json")
    path.write_text(text, encoding="utf-8")
    return path


def _metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def _brought_by(
    requirements: Iterable[Requirement], extras: frozenset[str], *, absent: set[str] | None
) -> dict[str, importlib.metadata.Distribution]:
    """Normalised name -> installed distribution, for all that an installer would bring.

    Args:
        requirements: of a distribution.
        extras: of it that are asked for.
        absent: collects the names of those that are not installed; None lets them raise.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(requirement, extras) for requirement in requirements]
    while left:
        requirement, asked = left.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if not _applies(requirement, asked) or (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if absent is None:
                raise
            absent.add(name)
            continue
        left += [(Requirement(text), wanted) for text in found[name].requires or ()]
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))


def _describe_environment(distributions: Iterable[importlib.metadata.Distribution], pyproject: Path) -> Any:
    """What cyclonedx-py says of an environment with these alone."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary) / "environment"
        venv.create(environment, with_pip=False)
        (packages,) = environment.glob("lib/python*/site-packages")
        for distribution in distributions:
            information = _information(distribution)
            (packages / information.name).symlink_to(information)
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(pyproject)]
        # What becomes of it is validated.
        options = ["--mc-type", "library", "--sv", "1.6", "--output-reproducible", "--no-validate"]
        python = str(environment / "bin" / "python")
        done = subprocess.run([*command, *options, python], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"cyclonedx-py cannot describe {pyproject}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _information(distribution: importlib.metadata.Distribution) -> Path:
    """Its directory `NAME-VERSION.dist-info`."""
    (file,) = (
        file
        for file in distribution.files or ()
        if file.name == "METADATA" and file.parent.name.endswith(".dist-info") and len(file.parts) == 2
    )
    return Path(str(distribution.locate_file(file))).resolve().parent
