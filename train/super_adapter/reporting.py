"""Who else gets the losses of a training: TensorBoard, Weights & Biases, by the Trainer's own callbacks.

Nobody does unless a recipe asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shearling.errors import PackageMissing
from shearling.recipe.training import TrainSection
from shearling.run import Run


def check_reporting(section: TrainSection) -> None:
    """See that the packages are there.

    Raises:
        PackageMissing: one is not.
    """
    for name in section.report_to:
        if importlib.util.find_spec(name) is None:
            raise PackageMissing(
                f"the package {name} is not installed",
                where="train.report_to",
                remedy=f"pip install -e '.[reports]', in a checkout, or leave {name!r} out",
            )


@contextmanager
def reporting(section: TrainSection, destination: Path) -> Iterator[None]:
    """Where the callbacks of the Trainer put what they write: beside the artefacts, not in them.

    Args:
        section: [train].
        destination: the artefact that is made.
    """
    run = Run(destination.parent)
    places = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(run.tensorboard / destination.name)},
        "wandb": {"WANDB_DIR": str(run.path), "WANDB_PROJECT": "shearling"},
    }
    wanted = {name: value for who in section.report_to for name, value in places[who].items()}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        if "wandb" in section.report_to:
            # The next training of this process would go on in the same run.
            importlib.import_module("wandb").finish()
        for name in added:
            os.environ.pop(name, None)
