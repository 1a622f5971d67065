"""The library as a lesser processor would run it: one that lacks instructions, each of which ends the process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TILES = r"tile|tdp|(ld|st)tilecfg"
PAIRS = r"vdpbf16ps|vcvtne2?ps2bf16"
VNNI = r"\{vex\} vpdp"
MASKS = r"k[a-z]"
COUNTS = r"popcnt|lzcnt"
NAMES: Mapping[str, str] = {
    "avx512_bf16": f"{TILES}|{VNNI}",
    "avx512": f"{TILES}|{VNNI}|{PAIRS}",
    "avx_vnni": f"{TILES}|{MASKS}",
    "avx2": f"{TILES}|{MASKS}|{VNNI}",
    "portable": f"{TILES}|{MASKS}|{VNNI}|{COUNTS}",
}
"""Kernels -> how instructions begin that a processor lacks for which these are the best: Zen 4, Ice Lake, Alder Lake,
Haswell, and what was before."""
EVEX, VEX = b"\x62", (b"\xc4", b"\xc5")
"""How instructions are encoded that came with AVX-512, and with AVX: nothing else of 64 bits begins so."""
PREFIXES: Mapping[str, tuple[bytes, ...]] = {"avx_vnni": (EVEX,), "avx2": (EVEX,), "portable": (EVEX, *VEX)}
UNDEFINED = b"\x0f\x0b"
LINE = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    """One of a library.

    Attributes:
        offset: in its file.
        code: its bytes.
        text: its name and operands.
    """

    offset: int
    code: bytes
    text: str


def instructions_of(library: Path) -> list[Instruction]:
    """All that a compiler made: the section `.text`."""
    sections = _objdump("--section-headers", "--section=.text", library)
    _, _, address, _, place, _ = re.search(r"^ *\d+ \.text +(.*)$", sections, re.MULTILINE)[0].split()[1:]
    distance = int(place, 16) - int(address, 16)
    listing = _objdump("--disassemble", "--wide", "--show-raw-insn", "--section=.text", library)
    return [
        Instruction(int(line[1], 16) + distance, bytes.fromhex(line[2]), line[3]) for line in LINE.finditer(listing)
    ]


def _objdump(*arguments: str | Path) -> str:
    return subprocess.run(["objdump", *arguments], capture_output=True, text=True, check=True).stdout


def lacking(kernels: str, instructions: list[Instruction]) -> list[Instruction]:
    """Those that no processor has for which these kernels are the best."""
    names, prefixes = re.compile(NAMES[kernels]), PREFIXES.get(kernels, ())
    return [item for item in instructions if names.match(item.text) or item.code.startswith(prefixes)]


def write_without(library: Path, instructions: list[Instruction], output: Path) -> None:
    """A library in which some instructions are undefined ones."""
    content = bytearray(library.read_bytes())
    for item in instructions:
        assert content[item.offset : item.offset + len(item.code)] == item.code
        content[item.offset : item.offset + 2] = UNDEFINED
    output.write_bytes(content)


def use_all(library: str, kernels: str) -> None:
    """Pack, unpack and multiply in every form, and run decoder layers with every cache, with these kernels of this
    library; in a process of its own.
    """
    import shearling.kernel.build

    shearling.kernel.build.build_library = lambda: Path(library)

    import numpy as np

    from shearling.kernel.library import expand_matrix, kernels_in_use, multiply, pack_matrix, unpack_matrix
    from shearling.kernel.packed_format import Encoding, ValueType
    from tests.support.decoder_layer import SLOTS, Heads, Layer
    from tests.support.decoder_reference import play
    from tests.support.matrices import dense, random_matrix

    assert kernels_in_use() == kernels
    rng = np.random.default_rng(0)
    x = rng.standard_normal((140, 260)).astype(np.float32)
    for value_type, group in [(item, None) for item in ValueType] + [(ValueType.INT4, 64), (ValueType.INT8, 4)]:
        for two_of_four in (False, True):
            matrix = random_matrix(value_type, 50, 260, group_size=group, two_of_four=two_of_four)
            for encoding in Encoding:
                packed = pack_matrix(matrix, encoding)
                assert np.array_equal(unpack_matrix(packed).values, matrix.values)
                expand_matrix(packed)
                for count in (1, 2, 3, 7, 13, 33, 140):
                    expected = x[:count].astype(np.float64) @ dense(matrix).T
                    for held in (False, True):
                        found = multiply(packed, x[:count], held=held)
                        assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
                        multiply(packed, x[:count], held=held, exact=True)
    for cache in SLOTS:
        play(Layer(Heads(6, 2, 64), cache=cache), [1, 2, 40, 1])
    play(Layer(Heads(3, 1, 80), interleaved=True), [40, 1])


if __name__ == "__main__":
    use_all(sys.argv[1], sys.argv[2])
