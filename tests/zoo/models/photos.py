"""Photographs of any number and size out of a folder of a few: crops, mirrored and of other brightness."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


class Photos:
    """RGB crops [1, 3, height, width] from 0 to 1, without labels. Sizes take turns; each crop depends on the seed and its index alone."""

    def __init__(self, path: str, count: int, sizes: Sequence[Sequence[int]], seed: int = 0, scale: float = 1 / 255) -> None:
        """
        Args:
            path: folder of images.
            sizes: [height, width] of the first sample, the second one, ...; then from the start again.
            scale: what pixels of 0 to 255 are multiplied by.
        """
        self.pictures = [Image.open(file).convert("RGB") for file in sorted(Path(path).iterdir())]
        self.count = count
        self.sizes = [tuple(size) for size in sizes]
        self.seed = seed
        self.scale = scale

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        random = np.random.default_rng([index, self.seed])
        picture = self.pictures[index % len(self.pictures)]
        height, width = self.sizes[index % len(self.sizes)]
        # A part of 50 to 100 % of the picture's shorter side, in the proportions of the input.
        largest = min(picture.width / width, picture.height / height)
        part = (width * largest * (share := random.uniform(0.5, 1.0)), height * largest * share)
        left, top = random.uniform(0, picture.width - part[0]), random.uniform(0, picture.height - part[1])
        crop = picture.resize((width, height), Image.Resampling.BILINEAR, (left, top, left + part[0], top + part[1]))
        pixels = np.asarray(crop, dtype=np.float32)[:, :: random.choice([-1, 1])] * random.uniform(0.6, 1.2)
        return np.ascontiguousarray(np.clip(pixels, 0, 255).transpose(2, 0, 1)[None] * np.float32(self.scale))
