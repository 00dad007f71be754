"""Captchas that are rendered on demand, and the characters that the reader knows.

Run as: python -m conf.captchas data/ddddocr/charset_manager.py data/characters.txt
"""

import ast
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.runtime.datasets.text_lines import fonts

SIGNS = "abcdefghjkmnpqrstuvwxyz23456789"  # those that nobody confuses
HEIGHT = 64


class Captchas:
    """Grey images [1, 1, 64, w] from 0 to 1 of four to six twisted signs; the target is their text."""

    def __init__(self, count: int, width: int | None = None, seed: int = 0) -> None:
        """
        Args:
            width: of the model's input; null: as wide as the signs need.
        """
        self.count = count
        self.width = width
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        image, text = captcha(np.random.default_rng([index, self.seed]))
        size = (self.width or round(image.width * HEIGHT / image.height), HEIGHT)
        pixels = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
        return pixels[None, None] / np.float32(255), text


def captcha(random: np.random.Generator) -> tuple[Image.Image, str]:
    """An RGB image and its text."""
    signs = [str(sign) for sign in random.choice(list(SIGNS), random.integers(4, 7))]
    image = Image.new("RGB", (30 + 32 * len(signs), 60), tuple(int(value) for value in random.integers(200, 256, 3)))
    draw, left = ImageDraw.Draw(image), 8
    for sign in signs:
        font = fonts()[random.integers(8)].font_variant(size=int(random.integers(30, 42)))
        mask = Image.new("L", (60, 60))
        ImageDraw.Draw(mask).text((30, 30), sign, font=font, fill=255, anchor="mm")
        mask = mask.rotate(random.uniform(-25, 25), Image.Resampling.BILINEAR)
        mask = mask.crop(mask.getbbox())
        place = (left, int(random.integers(2, max(3, 58 - mask.height))))
        image.paste(tuple(int(value) for value in random.integers(0, 130, 3)), place, mask)
        left += mask.width + int(random.integers(2, 8))
    for _ in range(3):
        ends = [int(value) for value in random.integers(0, [image.width, image.height, image.width, image.height])]
        draw.line(ends, fill=tuple(int(value) for value in random.integers(60, 200, 3)), width=1)
    noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 0.9)))) + random.normal(0, 12, (60, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), "".join(signs)


def write_characters(source: Path, target: Path) -> None:
    """The list that the package's code returns, one character per line, without the blank in front."""
    functions = [node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
    function = next(node for node in functions if node.name == "_get_beta_charset")
    value = next(node.value for node in ast.walk(function) if isinstance(node, ast.Return))
    assert value is not None
    target.write_text("\n".join(ast.literal_eval(value)[1:]) + "\n", "utf-8")


if __name__ == "__main__":
    write_characters(Path(sys.argv[1]), Path(sys.argv[2]))
