"""Text from a deployment: what `python -m serve generate` does."""

from __future__ import annotations

import time
from pathlib import Path

from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import Decoding, OnText, RunOptions, RuntimeFacts, check_lengths, load_runtime
from serve.runtimes.tokenization import no_chat_template
from shearling.console import log
from shearling.errors import UsageError
from shearling.strict_json import Document
from shearling.target import Target


class Answer(Document):
    """A generated text and what it took.

    Attributes:
        text: without the prompt and without special tokens.
        load_s: importing the runtime and loading the model.
        tpot_s: None where one token was made.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    chat: bool
    format: str
    directory: Path
    facts: RuntimeFacts
    load_s: float
    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float | None


def generate_text(
    target: Target,
    *,
    prompt: str,
    max_new_tokens: int,
    options: RunOptions,
    chat: bool | None = None,
    on_text: OnText | None = None,
) -> Answer:
    """Continue a prompt greedily.

    Args:
        target: see `find_deployment`; its runtime is installed here.
        prompt: not empty, and without lone surrogates, which Python makes of arguments that are not UTF-8.
        max_new_tokens: at least 1; prompt and new tokens fit the context.
        options: device, precision, threads.
        chat: use the chat template; None does so where there is one.
        on_text: gets the text while it is made.

    Raises:
        UsageError: an empty prompt or one that is not UTF-8, no tokens to make, too many for the context, `chat`
            without a template, or an environment behind the path.
        ArtefactError: the directory cannot be used.
        DeviceUnavailable: before anything is loaded.
    """
    if not prompt:
        raise UsageError("the prompt is empty", remedy='Give one: --prompt "..."')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the prompt is not UTF-8", remedy="Give it in UTF-8") from error
    if max_new_tokens < 1:
        raise UsageError(f"{max_new_tokens} new tokens were asked for", remedy="Give --max-new-tokens 1 or more")
    if target.environment is not None:
        raise UsageError(
            "text is generated in this process, not in an environment of its own",
            where=target.label,
            remedy="Leave environment= out, or measure it with: python -m serve bench",
        )
    deployment = find_deployment(target, device=options.device)
    check_device(deployment.format, options.device)
    if not deployment.end_ids:
        log.print(f"no configuration here names an end token: all {max_new_tokens} tokens will be made")
    started_s = time.perf_counter()
    runtime = load_runtime(deployment, options)
    load_s = time.perf_counter() - started_s
    try:
        in_chat = runtime.has_chat_template() if chat is None else chat
        if in_chat and not runtime.has_chat_template():
            raise no_chat_template(deployment.directory)
        token_ids = runtime.encode(prompt, chat=in_chat)
        check_lengths(len(token_ids), max_new_tokens, deployment=deployment)
        # A pipeline of OpenVINO GenAI can be interrupted only while somebody takes its pieces.
        read = on_text or _pass_over
        run = runtime.generate([token_ids], Decoding(max_new_tokens, frozenset(deployment.end_ids), read))
        text = runtime.decode(run.token_ids)
    finally:
        runtime.close()
    return Answer(
        text=text,
        token_ids=run.token_ids,
        prompt_tokens=len(token_ids),
        chat=in_chat,
        format=deployment.format,
        directory=deployment.directory,
        facts=runtime.facts,
        load_s=load_s,
        ttft_s=run.ttft_s,
        tpot_s=run.tpot_s,
        tokens_per_s=run.tokens_per_s,
    )


def _pass_over(_piece: str) -> None:
    pass
