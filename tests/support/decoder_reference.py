"""Attention of a decoder layer in float64, and steps of a layer beside it."""

from __future__ import annotations

import numpy as np

from tests.support.decoder_layer import HIDDEN, Layer


class Reference:
    """Attention in float64, with a cache of all keys and values as the operator keeps them."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.heads, self.window = layer, layer.heads, layer.window
        self.keys = self.values = None

    def step(self, qkv, cosines, sines, mask, beam) -> np.ndarray:
        heads = self.heads
        query, key, value = (
            part.reshape(*part.shape[:2], -1, heads.size).transpose(0, 2, 1, 3).astype(np.float64) for part in qkv
        )
        if self.layer.angles >= 0:
            query, key = (self.rotate(part, cosines, sines) for part in (query, key))
        key, value = (KEPT[self.layer.cache](part) for part in (key, value))
        if self.keys is not None:
            key = np.concatenate([self.keys[beam], key], axis=2)
            value = np.concatenate([self.values[beam], value], axis=2)
        self.keys, self.values = key, value
        rows, positions = query.shape[2], key.shape[2]
        repeat = heads.count // heads.groups
        scores = query @ np.repeat(key, repeat, 1).transpose(0, 1, 3, 2) * heads.size**-0.5
        own = positions - rows + np.arange(rows)[:, None]
        seen = np.arange(positions)[None] <= own
        if self.window:
            seen &= np.arange(positions)[None] > own - self.window
        seen = seen[None, None] & (mask[:, None, None, :] != 0)
        scores = np.where(seen, scores, -np.inf)
        most = scores.max(axis=-1, keepdims=True)
        powers = np.where(seen, np.exp(scores - np.where(np.isfinite(most), most, 0)), 0)
        shares = powers / np.maximum(powers.sum(axis=-1, keepdims=True), 1e-300)
        return (shares @ np.repeat(value, repeat, 1)).transpose(0, 2, 1, 3).reshape(*qkv[0].shape[:2], heads.columns)

    def rotate(self, x, cosines, sines):
        turned, rest = np.split(x, [self.layer.rotary], axis=-1)
        if self.layer.interleaved:
            turned = np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)
        low, high = np.split(turned, 2, axis=-1)
        turned = turned * cosines[:, None] + np.concatenate([-high, low], axis=-1) * sines[:, None]
        return np.concatenate([turned, rest], axis=-1)


def half(x):
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


def upper_half(x):
    """Of f32, rounded to nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def in_bytes(x):
    """Of eight bits, with a scale in half precision for every 32 numbers."""
    parts = []
    for part in np.split(x.astype(np.float32), range(32, x.shape[-1], 32), axis=-1):
        largest = np.abs(part).max(axis=-1, keepdims=True)
        scales = (largest / np.float32(127)).astype(np.float16)
        scales = np.where(scales * np.float32(127.5) < largest, np.nextafter(scales, np.float16(1)), scales)
        scales = scales.astype(np.float32)
        parts.append(np.clip(np.rint(part * (1 / scales)), -127, 127).astype(np.float64) * scales)
    return np.concatenate(parts, axis=-1)


KEPT = {"f16": half, "i8": in_bytes, "f32": lambda x: x, "bf16": upper_half}


def play(layer: Layer, steps, *, batch=1, padding=None, reorder=False, seed=3) -> None:
    """Run steps of so many rows, and compare each.

    Args:
        layer: whose state is reset.
        steps: rows of each.
        batch: sequences.
        padding: masked positions at the start of each of them; none where it is None.
        reorder: whether sequences change places behind the first step.
        seed: of what they hold.
    """
    reference = Reference(layer)
    rng, past = np.random.default_rng(seed), 0
    layer.request.reset_state()
    mask = np.zeros((batch, 0), np.int64)
    for number, rows in enumerate(steps):
        mask = np.concatenate([mask, np.ones((batch, rows), np.int64)], axis=1)
        for row, count in enumerate(padding or ()):
            mask[row, :count] = 0
        qkv = [rng.standard_normal((batch, rows, width)).astype(np.float32) for width in layer.heads.widths]
        residual = rng.standard_normal((batch, rows, HIDDEN)).astype(np.float32)
        tables = batch if padding else 1
        angles = rng.uniform(-3, 3, (tables, rows, layer.rotary))
        cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        beam = rng.integers(0, batch, batch) if reorder and number else np.arange(batch)
        attention = reference.step(qkv, cosines, sines, mask, beam)
        found = layer.infer(qkv, residual, cosines, sines, mask, beam)
        used = mask[:, past:, None] != 0
        # bf16 weights meet more than two rows in bf16 where the processor has its products.
        tolerance = 1e-3 if batch * rows <= 2 else 2e-2
        for one, other in zip(found, layer.expected(attention, residual), strict=True):
            assert np.isfinite(one).all()
            difference = np.abs((one - other) * used).max()
            assert difference <= tolerance * np.abs(other).max(), (number, rows, difference)
        past += rows
