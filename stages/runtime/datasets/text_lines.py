"""The bundled example's data: labelled text lines, rendered on demand from a seed."""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from stages.common.errors import UserError
from stages.runtime.datasets.sample import Sample

HEIGHT, WIDTH = 48, 320  # input of the PP-OCR recognisers
FONT_SIZE = 40  # rendered large, scaled down later as a camera would

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
)
# No I, O and Q, as on many real plates.
PLATE_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WORDS = (  # noqa: SIM905 - nobody reads a list of 200 quoted words
    "account airport apple balance battery bicycle bottle bridge butter camera carbon castle center charge cheese circle client "
    "coffee copper credit customs delivery deposit dinner doctor double engine energy entrance evening exchange express factory "
    "family fashion filter flower forest format garden general ginger glass golden ground guitar harbor health hidden history "
    "hotel image index invoice island jacket journal jungle kernel kitchen ladder language laptop lemon letter library license "
    "lounge luggage machine magnet manager market measure medical member memory message metal method mirror mobile modern "
    "monitor morning motor mountain museum narrow network number object office orange organic outlet oxygen package palace paper "
    "parking partner passport pattern payment pencil pepper phone photo picture planet plastic platform pocket police postal "
    "power premium printer product project quality quantum quarter radio railway rapid receipt record refund region report "
    "reserve restaurant return river rocket safety sample school science season second select server service shadow shelter "
    "signal silver simple single social spring square stadium station stereo storage street student subject sugar summer supply "
    "surface switch system tablet target teacher temple theatre ticket tomato total tourist traffic transit travel tunnel "
    "uniform unique update valley vehicle version village vision volume wallet warning water weather welcome window winter "
    "wonder yellow zero"
).split()


class TextLines:
    """Plates, amounts, dates and words as a recogniser sees them: rotated, rescaled, blurred, noisy. The target is the text.

    Each line depends on the seed and its index alone, so any one can be rendered alone and different seeds give different lines.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        """
        Args:
            count: number of lines.
            seed: what makes this set differ from others.
        """
        if count < 1:
            raise UserError(f"TextLines: count is {count}, but must be at least 1")
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> str:
        return repr(_text(self._random(index)))

    def __getitem__(self, index: int) -> Sample:
        pixels, text = self.picture(index)
        return Sample({"": _preprocessed(pixels)}, text)

    def picture(self, index: int) -> tuple[np.ndarray, str]:
        """A line as an RGB image [48, w <= 320, 3] of bytes, and its text."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = self._random(index)
        text = _text(random)
        return _render(text, random), text

    def _random(self, index: int) -> np.random.Generator:
        # In this order: a seed of several words, put first, would take the index's place.
        return np.random.default_rng([index, self.seed])


def _text(random: np.random.Generator) -> str:
    def letters(count: int) -> str:
        return "".join(random.choice(list(PLATE_LETTERS), count))

    def digits(count: int) -> str:
        return "".join(str(digit) for digit in random.integers(0, 10, count))

    kind = random.integers(4)
    if kind == 0:
        style = random.integers(4)
        if style == 0:
            return f"{letters(3)}-{digits(4)}"
        if style == 1:
            return f"{letters(2)}{digits(2)}{letters(3)}"
        if style == 2:
            return f"{digits(4)}{letters(3)}"
        return f"{letters(1)}-{letters(2)}{digits(4)}"
    if kind == 1:
        amount = round(math.exp(random.uniform(0, 11)), 2)
        style = random.integers(3)
        return (f"${amount:,.2f}", f"{amount:.2f}EUR", f"{amount:,.2f}")[style]
    if kind == 2:
        year, month, day = random.integers(1990, 2035), random.integers(1, 13), random.integers(1, 29)
        style = random.integers(4)
        return (
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{month:02}/{day:02}/{year}",
            f"{day}-{MONTHS[month - 1]}-{year}",
        )[style]
    words = [str(word) for word in random.choice(WORDS, random.integers(1, 3), replace=False)]
    style = random.integers(3)
    words = [(word, word.capitalize(), word.upper())[style] for word in words]
    return "-".join(words) if sum(map(len, words)) <= 13 else words[0]


@functools.cache
def fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """The DejaVu fonts that matplotlib ships, found without importing it."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise UserError("the bundled text lines use the fonts of matplotlib, which is not installed")
    folder = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    try:
        # The basic layout is the same everywhere; the other one depends on libraries of the system.
        return tuple(ImageFont.truetype(str(folder / name), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC) for name in FONTS)
    except OSError as error:
        raise UserError(f"cannot read the DejaVu fonts in {folder}: {error}") from error


def _render(text: str, random: np.random.Generator) -> np.ndarray:
    """An image of the text as a photograph would have it, [48, w <= 320, 3] in RGB.

    The ranges make FP32 read about nine lines in ten. Low contrast and rotation are what quantized models stumble over most;
    blur and small print are as hard for FP32.
    """
    font = fonts()[random.integers(len(FONTS))]
    left, top, right, bottom = font.getbbox(text)
    margin = random.integers(1, 5, 4)
    mask = Image.new("L", (int(right - left + margin[0] + margin[1]), int(bottom - top + margin[2] + margin[3])))
    ImageDraw.Draw(mask).text((int(margin[0] - left), int(margin[2] - top)), text, font=font, fill=255)
    mask = mask.rotate(random.uniform(-6, 6), Image.Resampling.BILINEAR, expand=True)
    # Seen from afar: this is how many pixels are left of the line's height.
    height = int(random.integers(22, 44))
    width = max(8, round(mask.width * height / mask.height))
    mask = mask.resize((width, height), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8)))
    paper, ink = _colors(random)
    image = paper + (ink - paper) * (np.asarray(mask, dtype=np.float32)[:, :, None] / 255)
    # The light falls off towards one side, and the sensor adds noise.
    light = np.linspace(1, random.uniform(0.6, 1), width, dtype=np.float32)
    image *= (light if random.random() < 0.5 else light[::-1])[:, None]
    image += random.standard_normal(image.shape, dtype=np.float32) * random.uniform(0, 20)
    pixels = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    # What is longer than the input is squeezed into it, as PP-OCR does.
    size = (min(WIDTH, math.ceil(width * HEIGHT / height)), HEIGHT)
    return np.asarray(pixels.resize(size, Image.Resampling.BILINEAR))


def _colors(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paper and ink in RGB: slightly tinted greys, mostly dark on light, of high to low contrast."""
    contrast = random.uniform(40, 140)
    tints = random.uniform(-25, 25, (2, 3))
    dark = random.uniform(25, 230 - contrast)
    bright = (dark + contrast + tints[0]).astype(np.float32)
    deep = (dark + tints[1]).astype(np.float32)
    return (bright, deep) if random.random() < 0.7 else (deep, bright)


def _preprocessed(pixels: np.ndarray) -> np.ndarray:
    """PP-OCR's input: BGR, -1 to 1, [1, 3, 48, 320] with zeros at the right."""
    array = np.zeros((1, 3, HEIGHT, WIDTH), dtype=np.float32)
    array[0, :, :, : pixels.shape[1]] = pixels[:, :, ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1
    return array
