"""Log-likelihoods for lm-evaluation-harness, computed for a fraction of the harness's own price.

The stock model class runs every choice of a row, and the vocabulary projection on every token. Here requests whose
inputs are prefixes of each other share one forward (all single-token choices of a row do), batches hold rows of like
length, and logits are computed for the scored positions alone. On short rows most of the stock time is in what this
leaves out.

This module subclasses the harness, so importing it imports torch; `shearling.evaluation.evaluator` does that when it
is needed.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from shearling.errors import ModelUnsupported, NonFiniteWeights, UsageError
from shearling.evaluation.answer_tokens import split_answer
from shearling.evaluation.generation import Stopping, generate_greedily, generation_batches, read_stopping
from shearling.model.end_tokens import end_tokens_of
from shearling.model.text_encoder import TextEncoder

MAX_LOGIT_POSITIONS = 1024
"""Positions of a batch whose logits are held at once: 200 MB at 49,152 tokens of vocabulary in float32."""

MOST_POSITIONS_OF_A_ROW = 4 * MAX_LOGIT_POSITIONS
"""A row of more scored positions is read again for each so many of them: logits of 32,000 take 6 GB."""

MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens of a batch: on a CPU, activations that stay in the cache; 1,700 tokens took 1.4 times as long a row as 430."""

PROMPT_SHARE = 8
"""Prompts that are continued may have so many times the tokens of a batch: they are read once, and many rows are
decoded in the time of one."""

ROLLING_WINDOW = 2048
"""Most tokens of a window of a whole text, whatever the model reads: with 131,072 positions one window would take all
memory, and a text would have other bits per byte where a model of the same weights reads less.
"""
ENCODINGS_KEPT = 65536

Request = tuple[Any, Sequence[int], Sequence[int]]
"""As the harness gives it: strings (unused), context tokens, continuation tokens."""


@dataclass(frozen=True)
class ScoredContinuation:
    """A continuation to be scored.

    Attributes:
        index: its place among the requests.
        length: number of input tokens that it needs, its last token excluded.
        tokens: the continuation.
    """

    index: int
    length: int
    tokens: tuple[int, ...]

    @property
    def first(self) -> int:
        """Position of the input token that predicts the first token of the continuation."""
        return self.length - len(self.tokens)


@dataclass(frozen=True)
class ScoredInput:
    """One input, and every continuation that can be read off its logits."""

    input_ids: tuple[int, ...]
    scored: tuple[ScoredContinuation, ...]

    @property
    def first(self) -> int:
        """First position whose logits are needed."""
        return min(item.first for item in self.scored)


class CausalScorer(TemplateLM, abc.ABC):
    """A causal language model as the harness sees it.

    Args:
        tokenizer: of the model.
        max_length: longest input, see `context_length`; longer ones lose their beginning.
        batch_size: most rows of a batch.
        on_rows: called with the number of rows after each batch.

    Attributes:
        end_tokens: that end what is generated; see `end_tokens_of`.
        max_batch_tokens: most tokens of a batch.
        computes_all_logits: the runtime computes logits for every position, whatever is asked; batches are smaller
            then.
        written_by_template: prompts come from a chat template, which writes all special tokens itself.

    Raises:
        ModelUnsupported: the tokenizer has no token that could stand before a text.
    """

    max_batch_tokens: int = MAX_BATCH_TOKENS["cpu"]
    computes_all_logits: bool = False
    written_by_template: bool = False

    def __init__(
        self, tokenizer: Any, *, max_length: int, batch_size: int, on_rows: Callable[[int], None] | None = None
    ) -> None:
        super().__init__()
        if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
            raise ModelUnsupported("the tokenizer has neither an eos nor a bos token", where=type(tokenizer).__name__)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.on_rows = on_rows
        self.end_tokens = end_tokens_of(tokenizer) or frozenset({self.eot_token_id})
        # Sub-networks are evaluated on the same rows again and again.
        self._encode = functools.lru_cache(maxsize=ENCODINGS_KEPT)(TextEncoder(tokenizer))
        self._leading = self._leading_tokens() or (self.prefix_token_id,)

    @abc.abstractmethod
    def logits(self, input_ids: Tensor, first: int) -> Tensor:
        """Logits after the positions `first` and later.

        Args:
            input_ids: [rows, length] int64, padded on the right, which a causal model never looks at.
            first: 0 <= first < length.

        Returns:
            [rows, length - first, vocabulary] float32.
        """

    def logits_at(self, input_ids: Tensor, places: Tensor, positions: Tensor) -> Tensor:
        """Logits after single positions; here read off those of all later ones, which a runtime may do without.

        Args:
            input_ids: see `logits`.
            places: [positions] int64, rows of the batch; at least one.
            positions: [positions] int64, of these rows.

        Returns:
            [positions, vocabulary] float32.
        """
        first = int(positions.min())
        return self.logits(input_ids, first)[places, positions - first]

    @abc.abstractmethod
    def step(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, fresh: bool) -> Tensor:
        """See `shearling.evaluation.generation.Step`."""

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a batch of prompts that are continued, padding included."""
        return MAX_LOGIT_POSITIONS if self.computes_all_logits else PROMPT_SHARE * self.max_batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.bos_token_id if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that is scored from its first token on."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds on its own unless told otherwise."""
        return list(self._encode(string, add_special_tokens))

    def _leading_tokens(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text by itself."""
        text, own = self._encode("a"), self._encode("a", False)
        starts = range(len(text) - len(own) + 1)
        return text[: next((start for start in starts if text[start : start + len(own)] == own), 0)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The harness's rule, by which training labels its rows as well."""
        prompt, answer = split_answer(self._encode_asked, context, continuation)
        return list(prompt or (self.prefix_token_id,)), list(answer)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Per request the log-likelihood of the continuation, and whether greedy decoding would produce it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, in windows of `ROLLING_WINDOW` or `max_length` where they are longer."""
        leading = list(self._leading)
        window = min(self.max_length, ROLLING_WINDOW) - len(leading) + 1
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            # They are read before the first window, and none of them is the text's own.
            if tokens[: len(leading)] == leading:
                del tokens[: len(leading)]
            rolling = get_rolling_token_windows(
                token_list=tokens, prefix_token=leading[-1], max_seq_len=window, context_len=1
            )
            for place, (context, continuation) in enumerate(map(make_disjoint_window, rolling)):
                windows.append((None, context if place else leading, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_likelihood
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Per request what the model generates greedily, up to the first stop string.

        Spaces at the end of a prompt are left to the answer, which begins with them in training.

        Raises:
            UsageError: the task samples, or its answers leave no room for a prompt.
        """
        grouped: dict[Stopping, list[int]] = {}
        for index, request in enumerate(requests):
            grouped.setdefault(read_stopping(request.args[1], task=str(request.task_name)), []).append(index)
        texts = [""] * len(requests)
        for stopping, places in grouped.items():
            prompts = [self._prompt(requests[place].args[0], stopping) for place in places]
            ends = self.end_tokens | self._special_tokens(stopping.strings)
            for batch in generation_batches(prompts, self.batch_size, max_tokens=self.max_prompt_tokens):
                answers = generate_greedily(
                    self.step,
                    [prompts[at] for at in batch],
                    stopping,
                    tokenizer=self.tokenizer,
                    ends=ends,
                )
                for at, text in zip(batch, answers, strict=True):
                    texts[places[at]] = text
                if self.on_rows is not None:
                    self.on_rows(len(batch))
        return texts

    def _prompt(self, text: str, stopping: Stopping) -> tuple[int, ...]:
        room = self.max_length - stopping.limit
        if room < 1:
            raise UsageError(
                f"the task generates up to {stopping.limit} tokens, and the model reads {self.max_length}",
                remedy="Lower task.max_new_tokens, or max_gen_toks of the task",
            )
        return (self._encode_asked(text.rstrip(" ")) or (self.prefix_token_id,))[-room:]

    def _special_tokens(self, strings: Sequence[str]) -> frozenset[int]:
        """Those among the strings, which no decoded text shows."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(index for index, token in added if token.special and token.content in strings)

    def _encode_asked(self, text: str) -> tuple[int, ...]:
        return self._encode(text, False if self.written_by_template else None)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool] | None] = [None] * len(requests)
        rows = plan_rows(requests, self.max_length)
        for batch in batch_rows(
            rows, self.batch_size, max_tokens=self.max_batch_tokens, whole=self.computes_all_logits
        ):
            for index, result in self._score(batch):
                results[index] = result
            if self.on_rows is not None:
                self.on_rows(len(batch))
        return [result for result in results if result is not None]

    def _score(self, batch: Sequence[ScoredInput]) -> Iterator[tuple[int, tuple[float, bool]]]:
        first = min(row.first for row in batch)
        length = max(len(row.input_ids) for row in batch)
        input_ids = torch.tensor([row.input_ids + (0,) * (length - len(row.input_ids)) for row in batch])
        spans = [(place, item) for place, row in enumerate(batch) for item in row.scored]
        places = torch.tensor([place for place, item in spans for _ in item.tokens])
        positions = torch.tensor([position for _, item in spans for position in range(item.first, item.length)])
        tokens = torch.tensor([token for _, item in spans for token in item.tokens])
        log_probabilities = torch.empty(len(tokens), dtype=torch.float64)
        greedy = torch.empty(len(tokens), dtype=torch.bool)
        for start, stop in self._pieces(first, length):
            within = (start <= positions) & (positions < stop)
            if not within.any():
                continue
            # Choices of one token are read off the same position.
            at, which = torch.unique(torch.stack((places[within], positions[within])), dim=1, return_inverse=True)
            logits = self.logits_at(input_ids[:, :stop], *at)
            # Not logsumexp, which takes 6 times as long on a CPU (torch 2.13).
            log_probabilities[within] = logits.log_softmax(-1)[which, tokens[within]].double()
            greedy[within] = logits.argmax(-1)[which] == tokens[within]
        if not log_probabilities.isfinite().all():
            raise NonFiniteWeights(
                "the model gives log-likelihoods that are NaN or infinite", where=type(self).__name__
            )
        start = 0
        for _, item in spans:
            stop = start + len(item.tokens)
            yield item.index, (float(log_probabilities[start:stop].sum()), bool(greedy[start:stop].all()))
            start = stop

    def _pieces(self, first: int, length: int) -> list[tuple[int, int]]:
        """Bounds of positions whose logits are held at once; a model that computes all of them anyway gains nothing."""
        if self.computes_all_logits:
            return [(first, length)]
        starts = range(first, length, MOST_POSITIONS_OF_A_ROW)
        return [(start, min(start + MOST_POSITIONS_OF_A_ROW, length)) for start in starts]


def plan_rows(requests: Sequence[Request], max_length: int) -> list[ScoredInput]:
    """Fewest inputs that answer all requests: an input that is a prefix of another is read off the longer one.

    Returns:
        Rows, longest first.
    """
    wanted: dict[tuple[int, ...], list[ScoredContinuation]] = {}
    for index, (_, context, continuation) in enumerate(requests):
        kept = (*context, *continuation)[-(max_length + 1) :]
        wanted.setdefault(kept[:-1], []).append(
            ScoredContinuation(index, len(kept) - 1, tuple(continuation)[-(len(kept) - 1) :])
        )
    rows: list[tuple[tuple[int, ...], list[ScoredContinuation]]] = []
    # Sorted backwards, a prefix directly follows the inputs that begin with it.
    for input_ids in sorted(wanted, reverse=True):
        if rows and rows[-1][0][: len(input_ids)] == input_ids:
            rows[-1][1].extend(wanted[input_ids])
        else:
            rows.append((input_ids, list(wanted[input_ids])))
    ordered = sorted(rows, key=lambda row: (-len(row[0]), row[0]))
    return [ScoredInput(input_ids, tuple(scored)) for input_ids, scored in ordered]


def batch_rows(
    rows: Sequence[ScoredInput], batch_size: int, *, max_tokens: int, whole: bool
) -> Iterator[list[ScoredInput]]:
    """Batches of neighbours, bounded by rows, by tokens and by logits positions.

    Args:
        rows: longest first.
        batch_size: most rows of a batch.
        max_tokens: most tokens of a batch; a single longer row is a batch of its own.
        whole: count all positions of a row, not only the scored ones.
    """
    batch: list[ScoredInput] = []
    first = length = 0
    for row in rows:
        row_first = 0 if whole else row.first
        joined_first, joined_length = (min(first, row_first), length) if batch else (row_first, len(row.input_ids))
        count = len(batch) + 1
        too_large = (
            count > batch_size
            or count * joined_length > max_tokens
            or count * (joined_length - joined_first) > MAX_LOGIT_POSITIONS
        )
        if batch and too_large:
            yield batch
            batch, joined_first, joined_length = [], row_first, len(row.input_ids)
        batch.append(row)
        first, length = joined_first, joined_length
    if batch:
        yield batch
