"""The options of commands that measure, by which they are told where."""

from __future__ import annotations

from typing import Annotated

import typer

from shearling.registry.executors import EXECUTORS
from shearling.registry.name_option import member_of

ExecutorOption = Annotated[
    str, typer.Option(click_type=member_of(EXECUTORS), help="Where is measured; makes no difference to what is found.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Most that measure at a time; default: as many as there is room for.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Of each worker; default: 1, or all where there are no workers.")
]
GpusOption = Annotated[float, typer.Option(min=0, help="Devices of each worker, on a cluster; 0.5 lets two share one.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: HOST:PORT, or auto for one on this machine.")
]
