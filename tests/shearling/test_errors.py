"""The exception tree is the table of exit codes."""

from __future__ import annotations

import inspect

import pytest

from shearling import errors

CODES = {errors.CheckFailed: 1, errors.UsageError: 2, errors.ArtefactError: 3, errors.EnvironmentFault: 4}
CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, errors.ShearlingError)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_class_has_the_code_of_its_branch(error):
    expected = next((code for branch, code in CODES.items() if issubclass(error, branch)), 5)
    assert error.exit_code == expected
    assert error.__doc__


def test_the_drawn_tree_is_complete():
    assert [item.__name__ for item in CLASSES if f"{item.__name__} " not in errors.__doc__] == []


def test_one_line_says_where_what_and_what_to_do():
    assert (
        str(errors.ArtefactMissing("no such file", where="a/b.json", remedy="Check the path"))
        == "a/b.json: no such file. Check the path"
    )
    assert str(errors.ArtefactMissing("no such file")) == "no such file"
    asked = errors.RecipeInvalid("unknown key, did you mean 'prompt'?", remedy="The schema is here")
    assert str(asked) == "unknown key, did you mean 'prompt'? The schema is here"
