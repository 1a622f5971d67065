"""JSON files of a test, changed as a user would."""

from __future__ import annotations

import json
from pathlib import Path


def edit_json(path: Path, **changes: object) -> None:
    """Set fields of the object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
