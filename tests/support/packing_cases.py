"""What tests of packing share: the texts that models read, and how sparse they are."""

from __future__ import annotations

import numpy as np

from tests.support.tiny_models import VOCABULARY

BLOCKS = [np.random.default_rng(7).integers(VOCABULARY, size=length) for length in (40, 13)]
SHARES = {"bf16": 0.5, "int8": 0.5, "int4": 0.8}
"""Zeros; int4 in the small groups of narrow layers has many scales, which packing does not shrink."""
