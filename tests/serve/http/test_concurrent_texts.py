"""Texts of many requests at once say what each says alone, where products leave activations in f32."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable

import numpy as np
import openvino
import openvino_genai
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from serve.http.batcher import Batcher
from serve.http.limits import Limits
from serve.http.protocol import Event, TextJob
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.openvino import load_batching_pipeline
from serve.runtimes.runtime import RunOptions
from shearling.target import Target
from tests.support.http_jobs import GREEDY
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed
from tests.support.tiny_models import VOCABULARY

TEXTS, TOKENS = 16, 32
WORDS = ("Area", "man", "Local", "woman", "Nation", "Report", "wins", "award")
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0, "repeatable": True})


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns while optimum imports it
        model = seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True))
        xml = write_packed(tmp_path_factory.mktemp("concurrent") / "model", model)
    return find_deployment(Target(xml.parent))


@pytest.fixture(scope="module")
def pipeline(deployment: Deployment) -> openvino_genai.ContinuousBatchingPipeline:
    """With one thread: where texts are fewer than threads, OpenVINO's attention adds them up in another order."""
    return load_batching_pipeline(deployment, RunOptions(precision="fp32", threads=1), with_tokenizer=True)[0]


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, (1, rng.integers(3, 90))) for _ in range(TEXTS)]


def test_every_text_is_the_same_beside_fifteen_others(pipeline, deployment: Deployment) -> None:
    batcher, ids = Batcher(pipeline, deployment, Limits(concurrency=TEXTS)), itertools.count(1)

    def jobs() -> list[TextJob]:
        """Greedy ones and seeded ones, of other lengths."""
        return [
            TextJob(
                id=next(ids),
                prompt=" ".join(itertools.islice(itertools.cycle(WORDS), number, 2 * number + 1)),
                max_new_tokens=TOKENS + number,
                sampling=SAMPLED.model_copy(update={"seed": number}) if number % 2 else GREEDY,
                stops=(),
                streamed=True,
            )
            for number in range(TEXTS)
        ]

    def texts(events: Iterable[Event], told: list[TextJob]) -> list[str]:
        kept = list(events)
        return ["".join(event.text for event in kept if event.job == job.id) for job in told]

    alone = []
    for job in jobs():
        batcher.add(job)
        alone += texts(run(batcher), [job])
    together, events = jobs(), []
    for number, job in enumerate(together):
        batcher.add(job)
        if number > TEXTS // 2:  # the last ones come when others are on their way
            events += batcher.step()
    assert texts([*events, *run(batcher)], together) == alone
    assert len(set(alone)) == TEXTS


def run(batcher: Batcher) -> list[Event]:
    events = []
    while batcher.busy:
        events += batcher.step()
    return events


def test_probabilities_are_the_same_to_the_bit(pipeline, prompts: list[np.ndarray]) -> None:
    ids = itertools.count(1)

    def read(chosen: list[np.ndarray]) -> list[bytes]:
        config = openvino_genai.GenerationConfig(max_new_tokens=TOKENS, ignore_eos=True, logprobs=1)
        handles = [pipeline.add_request(next(ids), openvino.Tensor(prompt), config) for prompt in chosen]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [np.array(handle.read_all()[0].generated_log_probs).tobytes() for handle in handles]

    alone = [one for prompt in prompts for one in read([prompt])]
    assert read(prompts) == alone
    assert len(set(alone)) == TEXTS
