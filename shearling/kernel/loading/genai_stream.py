"""A text of OpenVINO GenAI that is read while it is made.

GenAI calls a streamer in the thread that generates, prints what it raises, and goes on. An interruption, too, would be
raised there, before the first line of the streamer, so the text is made in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

Made = TypeVar("Made")


def stream_text(generate: Callable[[Callable[[str], Any]], Made], on_text: Callable[[str], None]) -> Made:
    """Make a text, and hand its pieces on in the thread that asks for it.

    Args:
        generate: from a streamer for GenAI to what its pipeline returns; called in another thread.
        on_text: gets each piece. What it raises ends the text and is raised here, and so is an interruption.

    Returns:
        What `generate` does; what it raises is raised here, too.
    """
    import openvino_genai

    pieces: SimpleQueue[str | None] = SimpleQueue()
    left = Event()

    def put(piece: str) -> Any:
        pieces.put(piece)
        status = openvino_genai.StreamingStatus
        return status.CANCEL if left.is_set() else status.RUNNING

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation") as executor:
        try:
            made = executor.submit(generate, put)
            made.add_done_callback(lambda _: pieces.put(None))
            while (piece := pieces.get()) is not None:
                on_text(piece)
        finally:
            left.set()
    return made.result()
