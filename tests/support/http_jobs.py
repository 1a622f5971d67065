"""How the texts of HTTP tests are sampled."""

from serve.http.protocol import Sampling

GREEDY = Sampling(
    temperature=0.0,
    top_p=1.0,
    top_k=None,
    seed=0,
    repeatable=False,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    ignore_eos=True,
)
