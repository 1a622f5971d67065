"""Masks: one bit a weight, and nothing that was packed comes back different."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from shearling.elastic.mask import check_masked_zeros, count_pruned, load_masks, pack_mask, save_masks, unpack_mask
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing


@given(st.integers(1, 9), st.integers(1, 41), st.integers(0, 2**31))
def test_packing_round_trips(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_mask(mask)
    assert packed.numel() == -(-rows * columns // 8)
    assert torch.equal(unpack_mask(packed, (rows, columns)), mask)


def test_layout_is_the_documented_one():
    mask = torch.tensor([[True, False, False, False, True], [False, False, False, True, True]])
    assert pack_mask(mask).tolist() == [0b00010001, 0b00000011]


def test_file_round_trips_and_is_small(tmp_path):
    masks = {f"model.layers.{index}.up": torch.rand(33, 17) < 0.5 for index in range(12)}
    save_masks(tmp_path / "mask.safetensors", masks)
    loaded = load_masks(tmp_path / "mask.safetensors")
    assert loaded.keys() == masks.keys()
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())
    assert count_pruned(loaded) == {name: int((~mask).sum()) for name, mask in masks.items()}


def test_padding_and_length_are_checked():
    packed = pack_mask(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ArtefactCorrupt, match="padding"):
        unpack_mask(packed | 0b1000, (1, 3))
    with pytest.raises(ArtefactCorrupt, match="shape"):
        unpack_mask(packed, (1, 9))
    with pytest.raises(ArtefactCorrupt, match="int64"):
        unpack_mask(packed.long(), (1, 3))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"packing": "other"}, {"shapes": "{}"}, {"shapes": "{"}, {"shapes": '{"b": [2, 4]}'}, {"shapes": "[1]"}],
)
def test_files_that_are_no_mask_files(metadata, tmp_path):
    path = tmp_path / "mask.safetensors"
    if metadata is not None and "shapes" in metadata:
        metadata = {"packing": "uint8-bits-lsb-first-row-major", **metadata}
    save_file({"a": pack_mask(torch.ones(2, 4, dtype=torch.bool))}, path, metadata=metadata)
    with pytest.raises(ArtefactCorrupt):
        load_masks(path)


@pytest.mark.parametrize("shape", ['[2, "4"]', "[2, -4]", "[8]", "8", "null", "[2.0, 4]", "[true, 8]"])
def test_shapes_that_are_no_shapes(shape, tmp_path):
    path = tmp_path / "mask.safetensors"
    metadata = {"packing": "uint8-bits-lsb-first-row-major", "shapes": f'{{"a": {shape}}}'}
    save_file({"a": pack_mask(torch.ones(2, 4, dtype=torch.bool))}, path, metadata=metadata)
    with pytest.raises(ArtefactCorrupt):
        load_masks(path)


@pytest.mark.parametrize(("shape", "size"), [([0, 4], 0), ([2, 4, 1], 1), ([8], 1)])
def test_shapes_that_would_fit_their_bytes_and_are_none(shape, size, tmp_path):
    path = tmp_path / "mask.safetensors"
    metadata = {"packing": "uint8-bits-lsb-first-row-major", "shapes": json.dumps({"a": shape})}
    save_file({"a": torch.zeros(size, dtype=torch.uint8)}, path, metadata=metadata)
    with pytest.raises(ArtefactCorrupt, match="is not the shape of a mask"):
        load_masks(path)


def test_another_packing_is_refused_whatever_else_fits(tmp_path):
    path = tmp_path / "mask.safetensors"
    metadata = {"packing": "uint8-bits-msb-first-row-major", "shapes": '{"a": [2, 4]}'}
    save_file({"a": pack_mask(torch.ones(2, 4, dtype=torch.bool))}, path, metadata=metadata)
    with pytest.raises(ArtefactCorrupt, match="packing is"):
        load_masks(path)


def test_the_same_masks_are_the_same_bytes(tmp_path):
    masks = {name: torch.rand(5, 7) < 0.5 for name in ("a", "b")}
    written = set()
    for _ in range(12):
        save_masks(tmp_path / "mask.safetensors", masks)
        written.add((tmp_path / "mask.safetensors").read_bytes())
    assert len(written) == 1


def test_missing_and_truncated(tmp_path):
    path = tmp_path / "mask.safetensors"
    with pytest.raises(ArtefactMissing):
        load_masks(path)
    save_masks(path, {"a": torch.ones(40, 40, dtype=torch.bool)})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtefactCorrupt):
        load_masks(path)


def test_masks_of_another_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    for masks, message in (
        ({"7": torch.ones(3, 4, dtype=torch.bool)}, "lacks"),
        ({"0": torch.ones(4, 3, dtype=torch.bool)}, "mask is"),
        ({"0": torch.zeros(3, 4, dtype=torch.bool)}, "12 pruned entries"),
    ):
        with pytest.raises(ArtefactMismatch, match=message):
            check_masked_zeros(model, masks)
