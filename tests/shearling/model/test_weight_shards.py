"""Checkpoints written tensor by tensor: the bytes of the library's own writer, complete or absent."""

from __future__ import annotations

import filecmp
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from shearling.errors import ShapeMismatch, ShearlingError
from shearling.model.checkpoint import hash_weights
from shearling.model.checkpoint_safety import check_checkpoint
from shearling.model.weight_shards import StoredTensor, StoredWeights, writing_weights
from tests.support.tiny_models import FAMILIES, save_tiny


def described(model):
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    return {name: StoredTensor.of(tensor) for name, tensor in model.state_dict().items() if name not in tied}


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_the_bytes_are_those_of_transformers(shard_bytes, tmp_path):
    model = FAMILIES["llama"]()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    (tmp_path / "ours").mkdir()
    state = model.state_dict()
    with writing_weights(tmp_path / "ours", described(model), max_shard_bytes=shard_bytes) as writer:
        for name in reversed(state):
            writer.write(name, state[name])
    files = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert (len(files) > 2) == (shard_bytes < 10**9)
    _, different, odd = filecmp.cmpfiles(tmp_path / "ours", tmp_path / "theirs", files, shallow=False)
    assert (different, odd) == ([], [])


def test_types_are_laid_out_as_the_library_does(tmp_path):
    names = ("int64", "float64", "float32", "int32", "bfloat16", "float16", "int16", "int8", "uint8", "bool")
    tensors = {f"t.{name}": torch.ones(3, 2).to(getattr(torch, name)) for name in names}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with writing_weights(tmp_path, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_a_checkpoint_is_read_one_tensor_at_a_time(tmp_path):
    directory = save_tiny("llama_tied_gqa", tmp_path / "m")
    stored, model = StoredWeights(directory), FAMILIES["llama_tied_gqa"]()
    assert stored.parameters == model.num_parameters()
    assert stored.size_bytes == 4 * stored.parameters
    for name, parameter in model.named_parameters():
        assert torch.equal(stored.read(name), parameter)


def test_what_was_not_announced_or_comes_twice_is_refused_and_nothing_appears(tmp_path):
    said = {"a": StoredTensor("float32", (2,)), "b": StoredTensor("float32", (2,))}
    (tmp_path / "whole").mkdir()
    for name, tensor in (("c", torch.ones(2)), ("a", torch.ones(3)), ("a", torch.ones(2, dtype=torch.float16))):
        with pytest.raises(ShapeMismatch), writing_weights(tmp_path, said) as writer:
            writer.write(name, tensor)
    with writing_weights(tmp_path / "whole", said) as writer:
        writer.write("a", torch.ones(2))
        with pytest.raises(ShearlingError, match="twice"):
            writer.write("a", torch.ones(2))
        writer.write("b", torch.ones(2))
    with pytest.raises(ShearlingError, match="1 tensors were not written"), writing_weights(tmp_path, said) as writer:
        writer.write("b", torch.ones(2))
    assert [path.name for path in tmp_path.rglob("*")] == ["whole", "model.safetensors"]


def test_a_killed_writer_leaves_no_shard_that_could_be_read(tmp_path):
    script = f"""
        import os, signal, torch
        from pathlib import Path
        from shearling.model.weight_shards import StoredTensor, writing_weights
        said = {{name: StoredTensor("float32", (1000,)) for name in "abcd"}}
        with writing_weights(Path({str(tmp_path)!r}), said, max_shard_bytes=8000) as writer:
            for name in "abc":
                writer.write(name, torch.ones(1000))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    found = {path.name for path in tmp_path.glob("*.safetensors")}
    assert found == {"model-00001-of-00002.safetensors"}
    with pytest.raises(ShearlingError):
        check_checkpoint(tmp_path)


def test_a_disk_that_is_too_small_is_an_oserror_and_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with (
            pytest.raises(OSError, match=os.strerror(27)),
            writing_weights(tmp_path, {"a": StoredTensor("float32", (10_000,))}) as writer,
        ):
            writer.write("a", torch.ones(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_the_weights_does_not_depend_on_the_shards(tmp_path):
    directory, model = save_tiny("llama", tmp_path / "m"), FAMILIES["llama"]()
    (tmp_path / "sharded").mkdir()
    with writing_weights(tmp_path / "sharded", described(model), max_shard_bytes=50_000) as writer:
        for name, tensor in model.state_dict().items():
            writer.write(name, tensor)
    assert hash_weights(tmp_path / "sharded") == hash_weights(directory) == hash_weights(model)
