"""Write text lines into a folder per class, upright and upside down, as any labelled photos would lie there.

Run as: python -m conf.experiment.text_direction data/text_direction 400
"""

import sys
from pathlib import Path

from PIL import Image

from stages.runtime.datasets import TextLines


def write(folder: Path, count: int) -> None:
    """Every second line upside down."""
    lines = TextLines(count, seed=3)
    for index in range(count):
        turn = (0, 180)[index % 2]
        target = folder / f"{turn}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lines.picture(index)[0]).rotate(turn).save(target / f"{index:04}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
