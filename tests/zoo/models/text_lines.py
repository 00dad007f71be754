"""Text lines as wide as they are, for a recogniser that takes any width."""

import numpy as np

from stages.runtime.datasets import Sample, text_lines


class OwnWidth(text_lines.TextLines):
    """Lines [1, 3, 48, w] without the padding at the right."""

    def __getitem__(self, index: int) -> Sample:
        pixels, text = self.picture(index)
        return Sample({"": pixels[:, :, ::-1].transpose(2, 0, 1)[None] / np.float32(127.5) - 1}, text)
