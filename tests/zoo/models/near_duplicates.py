"""Texts with typing errors, and whether their embedding is nearest to that of the text they were typed from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov

from stages.runtime.datasets.text_lines import WORDS
from stages.runtime.metrics import Metric

LENGTH = 512  # characters of the model's input
BITS = 1 << np.arange(23, -1, -1)


def original(index: int) -> str:
    """A text of 8 to 20 words; every fourth shares half of its words with the one before, so that near means something."""
    words = [str(word) for word in np.random.default_rng([index, 11]).choice(WORDS, 20)]
    if index % 4 == 3:
        words[::2] = original(index - 1).split()[:20:2] + words[::2][len(original(index - 1).split()[:20:2]) :]
    return " ".join(words[: 8 + index % 13])


def mistyped(text: str, share: float, random: np.random.Generator) -> str:
    """The text with a share of its characters left out, doubled, swapped or replaced."""
    signs = list(text)
    for place in random.permutation(len(signs))[: max(1, round(share * len(signs)))]:
        edit = random.integers(4)
        other = int(random.integers(len(signs)))
        signs[place] = ("", 2 * signs[place], signs[other], chr(random.integers(97, 123)))[edit]
    return "".join(signs)


def bits(text: str) -> np.ndarray:
    """The characters' code points in binary, [1, 512, 24], zeros behind the text's end."""
    array = np.zeros((1, LENGTH, 24), dtype=np.float32)
    codes = np.array([ord(sign) for sign in text[:LENGTH]])
    array[0, : len(codes)] = (codes[:, None] & BITS) > 0
    return array


class Mistyped:
    """Texts with up to `share` typing errors; the target is the number of the original."""

    def __init__(self, count: int, originals: int = 400, share: float = 0.3, seed: int = 0) -> None:
        self.count = count
        self.originals = originals
        self.share = share
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng([index, self.seed])
        number = int(random.integers(self.originals))
        return bits(mistyped(original(number), random.uniform(0.1, self.share), random)), number


class NearestOriginal(Metric):
    """Share of texts whose embedding is nearest to that of their original in FP32, as an index of embeddings in use would be."""

    def __init__(self, originals: int = 400) -> None:
        self.originals = originals

    def bind(self, model: ov.Model) -> None:
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.index = np.concatenate([compiled(bits(original(number)))[0] for number in range(self.originals)])

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        return float(np.argmax(self.index @ outputs[0][0]) == target)
