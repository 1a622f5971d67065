"""The limits that decide, before training, whether a model can be exported after it."""

import importlib.metadata

import pytest

from shearling.errors import ExportUnavailable, ModelUnsupported
from shearling.model.export_support import ExportLimits, check_exportable, export_limits
from tests.support.tiny_models import FAMILIES

# torch 2.13 deprecates what torchao does while it is imported; optimum-intel imports torchao.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def test_every_family_of_the_tests_is_exportable_or_says_why() -> None:
    installed = importlib.metadata.version("transformers")
    for build in FAMILIES.values():
        model_type = build().config.model_type
        if export_limits(model_type).allow(installed):
            check_exportable(model_type)
        else:
            with pytest.raises(ExportUnavailable, match=r"pip install 'transformers>=4\.57,<=5\.0'"):
                check_exportable(model_type)


def test_unknown_architecture_lists_what_is_known() -> None:
    with pytest.raises(ExportUnavailable, match=r"model type 'nonesuch'.*llama") as caught:
        check_exportable("nonesuch")
    assert caught.value.exit_code == 4


def test_an_encoder_that_should_continue_texts_is_refused_with_the_head_that_it_has() -> None:
    with pytest.raises(ModelUnsupported, match='head = "classifier"') as caught:
        check_exportable("bert")
    assert caught.value.exit_code == 3
    check_exportable("bert", head="classifier")


def test_a_limit_is_compared_as_the_exporter_compares() -> None:
    limits = ExportLimits(minimum="4.57", maximum="5.0")
    assert limits.allow("5.0.0")
    assert limits.allow("4.57")
    assert not limits.allow("5.0.1")
    assert not limits.allow("5.5.4")
    assert not limits.allow("4.56.2")
    assert limits.specifier() == "transformers>=4.57,<=5.0"
    assert ExportLimits(None, None).allow("99.0")


def test_limits_follow_the_installed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "5.5.4" if name == "transformers" else version(name)
    )
    check_exportable("llama")
    with pytest.raises(ExportUnavailable, match=r"installed is 5\.5\.4"):
        check_exportable("gemma2")
