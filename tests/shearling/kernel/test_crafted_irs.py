"""IRs that no export writes: whatever a file from a stranger says, it is refused in words, or computes what it says.

Files are opened in a process of their own, since what is tested is that this process survives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from shearling.errors import ArtefactCorrupt
from shearling.kernel.loading import packed_choice
from shearling.kernel.loading.ir_text import FORMAT_VERSION, IrText, Source
from shearling.kernel.openvino_extension import load_packed, node_factory
from shearling.kernel.packed_format import ValueType, bundle, pack
from tests.support.decoder_layer import HIDDEN, STEP, Heads, attributes, layer_weights
from tests.support.forked_processes import ForkedProcesses
from tests.support.matrices import random_matrix

WIDTH, ROWS, INNER = 48, 32, 16
COMMON = {"precision": "auto", "format_version": 1}
HEAD = {"rows": ROWS, "columns": WIDTH}
MLP = {"inner": INNER, "activation": "silu", "gated": True, "norm_epsilon": 1e-5}
ATTRIBUTES = {
    "SparseLinear": {"rows": [ROWS], "columns": WIDTH, "norm_epsilon": 0.0, "bias": False, "residual": False},
    "SparseMLP": {"columns": WIDTH, **MLP, "residual": False},
    "SparseLayer": {"rows": [ROWS], "columns": WIDTH, "hidden": WIDTH, **MLP, "next_epsilon": 1e-5, "bias": False},
    "SparseHead": HEAD,
    "SparseEmbedding": HEAD,
}
MATRICES = {
    "SparseMLP": [(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)],
    "SparseLayer": [(WIDTH, WIDTH), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (ROWS, WIDTH)],
}
VECTORS = {"SparseMLP": 1, "SparseLayer": 2}
PRODUCTS = [operator for operator in ATTRIBUTES if operator != "SparseEmbedding"]
Feed = list[tuple[list[int], int]]
"""Of every input the shape and what it is full of."""

OPEN = """
import json, sys
from pathlib import Path
import numpy as np
from shearling.kernel.openvino_extension import core_for
answers = []
for xml, feeds in json.loads(sys.argv[1]):
    try:
        compiled = core_for(Path(xml)).compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        kinds = [port.get_element_type().to_dtype() for port in compiled.inputs]
        shapes = []
        for feed in feeds:
            values = [np.full(shape, value, kind) for (shape, value), kind in zip(feed, kinds)]
            shapes.append([list(result.shape) for result in compiled(values).to_tuple()])
        answers.append({"shapes": shapes})
    except RuntimeError as error:
        answers.append({"refused": str(error)})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkedProcesses]:
    with ForkedProcesses("numpy", "openvino", "shearling.kernel.openvino_extension") as processes:
        yield processes


@pytest.fixture(scope="module")
def open_files(processes: ForkedProcesses) -> Callable[..., list[dict[str, Any]]]:
    """What becomes of files and what each is fed: the shapes of the results, or why they were refused."""

    def open_files(*cases: tuple[Path, list[Feed]]) -> list[dict[str, Any]]:
        done = processes.run(OPEN, json.dumps([(str(path), feeds) for path, feeds in cases]))
        assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
        return json.loads(done.stdout)

    return open_files


def feed(operator: str, *, width: int = WIDTH, rows: int = 2, which: int = 0) -> Feed:
    """Of the inputs of `write`."""
    if operator == "SparseEmbedding":
        return [([1, rows], 1), ([], which)]
    return [([1, rows, width], 1)] * (2 if operator == "SparseLayer" else 1) + [([], which)]


def weights_of(operator: str, *, negative: bool = False) -> np.ndarray:
    matrices = [random_matrix(ValueType.INT8, *size) for size in MATRICES.get(operator, [(ROWS, WIDTH)])]
    packed = [pack(replace(matrix, scales=-matrix.scales) if negative else matrix) for matrix in matrices]
    return bundle(packed, [np.ones(WIDTH, np.float32)] * VECTORS.get(operator, 0))


def write(path: Path, operator: str, *, shape: tuple[int, ...] | None = None) -> str:
    """An IR of one node of an operator; beside it a `Gather` from two constants like its weights, which nothing of
    ours reads yet.

    Args:
        path: of the file.
        operator: of the node.
        shape: of the activations or tokens, -1 where any; default of any width.

    Returns:
        What was written.
    """
    tokens = operator == "SparseEmbedding"
    shape = shape or ((-1, -1) if tokens else (-1, -1, -1))
    inputs = [
        op.parameter(ov.PartialShape(shape), np.int64 if tokens else np.float32)
        for _ in range(2 if operator == "SparseLayer" else 1)
    ]
    which, weights = op.parameter([], np.int64), weights_of(operator)
    arguments = [value.output(0) for value in [*inputs, op.constant(weights)]]
    node = node_factory().create(operator, arguments, {**ATTRIBUTES[operator], **COMMON})
    both = op.constant(np.stack([weights, weights_of(operator, negative=True)]))
    gathered = op.gather(both, which, op.constant(np.int64(0)))
    results = [op.result(output) for output in [*node.outputs(), gathered.output(0)]]
    ov.save_model(ov.Model(results, [*inputs, which]), path, compress_to_fp16=False)
    return path.read_text()


def variant(path: Path, name: str, content: str) -> Path:
    """Another IR on the same binary file's content."""
    other = path.with_name(f"{name}.xml")
    other.write_text(content)
    other.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes())
    return other


def rewire(xml: str, *, source: str, target: str, port: int) -> str:
    """Another layer's output at an input of a layer, both found by their types."""
    ids = {kind: number for number, kind in re.findall(r'<layer id="(\d+)" name="[^"]*" type="(\w+)"', xml)}
    output = re.search(rf'<layer id="{ids[source]}".*?<output>\s*<port id="(\d+)"', xml, re.DOTALL)
    ending = f'to-layer="{ids[target]}" to-port="{port}"'
    edge = f'from-layer="{ids[source]}" from-port="{output[1]}" {ending}'
    changed, count = re.subn(rf'from-layer="\d+" from-port="\d+" {ending}', edge, xml)
    assert count == 1
    return changed


@pytest.mark.parametrize("operator", ATTRIBUTES)
def test_weights_that_are_computed_are_refused_when_the_file_is_read(open_files, tmp_path, operator):
    path = tmp_path / "model.xml"
    xml = write(path, operator)
    path.write_text(rewire(xml, source="Gather", target=operator, port=2 if operator == "SparseLayer" else 1))
    (answer,) = open_files((path, [feed(operator, which=which) for which in (0, 1, 0)]))
    assert "are not a constant of the model" in answer["refused"]


@pytest.mark.parametrize("operator", PRODUCTS)
@pytest.mark.parametrize("shape", [(-1, -1, -1), (1, 2, -1)])
def test_activations_of_another_width_are_refused(open_files, tmp_path, operator, shape):
    path = tmp_path / "model.xml"
    write(path, operator, shape=shape)
    widths = (WIDTH - 1, 1, 2 * WIDTH)
    sound, *others = open_files(*((path, [feed(operator, width=width)]) for width in (WIDTH, *widths)))
    assert len(sound["shapes"][0]) >= 2
    for answer in others:
        assert f"do not end in {WIDTH}" in answer["refused"]


def test_a_residual_of_another_size_is_refused(open_files, tmp_path):
    path = tmp_path / "model.xml"
    write(path, "SparseLayer")
    x, _, which = feed("SparseLayer")
    wider, shorter = open_files(*((path, [[x, ([1, *size], 1), which]]) for size in ((2, WIDTH + 1), (1, WIDTH))))
    assert f"do not end in {WIDTH}" in wider["refused"]
    assert "a residual of shape" in shorter["refused"]


@pytest.mark.parametrize("operator", ATTRIBUTES)
def test_no_rows_are_no_fault(open_files, tmp_path, operator):
    path = tmp_path / "model.xml"
    write(path, operator)
    (answer,) = open_files((path, [feed(operator, rows=0), feed(operator), feed(operator, rows=0)]))
    assert [shapes[0][1] for shapes in answer["shapes"]] == [0, 2, 0]


def write_text(path: Path, text: IrText, weights: np.ndarray | None = None) -> Path:
    path.write_bytes(text.to_bytes())
    path.with_suffix(".bin").write_bytes(b"" if weights is None else weights.tobytes())
    return path


def parameter(text: IrText, shape: str, kind: str = "f32") -> Source:
    return text.add("Parameter", [], {"shape": shape, "element_type": kind}, version="opset1")[0]


def add_results(text: IrText, outputs: list[Source]) -> None:
    for output in outputs:
        text.add("Result", [output], {}, version="opset1", outputs=0)


DECODER = Heads(2, 1, 16)


def write_decoder(path: Path, vectors: str) -> Path:
    """A decoder layer with its step, and with vectors of this shape, that are given."""
    text, weights = IrText(), layer_weights(DECODER, seed=0)
    qkv, residual = (parameter(text, f"?,?,{width}") for width in (sum(DECODER.widths), HIDDEN))
    angles = [parameter(text, f"?,?,{DECODER.size}") for _ in range(2)]
    step = text.add("SparseStep", [*angles, parameter(text, "?,?", "i64"), parameter(text, "?", "i32")], STEP)
    cache = parameter(text, f"?,{2 * DECODER.groups},?,{2 * DECODER.size}", "u8")
    inputs = [qkv, residual, *step, cache, text.stored("u8", weights.shape, 0), parameter(text, vectors)]
    data = {**attributes(DECODER), "qkv_bias": True}
    add_results(text, text.add("SparseDecoder", inputs, data, outputs=3))
    return write_text(path, text, weights)


def decoder_feed(*, batch: int = 1, rows: int = 2, past: int = 0, vectors: tuple[int, ...] = (64,)) -> Feed:
    """Of the inputs of `write_decoder`, in a text of so many positions before."""
    activations = [([batch, rows, width], 1) for width in (sum(DECODER.widths), HIDDEN)]
    angles = [([1, rows, DECODER.size], 1)] * 2
    cache = [batch, 2 * DECODER.groups, 256 if past else 0, 2 * DECODER.size]
    return [*activations, *angles, ([batch, past + rows], 1), ([batch], 0), (cache, 0), (list(vectors), 1)]


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("batch", "rows"), [(1, 0), (0, 2), (0, 0)])
def test_no_rows_and_no_sequences_of_a_decoder_are_no_fault(open_files, tmp_path, batch, rows, past):
    path = write_decoder(tmp_path / "model.xml", "64")
    none = decoder_feed(batch=batch, rows=rows, past=past)
    (answer,) = open_files((path, [none, decoder_feed(), none]))
    for shapes in answer["shapes"][::2]:
        assert [shape[:2] for shape in shapes] == [[batch, rows], [batch, 2], [batch, rows]]
    assert answer["shapes"][1][0][:2] == [1, 2]


@pytest.mark.parametrize(
    ("declared", "vectors"), [("0,64", (0, 64)), ("?,?", (0, 64)), ("?,?,?", (1, 0, 64)), ("?,64", (2, 64))]
)
def test_vectors_of_another_rank_are_refused(open_files, tmp_path, declared, vectors):
    path = write_decoder(tmp_path / "model.xml", declared)
    (answer,) = open_files((path, [decoder_feed(vectors=vectors)]))
    assert "not of rank 1" in answer["refused"]


@pytest.mark.parametrize("given", ["as constants", "as parameters"])
def test_angles_without_numbers_are_refused(open_files, tmp_path, given):
    text = IrText()
    if given == "as constants":
        angles = [text.stored("f32", (1, 2, 0), 0) for _ in range(2)]
    else:
        angles = [parameter(text, "?,?,?") for _ in range(2)]
    inputs = [*angles, parameter(text, "?,?", "i64"), parameter(text, "?", "i32")]
    add_results(text, text.add("SparseStep", inputs, STEP))
    path = write_text(tmp_path / "model.xml", text, np.zeros(64, np.uint8))
    angles_fed = [] if given == "as constants" else [([1, 2, 0], 0)] * 2
    (answer,) = open_files((path, [[*angles_fed, ([1, 2], 1), ([1], 0)]]))
    assert "not one step" in answer["refused"]


KINDS = sorted(name for name in dir(ov.Type) if isinstance(getattr(ov.Type, name), ov.Type))
TEXT_KINDS = {"f32": 4, "i64": 8, "i32": 4, "u8": 1}
"""Bytes of an element, of the types that a text can hold numbers of."""


def test_types_are_known():
    assert {*TEXT_KINDS, "string", "boolean", "i4", "dynamic"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_in_a_text_are_of_the_types_that_it_is_written_with(open_files, tmp_path, kind):
    cases = []
    for size in (1, 2, 4, 8, 32):
        text = IrText()
        data = {"element_type": kind, "shape": [1], "content": "41" * size, "format_version": FORMAT_VERSION}
        add_results(text, text.add("Numbers", [], data))
        cases.append((write_text(tmp_path / f"{size}.xml", text), [[]]))
    answers = {int(path.stem): answer for (path, _), answer in zip(cases, open_files(*cases), strict=True)}
    if kind not in TEXT_KINDS:
        for answer in answers.values():
            assert f"numbers of type '{kind}', not f32, i64, i32 or u8" in answer["refused"]
        return
    assert answers.pop(TEXT_KINDS[kind]) == {"shapes": [[[1]]]}
    for answer in answers.values():
        assert "numbers of another shape" in answer["refused"]


SIZES = {
    "no rows": ('rows="32"', 'rows="0"'),
    "negative rows": ('rows="32"', 'rows="-32"'),
    "rows that wrap": ('rows="32"', 'rows="18446744073709551648"'),
    "rows of which 32 bits fit": ('rows="32"', 'rows="4294967328"'),
    "no number of rows": ('rows="32"', 'rows="many"'),
    "no columns": ('columns="48"', 'columns="0"'),
    "other columns": ('columns="48"', 'columns="64"'),
    "another version": ('format_version="1"', 'format_version="2"'),
    "another precision": ('precision="auto"', 'precision="fast"'),
}
LISTS = {
    "two matrices of one": ('rows="32"', 'rows="32, 32"'),
    "no matrix": ('rows="32"', 'rows=""'),
    "a bias that is not there": ('bias="(false|0)"', 'bias="true"'),
    "a residual that is not there": ('residual="(false|0)"', 'residual="true"'),
    "a norm that is not there": ('norm_epsilon="[^"]*"', 'norm_epsilon="0.00001"'),
    "a norm that is no number": ('norm_epsilon="[^"]*"', 'norm_epsilon="nan"'),
    "an infinite norm": ('norm_epsilon="[^"]*"', 'norm_epsilon="inf"'),
}


@pytest.mark.parametrize("operator", ["SparseLinear", "SparseHead", "SparseEmbedding"])
def test_attributes_that_lie_are_refused(open_files, tmp_path, operator):
    path = tmp_path / "model.xml"
    xml = write(path, operator)
    cases = []
    for name, (pattern, text) in (SIZES | (LISTS if operator == "SparseLinear" else {})).items():
        content, count = re.subn(pattern, text, xml, count=1)
        assert count == 1, name
        cases.append((variant(path, name, content), [feed(operator)]))
    accepted = [path.stem for (path, _), answer in zip(cases, open_files(*cases), strict=True) if "shapes" in answer]
    assert accepted == []


@pytest.mark.parametrize("operator", ATTRIBUTES)
@pytest.mark.parametrize("described", ['element_type="u8" shape="1, {}"', 'element_type="i8" shape="{}"'])
def test_a_constant_of_another_type_or_rank_is_refused(open_files, tmp_path, operator, described):
    path, size = tmp_path / "model.xml", weights_of(operator).size
    changed = write(path, operator).replace(f'element_type="u8" shape="{size}"', described.format(size))
    assert described.format(size) in changed
    path.write_text(changed)
    (answer,) = open_files((path, [feed(operator)]))
    assert "it is not u8 [bytes]" in answer["refused"]


def transposed(x):
    return op.transpose(x, op.constant(np.array([1, 0])))


def scaled(y):
    return op.multiply(y, op.constant(np.float32(2)))


@pytest.mark.parametrize(
    ("shape", "before", "after", "outcome"),
    [
        ([WIDTH], None, None, [[ROWS]]),
        ([3, WIDTH], None, None, [[3, ROWS]]),
        ([1, 2, 3, WIDTH], None, None, [[1, 2, 3, ROWS]]),
        ([WIDTH, 3], transposed, None, "element type"),
        ([3, WIDTH], None, scaled, "element type"),
    ],
)
def test_a_head_that_passes_for_a_matmul_computes_its_own_product_or_is_refused(
    open_files, tmp_path, shape, before, after, outcome
):
    path, x = tmp_path / "model.xml", op.parameter(ov.PartialShape([-1] * len(shape)), np.float32)
    arguments = [(before(x) if before else x).output(0), op.constant(weights_of("SparseHead")).output(0)]
    head = node_factory().create("SparseHead", arguments, {**HEAD, **COMMON})
    result = op.result((after(head) if after else head).output(0))
    ov.save_model(ov.Model([result], [x]), path, compress_to_fp16=False)
    (answer,) = open_files((path, [[(shape, 1)]]))
    if isinstance(outcome, str):
        assert outcome in answer["refused"]
    else:
        assert answer["shapes"] == [outcome]


def test_tokens_out_of_range_are_refused(open_files, tmp_path):
    path = tmp_path / "model.xml"
    write(path, "SparseEmbedding")
    tokens = (ROWS, -ROWS - 1, 2**31 - 1, -(2**31))  # the plugin makes 32 bits of others
    for answer in open_files(*((path, [[([1, 1], token), ([], 0)]]) for token in tokens)):
        assert f"is not in a vocabulary of {ROWS}" in answer["refused"]


PORT = r"\s*<port .*?</port>"


@pytest.mark.parametrize(
    ("packed", "operator", "pattern", "instead", "told"),
    [
        ("never", "SparseMLP", ' activation="silu"', "", "it has no 'activation'"),
        ("measured", "SparseMLP", ' activation="silu"', "", "it has no 'activation'"),
        ("never", "SparseLayer", f"(<output>{PORT}){PORT}", r"\1", "it has 1 outputs and computes 2"),
        ("measured", "SparseLayer", f"(<output>{PORT}){PORT}", r"\1", "it has 1 outputs and computes 2"),
        ("measured", "SparseLinear", f"(<input>{PORT}{PORT})", r'\1<port id="0"/>', "has 3 inputs, not 2"),
    ],
)
def test_what_cannot_be_unpacked_is_a_corrupt_file(tmp_path, monkeypatch, packed, operator, pattern, instead, told):
    path = tmp_path / "model.xml"
    before, start, layer = write(path, operator).partition(f'type="{operator}"')
    changed, count = re.subn(pattern, instead, layer, count=1, flags=re.DOTALL)
    assert count == 1
    path.write_text(before + start + changed)
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    with pytest.raises(ArtefactCorrupt, match=told) as caught:
        load_packed(path, properties={"PACKED": packed})
    assert caught.value.where == str(path)


CHANGE = """
import sys
from pathlib import Path
import numpy as np
from shearling.kernel.openvino_extension import core_for
xml, moment, shape = Path(sys.argv[1]), sys.argv[2], [int(size) for size in sys.argv[3].split(",")]
model = core_for(xml).read_model(xml)
path = xml.with_suffix(".bin")
content = path.read_bytes()
def change():
    # In the file that is mapped, all behind the header of the first matrix.
    with path.open("r+b") as file:
        file.seek(content.index(b"SHEARLNG") + 128)
        file.write(b"\\xff" * (len(content) - file.tell()))
if moment == "before":
    change()
compiled = core_for(xml).compile_model(model, "CPU")
values = [np.ones(shape, port.get_element_type().to_dtype()) for port in compiled.inputs[:-1]] + [np.int64(0)]
if moment == "between":
    change()
first = np.array(compiled(values)[0])
change()
assert np.array_equal(np.array(compiled(values)[0]), first), "the file is read again"
print("computed")
"""


@pytest.mark.parametrize("operator", ATTRIBUTES)
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_mapped_file_that_changes_is_refused_or_not_seen(processes, tmp_path, operator, moment):
    path = tmp_path / "model.xml"
    write(path, operator)
    shape = ",".join(str(size) for size in feed(operator)[0][0])
    done = processes.run(CHANGE, path, moment, shape)
    if moment != "before":  # a compiled model has its weights
        assert (done.returncode, done.stdout) == (0, "computed\n"), done.stderr[-2000:]
    else:
        assert done.returncode == 1, (done.returncode, done.stderr[-2000:])
        assert "a packed weight is corrupt" in done.stderr
