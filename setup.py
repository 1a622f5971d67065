"""Everything stands in pyproject.toml, but that the recipes of the checkout go into the wheel, for the demo."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).resolve().parent / "recipes"


class BuildWithRecipes(build_py):
    """The packages, and the recipes where shearling/demo/derived_recipe.py looks for them."""

    def run(self) -> None:
        """See setuptools."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(RECIPES, Path(self.build_lib, "shearling", "demo", "recipes"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
