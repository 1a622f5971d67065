"""`shearling schema`: the JSON schema of recipes, printed or written."""

from __future__ import annotations

import json
from pathlib import Path

from shearling.command_line import Result
from shearling.destination import require_writable
from shearling.recipe.recipe import recipe_json_schema
from shearling.strict_json import write_json


def publish_schema(output: Path | None) -> Result:
    """Write the schema to a file, or show it.

    Raises:
        UsageError: no file can be written there.
    """
    document = recipe_json_schema()
    if output is None:
        return Result({"schema": document}, json.dumps(document, indent=2))
    require_writable(output, whole=True)
    write_json(output, document)
    return Result({"output": str(output)}, f"written: {output}")
