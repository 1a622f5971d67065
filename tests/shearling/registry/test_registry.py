"""Tables of named members: what they refuse, and what another package may add."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pydantic
import pytest

from shearling.errors import EnvironmentFault, UsageError
from shearling.registry.registry import Entry, NameIn, Registry, SingleEntry, load_implementation
from tests.support.toy_package import toy_package

GROUP = "shearling.test_animals"


@dataclass(frozen=True, kw_only=True)
class Animal(SingleEntry):
    """A record with an attribute of its own."""

    legs: int


def animal(name: str, legs: int = 4) -> Animal:
    return Animal(name=name, summary=f"A {name}.", implementation="json:loads", legs=legs)


@pytest.fixture
def animals() -> Registry[Animal]:
    return Registry(noun="farm animal", group=GROUP, entry_type=Animal, entries=[animal("sheep"), animal("crane", 2)])


def test_members_are_listed_in_order_and_found_by_name(animals):
    assert animals.names() == ("sheep", "crane")
    assert [member.legs for member in animals] == [4, 2]
    assert animals.get("crane").legs == 2
    animals.register(animal("goat"))
    assert animals.names() == ("sheep", "crane", "goat")


def test_a_name_is_taken_once(animals):
    with pytest.raises(EnvironmentFault, match="two of the farm animal 'sheep'") as caught:
        animals.register(animal("sheep"))
    assert caught.value.where == GROUP
    assert animals.names() == ("sheep", "crane")


def test_a_record_of_another_class_is_refused(animals):
    with pytest.raises(EnvironmentFault, match="described by Animal, found Entry") as caught:
        animals.register(Entry(name="stone", summary="No animal.", implementation=None))
    assert "docs/extending.md" in caught.value.remedy


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all(animals):
    with pytest.raises(UsageError) as caught:
        animals.get("sheeep", where="--animal")
    assert (caught.value.exit_code, caught.value.where) == (2, "--animal")
    assert caught.value.message == "there is no farm animal 'sheeep'"
    assert caught.value.remedy == "Did you mean 'sheep'? There are: sheep, crane"
    with pytest.raises(UsageError) as caught:
        animals.get("xylophone")
    assert caught.value.remedy == "There are: sheep, crane"


def test_an_implementation_is_imported_when_it_is_used(animals):
    assert animals.get("sheep").load() is json.loads
    assert load_implementation(len) is len
    for wrong in ("no_such_module_anywhere:thing", "json:no_such_function"):
        with pytest.raises(EnvironmentFault, match="cannot be imported") as caught:
            load_implementation(wrong)
        assert caught.value.where == wrong


def test_a_field_of_a_recipe_names_a_member(animals):
    class Farm(pydantic.BaseModel):
        favourite: Annotated[str, NameIn(animals)]

    assert Farm(favourite="crane").favourite == "crane"
    assert Farm.model_json_schema()["properties"]["favourite"]["enum"] == ["sheep", "crane"]
    with pytest.raises(pydantic.ValidationError, match="Did you mean 'crane'"):
        Farm(favourite="cran")


PROGRAM = f"""
from shearling.command_line import JsonFlag, Result, make_app, run_command
from shearling.registry.registry import Registry, SingleEntry

app = make_app("A command that lists a table.")

@app.command()
def show(as_json: JsonFlag = False) -> Result:
    table = Registry(
        noun="farm animal",
        group={GROUP!r},
        entry_type=SingleEntry,
        entries=[SingleEntry(name="sheep", summary="A sheep.", implementation="json:loads")],
    )
    return Result({{"names": list(table.names()), "says": [entry.load()("3") for entry in table]}}, "")

run_command(app, program="show", argv=["--json"])
"""

TOY = """
from shearling.registry.registry import SingleEntry

def double(text):
    return 2 * int(text)

ENTRY = SingleEntry(name="crane", summary="A bird.", implementation="toy_crane:double")
"""


def test_one_broken_package_is_told_again_and_nothing_counts_twice(animals, monkeypatch):
    class Point:
        value = "elsewhere:ENTRY"

        def __init__(self, name, entry):
            self.name, self.entry = name, entry

        def load(self):
            if self.entry is None:
                raise RuntimeError("no")
            return self.entry

    points = [Point("a", animal("goat")), Point("b", None)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match="'b' cannot be imported: RuntimeError: no"):
            animals.names()


def run_with(environment: dict[str, str], *, code: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_another_package_adds_a_member(tmp_path):
    answer = run_with(toy_package(tmp_path / "toy", group=GROUP, name="crane", code=TOY), code=0)
    assert answer["names"] == ["sheep", "crane"]
    assert answer["says"] == [3, 6]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("def broken(:", "SyntaxError"),
        ("NOTHING = 1", "ENTRY"),
        ("ENTRY = 1", "found int"),
        (TOY.replace('name="crane"', 'name="sheep"'), "two of the farm animal 'sheep'"),
    ],
    ids=["import", "syntax", "attribute", "class", "duplicate"],
)
def test_a_broken_package_is_a_fault_of_the_environment(tmp_path, code, said):
    answer = run_with(toy_package(tmp_path / "toy", group=GROUP, name="crane", code=code), code=4)
    assert said in answer["message"]
    if "found" not in said and "two of" not in said:
        assert "toy_crane" in answer["where"]


BOTH = """
from export.formats.export_format import FormatWriter
from shearling.registry.export_formats import ExportFormat
from shearling.registry.number_formats import NUMBER_FORMATS
from dataclasses import replace

NUMBERS = replace(NUMBER_FORMATS.get("fp32"), name="own_numbers")
FORMAT = ExportFormat(
    name="own_format", summary="Own.", directory="own", implementation={"language_model": FormatWriter}
)
"""


@pytest.mark.parametrize("first", ["EXPORT_FORMATS", "NUMBER_FORMATS"])
def test_one_module_may_bring_members_of_several_tables(tmp_path, first):
    """While it is imported for one of them, it asks another for a member of this project."""
    environment = toy_package(tmp_path, group="shearling.number_formats", name="both", code=BOTH)
    points = tmp_path / "toy-0.1.dist-info" / "entry_points.txt"
    points.write_text(
        "[shearling.number_formats]\nboth = toy_both:NUMBERS\n[shearling.export_formats]\nboth = toy_both:FORMAT\n"
    )
    program = f"""
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
print({first}.names())
print(*EXPORT_FORMATS.names(), *NUMBER_FORMATS.names())
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"own_numbers", "own_format"} <= set(done.stdout.split())
