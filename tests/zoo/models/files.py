"""Files of a dozen kinds, known by the bytes of their start and end.

Run as: python -m conf.files data 40
"""

import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE, PADDING = 1024, 256


def features(content: bytes) -> np.ndarray:
    """The first and the last 1024 bytes without the white space around them, [2048]; shorter files are padded."""
    first, last = content[:4096].lstrip()[:SIZE], content[-4096:].rstrip()[-SIZE:]
    array = np.full(2 * SIZE, PADDING, dtype=np.int32)
    array[: len(first)] = list(first)
    array[2 * SIZE - len(last) :] = list(last)
    return array


def picture(format: str) -> Callable[[bytes, np.random.Generator], bytes]:
    def made(text: bytes, random: np.random.Generator) -> bytes:
        small = random.integers(0, 256, (*random.integers(2, 9, 2), 3)).astype(np.uint8)
        width, height = (int(size) for size in random.integers(40, 200, 2))
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        image.save(file := io.BytesIO(), format)
        return file.getvalue()

    return made


def zipped(text: bytes, random: np.random.Generator) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{random.integers(10**6)}.txt", text)
    return file.getvalue()


def as_json(text: bytes, random: np.random.Generator) -> bytes:
    return json.dumps(yaml.safe_load(text), indent=int(random.integers(4)) or None, default=str).encode()


def as_csv(text: bytes, random: np.random.Generator) -> bytes:
    table = random.normal(0, 10, random.integers([5, 3], [60, 9])).round(int(random.integers(4)))
    names = random.choice(text.decode(errors="ignore").split(), table.shape[1])
    return "\n".join([",".join(name.strip('",;:') for name in names), *(",".join(map(str, row)) for row in table)]).encode()


# Magika's name of a kind -> which files it is made of, and how.
KINDS: dict[str, tuple[str, Callable[[bytes, np.random.Generator], bytes]]] = {
    "python": ("*.py", lambda text, random: b"".join(text.splitlines(keepends=True)[int(random.integers(30)) :])),
    "yaml": ("*.yaml", lambda text, random: text),
    "json": ("*.yaml", as_json),
    "csv": ("*.py", as_csv),
    "zip": ("*.py", zipped),
    "gzip": ("*.py", lambda text, random: gzip.compress(text, mtime=int(random.integers(10**9)))),
    **{format: ("*.py", picture(format)) for format in ("png", "jpeg", "gif", "bmp", "webp", "tiff")},
}


def write(folder: Path, count: int) -> None:
    """Write files.npz: an array `bytes`, and the kinds as `y`; `count` of each kind."""
    labels = json.loads((folder / "magika" / "config.min.json").read_text())["target_labels_space"]
    random = np.random.default_rng(0)
    rows: list[tuple[np.ndarray, int]] = []
    for kind, (pattern, made) in KINDS.items():
        sources = [path for path in sorted((folder / "sources").rglob(pattern)) if path.stat().st_size > 600]
        chosen = random.permutation(len(sources))[:count]
        rows += [(features(made(sources[number].read_bytes(), random)), labels.index(kind)) for number in chosen]
    np.savez(folder / "files.npz", bytes=np.stack([array for array, _ in rows]), y=np.array([label for _, label in rows]))


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
