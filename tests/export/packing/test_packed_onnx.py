"""Sparse ONNX exports: what is packed, that the very same numbers are, and that the file computes what the stock one
computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.formats.onnx import MODEL_ONNX, check_external_data, onnx_logits, write_onnx
from shearling.errors import ArtefactCorrupt, PackageMissing
from shearling.kernel import library, packed_format
from shearling.kernel.onnx_runtime_extension import DOMAIN, needs_operators
from shearling.kernel.packed_format import read_header, unpack
from tests.support.exported_files import count_zeros, stored_as
from tests.support.longer import mostly_slow
from tests.support.matrices import dense
from tests.support.onnxruntime_headers import needs_headers
from tests.support.packing_cases import BLOCKS, SHARES
from tests.support.tiny_models import pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions


@pytest.fixture(scope="module", params=mostly_slow(["int8", "bf16", "int4"], fast=["int8"]))
def both(request, tmp_path_factory):
    """The same pruned model, stock and sparse."""
    weights = request.param
    directory = tmp_path_factory.mktemp(weights)
    model, masks = pruned_model("llama_tied_gqa", share=SHARES[weights])
    assert write_onnx(model, tiny_tokenizer(), directory / "stock" / "onnx", stored_as(weights)) is None
    packing = write_onnx(model, tiny_tokenizer(), directory / "sparse" / "onnx", stored_as(weights, kernel="sparse"))
    return directory, packing, masks, weights


def read_initializers(directory):
    graph = onnx.load(directory / "onnx" / MODEL_ONNX).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def stock_weight(initializers, name, weights):
    """[out, in] float64 of a stock file, by the definition of its storage alone."""
    if weights == "bf16":
        return initializers[f"{name}_bf16"].astype(np.float64)
    bits = int(weights.removeprefix("int"))
    blocks = initializers[f"{name}_Q{bits}"]
    if bits == 4:
        blocks = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], -1)
    scales = initializers[f"{name}_scales"].reshape(*blocks.shape[:2], 1).astype(np.float64)
    return (scales * (blocks.astype(np.float64) - 2 ** (bits - 1))).reshape(len(blocks), -1)


def test_every_weight_is_packed_or_kept_for_a_reason_and_the_file_is_smaller(both):
    directory, packing, masks, _ = both
    packed = {layer.path for layer in packing.layers}
    assert packed | set(packing.kept) >= set(masks)
    assert not packed & set(packing.kept)
    # The narrowest are filled up to whole panels, and are kept for that.
    assert packed >= {path for path, mask in masks.items() if mask.shape[0] > 20}
    assert packing.operators == {"SparseLinear": len(packed)}
    assert all("nodes" in reason or "too little" in reason for reason in packing.kept.values())
    sizes = {kind: (directory / kind / "onnx" / "model.onnx.data").stat().st_size for kind in ("stock", "sparse")}
    saved = packing.bytes_before - packing.bytes_after
    assert sizes["stock"] - sizes["sparse"] == pytest.approx(saved, rel=0.1)


def test_the_numbers_are_those_of_the_stock_file(both):
    directory, packing, _, weights = both
    stock, sparse = read_initializers(directory / "stock"), read_initializers(directory / "sparse")
    for layer in packing.layers:
        expected = stock_weight(stock, f"{layer.path}.weight", weights)[:, : layer.shape[1]]
        assert np.array_equal(dense(unpack(sparse[f"{layer.path}.weight_packed"])), expected)
        assert layer.zeros == int((expected == 0).sum()) or weights == "bf16"
    packed = {f"{layer.path}.weight" for layer in packing.layers}
    rest = {name: array for name, array in stock.items() if not any(name.startswith(f"{one}_") for one in packed)}
    assert {name for name in sparse if not name.endswith("_packed")} == set(rest)


def test_the_graph_is_valid_and_says_what_it_needs(both):
    directory, packing, _, _ = both
    path = directory / "sparse" / "onnx" / MODEL_ONNX
    check_external_data(path)
    assert needs_operators(path)
    assert not needs_operators(directory / "stock" / "onnx" / MODEL_ONNX)
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import}[DOMAIN] == 1
    assert [node.name for node in model.graph.node if node.domain == DOMAIN] == [layer.node for layer in packing.layers]


def test_zeros_are_counted_in_the_packed_weights(both):
    directory, _, masks, _ = both
    (check,) = count_zeros(directory / "sparse", masks).values()
    assert check.zeros == check.pruned > 0
    assert check == count_zeros(directory / "stock", masks)["onnx"]


def test_a_packed_weight_that_lies_is_not_counted(both, tmp_path):
    directory, packing, masks, _ = both
    model = onnx.load(directory / "sparse" / "onnx" / MODEL_ONNX)
    name = f"{packing.layers[0].path}.weight_packed"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    content = np.array(numpy_helper.to_array(tensor))
    content[read_header(content).sections[2]] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(content, name))
    (tmp_path / "onnx").mkdir()
    onnx.save(model, tmp_path / "onnx" / MODEL_ONNX)
    with pytest.raises(ArtefactCorrupt, match=f"{name}: a packed weight is corrupt"):
        count_zeros(tmp_path, masks)


def _no_library() -> None:
    raise PackageMissing("openvino is not installed", remedy="Install it")


def _too_slow(*_: object) -> None:
    raise AssertionError("numpy packs or unpacks what compiled code could")


@pytest.fixture
def asked_again():
    """Whether the library is there is asked once; not for what a test pretends."""
    library._has_library.cache_clear()
    yield
    library._has_library.cache_clear()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_compiled_code_packs_and_without_it_numpy_does_to_the_same_bytes(tmp_path, monkeypatch, asked_again, weights):
    model, masks = pruned_model("llama_tied_gqa", share=SHARES[weights])
    found = []
    for name in ("compiled", "numpy"):
        directory = tmp_path / name
        with monkeypatch.context() as patch:
            if name == "compiled":
                for slow in ("_to_blocks", "_from_blocks"):
                    patch.setattr(packed_format, slow, _too_slow)
            else:
                patch.setattr(library, "load_library", _no_library)
            write_onnx(model, tiny_tokenizer(), directory / "onnx", stored_as(weights, kernel="sparse"))
            found.append((read_initializers(directory), count_zeros(directory, masks)))
        library._has_library.cache_clear()
    (compiled, zeros), (by_numpy, same_zeros) = found
    assert zeros == same_zeros
    assert any(name.endswith("_packed") for name in compiled)
    assert {name: array.tobytes() for name, array in compiled.items()} == {
        name: array.tobytes() for name, array in by_numpy.items()
    }


def test_too_few_zeros_leave_a_stock_file(tmp_path):
    model, masks = pruned_model("llama_tied_gqa", share=0.05)
    packing = write_onnx(model, tiny_tokenizer(), tmp_path, stored_as("bf16", kernel="sparse"))
    assert (packing.operators, packing.layers) == ({}, ())
    assert set(packing.kept) >= set(masks)
    assert not needs_operators(tmp_path / MODEL_ONNX)


@needs_headers
def test_logits_are_those_of_the_stock_file(both):
    directory, _, _, weights = both
    stock, sparse = (list(onnx_logits(directory / kind / "onnx", BLOCKS)) for kind in ("stock", "sparse"))
    spread = max(float(np.std(logits)) for logits in stock)
    # Either product rounds the activations of integer weights, the packed one to 16 bits where there are few rows.
    limit = {"int8": 0.1, "int4": 0.1, "bf16": 0.02}[weights]
    for left, right in zip(stock, sparse, strict=True):
        assert np.abs(left - right).max() <= limit * spread
