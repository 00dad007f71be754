"""Notes as a synthesiser plays them, and which of the piano's 88 keys a transcriber hears in each frame."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.runtime.metrics import Metric, find_output

RATE, SAMPLES, HOP, FRAMES, KEYS = 22050, 43844, 256, 172, 88
LOWEST = 27.5  # hertz of the first key


class Notes:
    """Two seconds of one to four voices, [1, 43844, 1]; the target: which key sounds in which frame, [172, 88]."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([index, self.seed])
        audio, keys = np.zeros(SAMPLES), np.zeros((FRAMES, KEYS), dtype=bool)
        for _ in range(random.integers(1, 5)):
            end = random.uniform(0, 0.5)
            while end < 1.7:
                start, length, key = end, random.uniform(0.25, 0.9), int(random.integers(15, 65))
                end = start + length + random.uniform(0, 0.2)
                first, last = round(start * RATE), min(SAMPLES, round((start + length) * RATE))
                audio[first:last] += note(LOWEST * 2 ** (key / 12), last - first, random)
                keys[round(start * RATE / HOP) : round(last / HOP), key] = True
        audio += random.normal(0, random.uniform(0.0005, 0.01), SAMPLES)
        return (audio / max(1.0, np.abs(audio).max()))[None, :, None].astype(np.float32), keys


def note(hertz: float, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` samples of a plucked or a blown tone."""
    time = np.arange(count) / RATE
    partials = np.arange(1, min(9, int(RATE / 2 / hertz)))
    strengths = random.uniform(0.3, 1.0, len(partials)) / partials ** random.uniform(0.8, 1.6)
    tone = (strengths[:, None] * np.sin(2 * np.pi * hertz * partials[:, None] * time + random.uniform(0, 6, (len(partials), 1)))).sum(0)
    envelope = np.exp(-time * random.uniform(0.3, 3)) * np.clip(time / 0.01, 0, 1) * np.clip((count / RATE - time) / 0.02, 0, 1)
    return random.uniform(0.1, 0.35) * tone * envelope


class FrameF1(Metric):
    """F1 of the keys that sound, over all frames: 2 hits / (2 hits + misses + false ones). Rows are these three numbers."""

    def __init__(self, output: str, threshold: float = 0.3) -> None:
        self.output = output
        self.threshold = threshold

    def bind(self, model: Any) -> None:
        self.index = find_output(model, self.output)

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray:
        heard = outputs[self.index][0] > self.threshold
        return np.array([np.sum(heard & target), np.sum(~heard & target), np.sum(heard & ~target)], dtype=np.float64)

    def value(self, rows: np.ndarray) -> float:
        hits, misses, false = rows.sum(axis=0)
        return float(2 * hits / (2 * hits + misses + false))
