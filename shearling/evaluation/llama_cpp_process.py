"""The parent's handle on one `shearling.evaluation.llama_cpp_worker`."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shearling.errors import ArtefactCorrupt, ResourceExhausted, ShearlingError
from shearling.virtual_environment import interpreter_of

if TYPE_CHECKING:
    import numpy as np

WORKER = Path(__file__).with_name("llama_cpp_worker.py")


class LlamaCppProcess:
    """A GGUF file in llama.cpp; made by `open_llama_cpp`, and of use until that ends.

    Args:
        process: that runs the worker.
        errors: what it says on stderr.
        file: that it loads.

    Attributes:
        vocabulary: logits of a token.
        most_rows: that may be read together.

    Raises:
        ArtefactCorrupt: llama.cpp does not load the file.
        ShearlingError: the process has ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], *, file: Path) -> None:
        self._process = process
        self._errors = errors
        self._file = file
        facts: dict[str, Any] = json.loads(self._pipe(process.stdout).readline() or self._ended())
        if "error" in facts:
            raise ArtefactCorrupt(f"{facts['error']}: {self._last_words()}", where=file)
        self.vocabulary = int(facts["vocabulary"])
        self.most_rows = int(facts["most_rows"])

    def read(self, rows: Sequence[Sequence[int]], wanted: Sequence[int], *, fresh: bool) -> np.ndarray:
        """Read on in every row.

        Args:
            rows: token ids that follow, by row; at least one each, and at most `most_rows` rows.
            wanted: behind how many of its last tokens, by row, logits are asked for; at least one each.
            fresh: forget what was read before, which had as many rows otherwise.

        Returns:
            [sum of wanted, vocabulary] float32, row by row.

        Raises:
            ShearlingError: the process has ended; with the last line that it said.
        """
        import numpy as np

        request = {"fresh": fresh, "rows": rows, "wanted": wanted}
        stdin, stdout = self._pipe(self._process.stdin), self._pipe(self._process.stdout)
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            self._ended()
        count = np.frombuffer(stdout.read(8) or self._ended(), np.uint64)
        logits = np.empty((int(count[0]), self.vocabulary), np.float32)
        if stdout.readinto(logits.data.cast("B")) < logits.nbytes:  # type: ignore[attr-defined] # Popen gives a BufferedReader, typed as IO
            self._ended()
        return logits

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise ShearlingError("llama.cpp has no pipes", where=self._file)
        return pipe

    def _ended(self) -> Any:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            raise ResourceExhausted(
                "the system killed llama.cpp, most likely for memory", where=self._file, remedy="Lower --batch-size"
            )
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise ShearlingError(f"llama.cpp ended with {ending}: {self._last_words()}", where=self._file)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


@contextmanager
def open_llama_cpp(
    file: Path, *, environment: Path | None, threads: int, flash_attention: bool = True
) -> Iterator[LlamaCppProcess]:
    """Load a GGUF file in a process of its own, which ends with the context, whatever happens.

    Args:
        file: a GGUF file.
        environment: virtual environment with llama_cpp; None is the one that runs. That it is there was checked by
            `shearling.virtual_environment`.
        threads: of the CPU.
        flash_attention: attention in one pass, as llama.cpp's own programs choose.

    Raises:
        ArtefactCorrupt: llama.cpp does not load the file.
    """
    # Without -P the worker's neighbours here would go before packages of the same names.
    flash = "YES" if flash_attention else "NO"
    command = [str(interpreter_of(environment)), "-P", str(WORKER), str(file), str(threads), flash]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield LlamaCppProcess(process, errors, file=file)
        finally:
            # It owns nothing but memory.
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()
