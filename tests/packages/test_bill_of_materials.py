"""The bill of materials of a wheel: all that an installer would bring, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import bill_of_materials
import build_wheels
import pytest
from packaging.utils import canonicalize_name

from tests.support.once_per_run import once_per_run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    (built,) = once_per_run(tmp_path_factory, "toolchain-wheel", build_wheels.build_toolchain).glob("*.whl")
    # The bill is written beside it.
    return Path(shutil.copy(built, tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="module")
def bill(wheel) -> dict[str, Any]:
    path = bill_of_materials.write_bill(wheel, build_wheels.TOOLCHAIN)
    assert path.name == "shearling-0.1.0.cdx.json"
    return json.loads(path.read_text(encoding="utf-8"))


def named(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {canonicalize_name(component["name"]): component for component in bill["components"]}


def test_it_is_of_that_file(wheel, bill):
    component = bill["metadata"]["component"]
    assert component["purl"] == "pkg:pypi/shearling@0.1.0"
    assert component["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    assert component["licenses"][0]["license"]["id"] == "Apache-2.0"


def test_it_names_what_an_installer_brings_in_the_versions_of_this_environment(bill):
    components = named(bill)
    assert {name: component["version"] for name, component in components.items()} == {
        name: importlib.metadata.version(name) for name in components
    }
    # Of itself, of something that it needs, and of something that only an extra brings.
    assert [components[name]["scope"] for name in ("jinja2", "markupsafe", "torch", "sympy")] == [
        *("required", "required"),
        *("optional", "optional"),
    ]
    assert components["sympy"]["purl"] == f"pkg:pypi/sympy@{importlib.metadata.version('sympy')}"
    assert components.keys().isdisjoint({"shearling", "pytest", "ruff", "mypy", "hypothesis", "cyclonedx-bom", "pip"})


def test_its_graph_reaches_everything(bill):
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in bill["dependencies"]}
    root = bill["metadata"]["component"]["bom-ref"]
    reached, left = set(), [root]
    while left:
        if (reference := left.pop()) not in reached:
            reached.add(reference)
            left += needs[reference]
    assert reached == {root} | {component["bom-ref"] for component in bill["components"]}
    # Developers' own, though something else brings it along.
    assert not [reference for reference in needs[root] if reference.startswith("jsonschema==")]


def test_a_wheel_that_needs_what_is_not_here_has_no_bill(wheel, tmp_path):
    changed = tmp_path / wheel.name
    with ZipFile(wheel) as source, ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/METADATA"):
                content = content.replace(b"Requires-Dist: ", b"Requires-Dist: not-to-be-had\nRequires-Dist: ", 1)
            target.writestr(name, content)
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="not-to-be-had"):
        bill_of_materials.write_bill(changed, build_wheels.TOOLCHAIN)
    assert list(tmp_path.iterdir()) == [changed]


def test_what_breaks_the_schema_is_not_written(wheel, tmp_path, monkeypatch):
    moved = Path(shutil.copy(wheel, tmp_path))
    described = bill_of_materials._describe_environment
    monkeypatch.setattr(
        bill_of_materials, "_describe_environment", lambda *given: described(*given) | {"bomFormat": "none"}
    )
    with pytest.raises(ValueError, match="breaks CycloneDX's schema"):
        bill_of_materials.write_bill(moved, build_wheels.TOOLCHAIN)
    assert list(tmp_path.iterdir()) == [moved]
