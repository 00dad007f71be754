"""Reading the output of text recognisers trained with CTC, and comparing texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from stages.common.errors import UserError

CHARACTERS = ["framework", "character"]  # where OpenVINO keeps the list that PaddleOCR stores in its models' metadata


class CtcDecoder:
    """Greedy CTC decoding: best class of each step, repeats collapsed, blanks dropped."""

    def __init__(self, classes: Sequence[str], blank: int = 0, characters: list[str] | None = None) -> None:
        """
        Args:
            classes: the text of each class; that of the blank does not matter.
            blank: class of the blank.
            characters: what the classes are made of when the first output says how many there are, as the model does not.
        """
        self.characters = characters
        self.classes = list(classes)
        self.blank = blank

    @classmethod
    def of_model(cls, model: ov.Model, shape: Sequence[int], characters: str | None, blank: int) -> CtcDecoder:
        """The decoder for a model's output of `shape`, with the model's own characters or those of a text file.

        Models have one class per character and the blank, PaddleOCR's a last one for the space: the number of classes tells.
        """
        if characters is not None:
            try:
                listed = Path(characters).read_text(encoding="utf-8").removesuffix("\n").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"cannot read the characters file {characters}: {error}") from error
        elif model.has_rt_info(CHARACTERS):
            listed = model.get_rt_info(CHARACTERS).astype(str).removesuffix("\n").split("\n")
        else:
            raise UserError(
                "the model does not tell its characters (rt_info framework/character): name a text file, one character per line"
            )
        if -1 in shape[1:] and not any(len(listed) + more in shape[1:] for more in (1, 2)):
            return cls([], blank, listed)
        return cls(*_classes(listed, blank, shape))

    def __call__(self, output: np.ndarray) -> str | None:
        """The text of one sample's scores [1, T, C], [T, 1, C] or [1, C, T]; None when a score is NaN."""
        if self.characters is not None:
            (self.classes, self.blank), self.characters = _classes(self.characters, self.blank, output.shape), None
        axis = output.shape.index(len(self.classes), 1)
        best = output.argmax(axis=axis, keepdims=True)
        if np.isnan(np.take_along_axis(output, best, axis)).any():  # argmax finds a NaN, and looking for it everywhere takes as long
            return None
        best = best.ravel()
        changes = np.flatnonzero(np.diff(best, prepend=-1))
        return "".join(self.classes[index] for index in best[changes] if index != self.blank)


def _classes(characters: list[str], blank: int, shape: Sequence[int]) -> tuple[list[str], int]:
    """The text of each class of an output of `shape`, and which class is the blank.

    Raises:
        UserError: no size of the shape is their number.
    """
    for texts in (characters, [*characters, " "]):
        if len(texts) + 1 in shape[1:]:
            blank %= len(texts) + 1
            return [*texts[:blank], "", *texts[blank:]], blank
    raise UserError(f"{len(characters)} characters do not fit an output of shape {list(shape)}: it needs one class each, and the blank")


def edit_distance(read: str, target: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(target) + 1))
    for i, character in enumerate(read, start=1):
        diagonal, row[0] = row[0], i
        for j, expected in enumerate(target, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (character != expected))
    return row[-1]
