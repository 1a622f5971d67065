from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from serve.runtimes.deployment import find_deployment
from shearling.artefact import open_artefact, write_artefact
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing, DocumentInvalid
from shearling.target import Target

FORMATS = {"openvino": "openvino", "onnx": "onnx", "torch": "model"}


@pytest.mark.parametrize(("choice", "part"), FORMATS.items())
def test_every_format_of_an_export(export: Path, choice, part: str) -> None:
    found = find_deployment(Target(export, format=choice))
    assert (found.format, found.directory) == (choice, export / part)
    assert found.manifest_sha256 == open_artefact(export, kind="export").sha256
    assert (found.context_tokens, found.vocabulary, found.end_ids) == (256, 400, (2,))
    assert 0 < found.weights_bytes < found.bytes


@pytest.mark.parametrize(("choice", "part"), FORMATS.items())
def test_a_part_is_the_same_deployment(export: Path, choice, part: str) -> None:
    found, whole = find_deployment(Target(export / part)), find_deployment(Target(export, format=choice))
    assert found.model_copy(update={"label": whole.label}) == whole


@pytest.mark.parametrize(("choice", "part"), FORMATS.items())
def test_a_bare_directory(copy_of, choice, part: str) -> None:
    found = find_deployment(Target(copy_of(part)))
    assert (found.format, found.manifest_sha256) == (choice, None)


def test_auto_prefers_what_runs_on_the_device(export: Path) -> None:
    assert find_deployment(Target(export)).format == "openvino"
    assert find_deployment(Target(export), device="CUDA").format == "onnx"


def test_another_format_is_refused_and_says_what_there_is(copy_of) -> None:
    with pytest.raises(ArtefactMissing, match="holds onnx; not openvino"):
        find_deployment(Target(copy_of("onnx"), format="openvino"))


def test_a_deployment_is_another_one_with_another_draft(export: Path, copy_of) -> None:
    draft = copy_of("openvino")
    target = Target(export, properties={"DRAFT": str(draft)})
    found, alone = find_deployment(target), find_deployment(Target(export))
    assert (found.draft_sha256, alone.draft_sha256) == (alone.weights_sha256, None)
    weights = draft / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert find_deployment(target) != found
    nowhere = Target(export, properties={"DRAFT": "nowhere"})
    assert find_deployment(nowhere).draft_sha256 is None


def test_a_file_is_told_from_another_whatever_its_name(tmp_path: Path) -> None:
    found = []
    for content in (b"one", b"another"):
        path = tmp_path / "model[0]?*.xml"
        path.write_text("<net/>")
        path.with_suffix(".bin").write_bytes(content)
        (tmp_path / "model0xy.xml").write_bytes(b"a neighbour that the name would match as a pattern")
        found.append(find_deployment(Target(path), visits=True))
        assert found[-1].weights_bytes == found[-1].bytes == len("<net/>") + len(content)
    assert found[0].weights_sha256 != found[1].weights_sha256


NEIGHBOURS = ("model.log", "model.safetensors", "model.onnx.json", "other.data")


def test_a_lone_ir_is_its_two_files(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text("<net/>")
    path.with_suffix(".bin").write_bytes(b"weights")
    before = find_deployment(Target(path), visits=True)
    for name in (*NEIGHBOURS, "model.onnx", "model.data"):
        (tmp_path / name).write_bytes(b"something else")
    assert find_deployment(Target(path), visits=True) == before
    assert before.weights_bytes == len("<net/>weights")


@pytest.mark.parametrize(
    "name", ["model.onnx.data", "model.onnx_data", "parts/weights.bin", f"{'long' * 50}.data", None]
)
def test_a_lone_onnx_graph_is_what_it_names(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "model.onnx"
    values = onnx.numpy_helper.from_array(np.arange(1024, dtype=np.float32), "values")
    output = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [1024])
    node = onnx.helper.make_node("Identity", ["values"], ["output"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [], [output], [values]))
    (tmp_path / "parts").mkdir()
    onnx.save(model, path, save_as_external_data=name is not None, location=name)
    held = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert len(held) == (1 if name is None else 2)
    before = find_deployment(Target(path), visits=True)
    for neighbour in (*NEIGHBOURS, "model.bin", "model.xml"):
        (tmp_path / neighbour).write_bytes(b"something else")
    assert find_deployment(Target(path), visits=True) == before
    assert before.weights_bytes == before.bytes == sum(file.stat().st_size for file in held)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no such directory"):
        find_deployment(Target(tmp_path / "absent"))
    with pytest.raises(ArtefactMissing, match="nothing here runs"):
        find_deployment(Target(tmp_path))


@pytest.mark.parametrize("part", ["", "openvino"])
def test_a_bit_flip_is_noticed_before_anything_runs(copy_of, part: str) -> None:
    root = copy_of()
    weights = root / "openvino" / "openvino_model.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtefactCorrupt, match="sha256"):
        find_deployment(Target(root / part))


def test_a_corrupt_or_absent_manifest(copy_of) -> None:
    root = copy_of()
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(DocumentInvalid):
        find_deployment(Target(root))
    manifest.unlink()
    with pytest.raises(ArtefactMissing, match="nothing here runs"):
        find_deployment(Target(root))


def test_an_artefact_that_does_not_run(tmp_path: Path) -> None:
    with write_artefact(tmp_path / "search", kind="search") as draft:
        (draft.directory / "journal.jsonl").write_text("{}\n")
    with pytest.raises(ArtefactMismatch, match="search artefact"):
        find_deployment(Target(tmp_path / "search"))
