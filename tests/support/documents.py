"""Documents as something to carry out: the fenced blocks of a page, and the files that they are to be saved as."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SAVED_AS = re.compile(r"as\s`([\w./-]+)`:?\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: behind the fence: sh, text, toml, python.
        file: the name that the sentence before it ends with, as in "Save it as `name`:"; None without one.
        heading: the nearest one above it.
    """

    language: str
    text: str
    file: str | None
    heading: str


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    blocks = []
    for match in BLOCK.finditer(content):
        before = content[: match.start()]
        saved = SAVED_AS.search(before)
        headings = re.findall(r"^#+ (.+)$", before, flags=re.MULTILINE)
        blocks.append(Block(match["language"], match["text"], saved and saved[1], headings[-1] if headings else ""))
    return blocks


def commands(block: Block) -> list[str]:
    """The command lines of a block of shell, continuation lines joined, without comments behind them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
