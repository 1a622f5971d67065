"""Compiles the operators from shearling/kernel/cpp of this checkout into the wheel, as the toolchain compiles them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE / "src")]

from shearling_runtime.build_facts import DIRECTORY, FACTS, BuildFacts  # noqa: E402  (the path comes first)

from shearling.kernel import compilation  # noqa: E402  (the path comes first)
from shearling.kernel.build import build_kernels  # noqa: E402  (the path comes first)
from shearling.kernel.openvino_extension import OPERATOR_SET, PREFERRED_PROPERTIES  # noqa: E402  (the path comes first)

SITE_PACKAGES = "$ORIGIN/../.."
OPTIONS = ("-s",)
"""No symbols."""


class BuildWithLibraries(build_py):
    """The Python, and the libraries beside it; an editable installation has none, its checkout compiles."""

    def run(self) -> None:
        """See setuptools."""
        super().run()
        if not self.editable_mode:
            require_release(self.distribution.get_version())
            package = Path(self.build_lib) / "shearling_runtime"
            build_libraries(package / DIRECTORY.name)
            # What the toolchain does to a model when it loads it, and where it keeps what it measured.
            loading = ROOT / "shearling" / "kernel" / "loading"
            shutil.copytree(loading, package / "loading", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(ROOT / "shearling" / "cache.py", package)


class PlatformWheel(bdist_wheel):
    """For one platform, and for every version of Python, which the libraries do not know of."""

    def get_tag(self) -> tuple[str, str, str]:
        """See setuptools."""
        return "py3", "none", super().get_tag()[2]


class DistributionWithLibraries(Distribution):
    """Belongs where libraries of one platform are installed."""

    def has_ext_modules(self) -> bool:
        """See setuptools."""
        return True


def require_release(version: str) -> None:
    """Stop where another OpenVINO is installed than the version of the wheel says."""
    named, installed = version.rpartition(".")[0], compilation.openvino_release()
    if named != installed:
        raise SystemExit(
            f"error: shearling-runtime {version} is for OpenVINO {named}, {installed} is installed. "
            "Install the other, or change the version in packages/runtime/pyproject.toml"
        )


def build_libraries(directory: Path) -> None:
    """Compile both libraries, and write down what they are."""
    directory.mkdir(parents=True, exist_ok=True)
    plans = (
        compilation.openvino_plan(search_path=f"{SITE_PACKAGES}/openvino/libs"),
        compilation.onnx_runtime_plan(),
    )
    compiler = compilation.find_compiler()
    kernels = build_kernels()
    for plan in plans:
        compilation.compile_library(
            directory / plan.name, plan=plan, kernels=kernels, compiler=compiler, options=OPTIONS
        )
    facts = BuildFacts(
        openvino=compilation.openvino_release(),
        onnxruntime=f"1.{compilation.LEAST_HEADER_VERSION}",
        openvino_library=compilation.OPENVINO_LIBRARY,
        onnxruntime_library=compilation.ONNX_RUNTIME_LIBRARY,
        operator_set=OPERATOR_SET,
        properties=dict(PREFERRED_PROPERTIES),
        sources=compilation.digest_of(compilation.source_files(compilation.SOURCES)),
    )
    (directory / FACTS).write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n", encoding="utf-8")


setup(
    distclass=DistributionWithLibraries,
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel},
)
