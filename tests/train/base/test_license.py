"""What a base knows of its licence: from the recipe, a GGUF file, or the card beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from shearling.model.gguf_header import GgufHeader
from tests.support.tiny_models import save_tiny
from train.base.artefact import import_base
from train.base.license import license_of_directory, license_of_gguf

LINK = "https://example.org/license"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        ("license: Apache-2.0", {"license": "apache-2.0"}),
        (
            f"license: other\nlicense_name: tiny\nlicense_link: {LINK}",
            {"license": "other", "license_name": "tiny", "license_link": LINK},
        ),
        (
            f"license: The Tiny License, v2\nlicense_link: {LINK}",
            {"license": "other", "license_name": "the-tiny-license-v2", "license_link": LINK},
        ),
        ("license: [mit, apache-2.0]", {}),
        ("license: 3", {}),
        ("license: ''", {}),
        ("language: en", {}),
        ("license: [", {}),
        ("- a list", {}),
    ],
)
def test_a_card_says_it_or_nothing_is_known(tmp_path, card, expected):
    assert license_of_directory(tmp_path) == {}
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n\n# Tiny\n")
    assert license_of_directory(tmp_path) == expected


def test_a_card_that_is_no_text_says_nothing(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert license_of_directory(tmp_path) == {}


def test_a_gguf_file_says_it_in_its_header():
    fields = {"general.license": "apache-2.0", "general.license.link": LINK, "general.name": "Tiny"}
    assert license_of_gguf(GgufHeader(Path(), fields)) == {"license": "apache-2.0", "license_link": LINK}
    assert license_of_gguf(GgufHeader(Path(), {"general.name": "Tiny"})) == {}


def test_the_recipe_knows_better_than_the_files(tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    stated = import_base(source, tmp_path / "stated", model_id="tiny/model")
    given = import_base(source, tmp_path / "given", model_id="tiny/model", license_id="llama3.2")
    assert stated.manifest.details["license"] == {"license": "mit"}
    assert given.manifest.details["license"] == {"license": "llama3.2"}
