"""Every JSON row of the fault table: refused with path and position, each in under a second."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearling.errors import ArtefactMissing, DocumentInvalid
from shearling.strict_json import (
    MAX_BYTES,
    MAX_DEPTH,
    MOST_TOLD,
    Document,
    describe_validation_error,
    parse_json,
    read_document,
    read_json,
    write_document,
    write_json,
    write_text,
)


# Processor time, so that a busy machine fails no test.
class Pair(Document):
    schema_: Literal["shearling.pair/1"] = pydantic.Field("shearling.pair/1", alias="schema")
    name: str
    count: int = pydantic.Field(ge=0)
    share: float = 0.5
    tags: tuple[str, ...] = ()


GOOD = '{"schema": "shearling.pair/1", "name": "a", "count": 3, "tags": ["x"]}'

FAULTS = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t ", "empty"),
    "truncated": (GOOD[:40].encode(), "line 1, column"),
    "trailing": (GOOD.encode() + b"}", "line 1, column"),
    "nan": (b'{"name": NaN}', "NaN is not JSON"),
    "infinity": (b'{"name": -Infinity}', "-Infinity is not JSON"),
    "duplicate": (b'{"name": 1,\n "name": 2}', "duplicate key 'name'"),
    "nested duplicate": (b'{"a": {"b": 1, "b": 1}}', "duplicate key 'b'"),
    "array": (b"[1]", "expected a JSON object, found list"),
    "scalar": (b"3", "expected a JSON object, found int"),
    "not UTF-8": (b'{"name": "\xff"}', "not UTF-8 at byte"),
    "deep": (b'{"a":' + b"[" * 100_000, f"deeper than {MAX_DEPTH}"),
    "deep and closed": (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", f"deeper than {MAX_DEPTH}"),
    "huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
    "unknown key": (GOOD.replace('"count"', '"colour": 1, "count"').encode(), "colour"),
    "missing key": (b'{"schema": "shearling.pair/1", "name": "a"}', "count"),
    "bool for int": (GOOD.replace("3", "true").encode(), "count"),
    "float for int": (GOOD.replace("3", "3.5").encode(), "count"),
    "string for int": (GOOD.replace("3", '"3"').encode(), "count"),
    "negative": (GOOD.replace("3", "-3").encode(), "count"),
    "null": (GOOD.replace('"a"', "null").encode(), "name"),
    "overflow": (GOOD.replace('"tags"', '"share": 1e999, "tags"').encode(), "beyond the range"),
    "newer schema": (GOOD.replace("pair/1", "pair/2").encode(), "newer than shearling.pair/1"),
    "other schema": (GOOD.replace("pair/1", "pear/1").encode(), "expected 'shearling.pair/1'"),
    "no schema": (b'{"name": "a", "count": 3}', "schema is None"),
    "64 MiB": (b'{"name": "' + b"a" * (64 * 2**20) + b'"}', f"at most {MAX_BYTES}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, tmp_path):
    raw, message = FAULTS[fault]
    path = tmp_path / "document.json"
    path.write_bytes(raw)
    started_s = time.process_time()
    with pytest.raises(DocumentInvalid) as caught:
        read_document(path, Pair, schema="shearling.pair/1")
    assert time.process_time() - started_s < 1
    assert message in caught.value.message
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 3


class Several(Document):
    values: tuple[int, ...]
    doubled: int = pydantic.Field(default_factory=lambda data: 2 * len(data["values"]))


def test_of_many_faults_some_are_told_and_none_that_follows_from_others():
    with pytest.raises(pydantic.ValidationError) as caught:
        Several.model_validate({"values": ("x",) * 1000})
    told = describe_validation_error(caught.value)
    assert told.count("values.") == MOST_TOLD
    assert told.endswith(f"; and {1000 - MOST_TOLD} more")
    assert "default" not in told


def test_largest_accepted_document_takes_no_second(tmp_path):
    path = tmp_path / "document.json"
    path.write_bytes(b'{"name": "' + b"a" * (MAX_BYTES - 20) + b'"}')
    started_s = time.process_time()
    read_json(path)
    assert time.process_time() - started_s < 1


@pytest.mark.parametrize("unit", [rb"\"", b'"', b"\\", b"[]", b"{}", b'"[', b"9", b" "])
def test_no_text_is_slow(unit):
    raw = b'{"a": "' + unit * (MAX_BYTES // len(unit) - 8)
    started_s = time.process_time()
    with pytest.raises(DocumentInvalid):
        parse_json(raw, where="x")
    assert time.process_time() - started_s < 2


def test_missing(tmp_path):
    for path in (tmp_path / "nothing.json", tmp_path, tmp_path / "file" / "below.json"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ArtefactMissing):
            read_json(path)


def test_round_trip(tmp_path):
    document = Pair(name="ä", count=2, share=0.1, tags=("b", "c"))
    write_document(tmp_path / "document.json", document)
    assert read_document(tmp_path / "document.json", Pair, schema="shearling.pair/1") == document


def test_brackets_in_strings_are_no_depth():
    assert parse_json(b'{"a": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\"{{"}', where="x")["a"].endswith('"{{')


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_accepts_what_json_writes(data):
    assert parse_json(json.dumps(data).encode(), where="x") == data


@given(st.binary(max_size=60))
def test_garbage_is_refused_in_one_way_only(raw):
    with contextlib.suppress(DocumentInvalid):
        assert isinstance(parse_json(raw, where="x"), dict)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "document.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["document.json"]
