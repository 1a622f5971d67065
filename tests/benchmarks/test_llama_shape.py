"""Random models for the tables of speed, at the size of a moment."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.llama_shape import main
from shearling.kernel.loading.ir_text import IrText
from shearling.kernel.loading.packed_operator import find_operators
from shearling.model.checkpoint import load_model

SHAPE = {"layers": 2, "hidden": 64, "feed-forward": 128, "heads": 4, "kv-heads": 2, "vocabulary": 512}


def write(output: Path, *arguments: str, **shape: int) -> int:
    sizes = [part for name, size in (SHAPE | shape).items() for part in (f"--{name}", str(size))]
    return main(["--output", str(output), *sizes, *arguments])


def node_types(directory: Path) -> set[str]:
    return set(re.findall(r'<layer [^>]*type="(\w+)"', (directory / "openvino_model.xml").read_text()))


def test_dense_packed_and_pruned_files_of_one_shape(tmp_path: Path) -> None:
    assert write(tmp_path / "shape", "--weight-format", "int8", "--sparsity", "0,0.5,2:4", "--peers") == 0
    # int4 of a directory that has int8, from the command of the tables.
    assert write(tmp_path / "shape", "--weight-format", "int4", "--group-size", "32", "--sparsity", "0.5") == 0
    written = {"dense-int8", "packed-int8", "sparse-int8-50", "sparse-int8-2-4", "dense-int4", "sparse-int4-50"}
    written |= {"model", "settings.json"}
    assert {path.name for path in (tmp_path / "shape").iterdir()} == written
    assert load_model(tmp_path / "shape" / "model").config.hidden_size == 64
    # Whole layers are found, as in the models of users: norms of ones would hide them.
    for name, packed in (("dense-int8", False), ("packed-int8", True), ("sparse-int8-50", True)):
        assert ("SparseLayer" in node_types(tmp_path / "shape" / name)) == packed
    sizes = {
        name: (tmp_path / "shape" / name / "openvino_model.bin").stat().st_size
        for name in ("packed-int8", "sparse-int8-50")
    }
    assert sizes["sparse-int8-50"] < sizes["packed-int8"]
    for name, pairs in (("sparse-int8-50", False), ("sparse-int8-2-4", True)):
        xml = tmp_path / "shape" / name / "openvino_model.xml"
        operators = find_operators(IrText(xml.read_bytes()), np.fromfile(xml.with_suffix(".bin"), np.uint8))
        parts = [part for operator in operators if operator.kind == "SparseLayer" for part in operator.parts]
        assert parts
        assert all(part.two_of_four for part in parts) == pairs


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [(("--group-size", "32"), {}, "group_size = 16, not 32"), ((), {"layers": 3}, "layers = 2, not 3")],
)
def test_another_shape_needs_another_directory(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    shape: dict[str, int],
    message: str,
) -> None:
    options = ("--weight-format", "int4", "--sparsity", "")
    assert write(tmp_path / "shape", *options, "--group-size", "16") == 0
    with pytest.raises(SystemExit, match="2"):
        write(tmp_path / "shape", *options, "--group-size", "16", *arguments, **shape)
    assert message in capsys.readouterr().err


def test_what_a_kill_has_left_is_made_anew(tmp_path: Path) -> None:
    assert write(tmp_path / "shape", "--weight-format", "int8", "--sparsity", "") == 0
    (tmp_path / "shape" / "dense-int8").rename(tmp_path / "shape" / ".dense-int8.partial")
    (tmp_path / "shape" / "raw").mkdir()
    assert write(tmp_path / "shape", "--weight-format", "int8", "--sparsity", "0.5") == 0
    written = {path.name for path in (tmp_path / "shape").iterdir()}
    assert written == {"dense-int8", "sparse-int8-50", "settings.json"}
