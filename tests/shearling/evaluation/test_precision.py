"""The arithmetic is that of the device that computes, whatever else is in the machine."""

from __future__ import annotations

import pytest

from search.measuring import measured_precision
from shearling.evaluation.evaluator import torch_scorer
from shearling.evaluation.precision import resolve_precision
from shearling.executors.executor import Workforce
from tests.support.tiny_models import tiny_tokenizer
from tests.support.tiny_runs import tiny_network


def have(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, cuda_bf16: bool, cpu_bf16: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: cuda_bf16)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: cpu_bf16)


@pytest.mark.parametrize(
    ("cuda", "cuda_bf16", "cpu_bf16", "trainer", "on_cpu", "on_cuda"),
    [
        (True, True, False, "bf16", "fp32", "bf16"),
        (True, False, True, "fp32", "bf16", "fp32"),
        (False, True, True, "bf16", "bf16", "fp32"),
        (False, True, False, "fp32", "fp32", "fp32"),
    ],
)
def test_auto_is_what_the_device_has(
    cuda: bool,
    cuda_bf16: bool,
    cpu_bf16: bool,
    trainer: str,
    on_cpu: str,
    on_cuda: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have(monkeypatch, cuda=cuda, cuda_bf16=cuda_bf16, cpu_bf16=cpu_bf16)
    assert resolve_precision("auto") == trainer
    assert resolve_precision("auto", device="cpu") == on_cpu
    assert resolve_precision("auto", device="cuda") == on_cuda
    assert resolve_precision("bf16", device="cpu") == "bf16"


def test_a_model_on_the_cpu_computes_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cuda=True, cuda_bf16=True, cpu_bf16=False)
    scorer = torch_scorer(tiny_network(masked=True).model, tiny_tokenizer(), precision="auto")
    assert not scorer.bf16


def test_a_search_is_in_the_arithmetic_of_what_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, cuda=True, cuda_bf16=True, cpu_bf16=False)
    assert measured_precision("auto", Workforce()) == "bf16"
    assert measured_precision("auto", Workforce("processes", workers=2)) == "fp32"
    assert measured_precision("auto", Workforce("ray", gpus_per_worker=0.5)) == "bf16"
    assert measured_precision("auto", Workforce("ray")) == "fp32"
