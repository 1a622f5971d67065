"""`shearling-run`: run an exported model where nothing but OpenVINO GenAI or ONNX Runtime GenAI and this package is
installed.

Exit codes: 0 done, 2 usage, 3 bad model, 4 environment, 5 internal, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from shearling_runtime.faults import RequestFault, RuntimeFault, RuntimeUnavailable
from shearling_runtime.genai_greedy_model import GenAIGreedyModel, find_genai
from shearling_runtime.greedy_model import GreedyModel, has_ir
from shearling_runtime.openvino import kernels_in_use

INTERRUPTED = 130
NEW_TOKENS, BENCH_NEW_TOKENS, PROMPT_TOKENS, REPEATS = 128, 64, 128, 6
TEXT = "The quick brown fox jumps over the lazy dog. "
"""What a benchmark reads, as often as its prompt is long."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command, and leave the process with its exit code."""
    options = _parser().parse_args(arguments)
    code = 0
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Such as of ASCII alone: question marks stand for what it cannot encode.
        sys.stdout.reconfigure(errors="replace")
    try:
        _require_fitting(options)
        with warnings.catch_warnings():
            # A line, without the place in the source.
            warnings.showwarning = _warn
            result = _bench(options) if options.bench else _generate(options)
        if options.json:
            _show(json.dumps(result, indent=2) + "\n")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # the last resort of the program: what is no fault of a kind is a defect
        code = _report(error if isinstance(error, RuntimeFault) else _unforeseen(error), options)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shearling-run",
        description="Run an exported model on this processor, greedily, with OpenVINO GenAI or ONNX Runtime GenAI.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="an export, or its part openvino or onnx-genai")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--prompt", help="what the model continues or answers")
    work.add_argument("--bench", action="store_true", help="measure the first token, and the time of each further one")
    parser.add_argument(
        "--max-new-tokens",
        type=_count,
        metavar="N",
        help=f"stop after so many; default {NEW_TOKENS}, and {BENCH_NEW_TOKENS} for --bench",
    )
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="use the chat template; by default if there is one",
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads; the runtime chooses if not given")
    parser.add_argument("--prompt-tokens", type=_count, metavar="N", help=f"of --bench; default {PROMPT_TOKENS}")
    parser.add_argument("--repeats", type=_count, metavar="N", help=f"of --bench; default {REPEATS}")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _require_fitting(options: argparse.Namespace) -> None:
    """Refuse what the work that is asked for would not look at."""
    unread = {"--prompt-tokens": options.prompt_tokens, "--repeats": options.repeats}
    if options.bench:
        unread = {"--chat": options.chat}
    work = "--bench" if options.bench else "--prompt"
    for name, value in unread.items():
        if value is not None:
            raise RequestFault(f"{name} says nothing with {work}", remedy="Leave it out")
    if options.bench and options.max_new_tokens == 1:
        raise RequestFault("a further token is measured, too", remedy="Give --max-new-tokens 2 or more")


def _report(fault: RuntimeFault, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc(file=sys.stderr)
    sys.stderr.write(f"error: {fault}\n")
    if options.json:
        result = {"status": "error", "exit_code": fault.exit_code, "message": fault.message, "remedy": fault.remedy}
        # It may be stdout that fails; the code and the line on stderr say what happened.
        with suppress(RuntimeUnavailable):
            _show(json.dumps(result, indent=2) + "\n")
    return fault.exit_code


def _unforeseen(error: Exception) -> RuntimeFault:
    return RuntimeFault(
        f"internal error: {type(error).__name__}: {error}", remedy="Run again with --debug and report the traceback"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    if not options.prompt:
        raise RequestFault("the prompt is empty", remedy='Give one: --prompt "..."')
    try:
        options.prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestFault("the prompt is not UTF-8", remedy="Give it in UTF-8") from error
    model = _open(options.directory, options.threads)
    prompt = model.encode(options.prompt, chat=options.chat)
    # Somebody has to take the pieces: otherwise nothing interrupts OpenVINO GenAI before the last one.
    answer = model.generate(
        prompt, max_new_tokens=options.max_new_tokens or NEW_TOKENS, on_text=_pass_over if options.json else _show
    )
    if not options.json:
        _show("\n")
    sys.stderr.write(
        f"{len(prompt)} + {len(answer.token_ids)} tokens, loaded in {model.load_s:.1f} s, "
        f"first token {1e3 * answer.ttft_s:.1f} ms, {_speed(answer.tpot_s)}\n"
    )
    return {
        **_facts(model),
        "text": model.decode(answer.token_ids),
        "token_ids": answer.token_ids,
        "prompt_tokens": len(prompt),
        "ttft_s": answer.ttft_s,
        "tpot_s": answer.tpot_s,
    }


def _bench(options: argparse.Namespace) -> dict[str, Any]:
    model = _open(options.directory, options.threads)
    new_tokens = options.max_new_tokens or BENCH_NEW_TOKENS
    prompt_tokens = options.prompt_tokens or PROMPT_TOKENS
    # Each begins with other words: GenAI keeps what it has read of a prompt, and would not read it again.
    prompts = [
        model.encode(f"{number} {TEXT * prompt_tokens}", chat=False)[:prompt_tokens]
        for number in range((options.repeats or REPEATS) + 1)
    ]
    # The first run is thrown away: it maps the weights.
    runs = [model.generate(prompt, max_new_tokens=new_tokens, to_the_end=True) for prompt in prompts][1:]
    ttft_s = statistics.median(run.ttft_s for run in runs)
    tpot_s = statistics.median(run.tpot_s or 0.0 for run in runs)
    if not options.json:
        _show(
            f"{len(prompts[0])} + {new_tokens} tokens, median of {len(runs)} runs\n"
            f"loaded       {model.load_s:8.1f} s\n"
            f"first token  {1e3 * ttft_s:8.1f} ms\n"
            f"each further {1e3 * tpot_s:8.2f} ms, {_speed(tpot_s)}\n"
        )
    return {
        **_facts(model),
        "prompt_tokens": len(prompts[0]),
        "new_tokens": new_tokens,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "runs": [{"ttft_s": run.ttft_s, "tpot_s": run.tpot_s} for run in runs],
    }


def _pass_over(_piece: str) -> None:
    pass


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"{message}\n")


def _open(directory: Path, threads: int | None) -> GreedyModel | GenAIGreedyModel:
    """OpenVINO's file where there are both."""
    place = None if has_ir(directory) else find_genai(directory)
    return GreedyModel(directory, threads=threads) if place is None else GenAIGreedyModel(place, threads=threads)


def _facts(model: GreedyModel | GenAIGreedyModel) -> dict[str, Any]:
    return {
        "status": "ok",
        "packed": model.packed,
        "kernels": kernels_in_use() if model.packed and isinstance(model, GreedyModel) else None,
        "load_s": model.load_s,
    }


def _speed(tpot_s: float | None) -> str:
    return f"{1 / tpot_s:.1f} tokens/s" if tpot_s else "no further token"


def _show(text: str) -> None:
    if sys.stdout is None:
        raise RuntimeUnavailable("the standard output is closed", remedy="Run it again with one")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still in the stream is written to nowhere, when the process ends at the latest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that has gone, such as `head`, has seen what it wanted.
        if not isinstance(error, BrokenPipeError):
            raise RuntimeUnavailable(
                f"the standard output cannot be written: {error.strerror}", remedy="Make room there, and run it again"
            ) from error
