"""Arrays in files of NumPy, of which rows are read when they are asked for: the files may be larger than the memory."""

from __future__ import annotations

import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

import numpy as np

from stages.common.errors import UserError
from stages.runtime.datasets.files import files_in

MAGIC = b"\x93NUMPY"
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
LOCAL_HEADER = 30  # bytes of a zip file's entry before its name
# Workers of a cluster may have no such file: up to this, they get what is in it.
LARGEST_SENT = 2_000_000_000


class StoredArray(ABC):
    """An array [N, ...] of which rows are read one by one. `shape` is that of the whole, `dtype` that of its values."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """What it would take in memory."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: int) -> np.ndarray:
        """A row [...], an array of its own."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(index)
        return self.row(index)

    @abstractmethod
    def row(self, index: int) -> np.ndarray: ...

    @abstractmethod
    def whole(self) -> np.ndarray: ...

    def __reduce__(self) -> tuple[Any, ...]:
        return (MemoryArray, (self.whole(),)) if self.nbytes <= LARGEST_SENT else (type(self), tuple(self.__dict__.values()))


class MemoryArray(StoredArray):
    """An array that is in memory."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values.shape, values.dtype)
        self.values = values

    def row(self, index: int) -> np.ndarray:
        return _row(self.values, index)

    def whole(self) -> np.ndarray:
        return self.values

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryArray, (self.values,)


class FileArray(StoredArray):
    """An array whose bytes stand in a file as they would in memory, one row behind the other."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, path: Path, offset: int) -> None:
        super().__init__(shape, dtype)
        self.path = path
        self.offset = offset

    def row(self, index: int) -> np.ndarray:
        return self._read(index, 1).reshape(self.shape[1:])

    def whole(self) -> np.ndarray:
        return self._read(0, self.shape[0])

    def _read(self, first: int, rows: int) -> np.ndarray:
        count = int(np.prod(self.shape[1:], dtype=np.int64))
        # Not mapped into memory: there, a file that another program makes shorter would end this one without a word.
        with open(self.path, "rb") as file:
            file.seek(self.offset + first * count * self.dtype.itemsize)
            values = np.fromfile(file, self.dtype, rows * count)
        if values.size < rows * count:
            raise UserError(f"{self.path} has become shorter since it was opened")
        return values.reshape(rows, *self.shape[1:])


class ColumnsFirst(FileArray):
    """An array in Fortran's order, whose rows lie scattered over the file."""

    def row(self, index: int) -> np.ndarray:
        return _row(self.whole(), index)

    def whole(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")


class CompressedArray(StoredArray):
    """An array that an .npz file holds compressed: read as a whole with its first row, and then in memory."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, path: Path, name: str) -> None:
        super().__init__(shape, dtype)
        self.path = path
        self.name = name
        self._loaded: list[np.ndarray] = []

    def row(self, index: int) -> np.ndarray:
        return _row(self.whole(), index)

    def whole(self) -> np.ndarray:
        if not self._loaded:
            available = available_memory()
            if available is not None and self.nbytes > available:
                raise UserError(
                    f"array {self.name} of {self.path} takes {self.nbytes / 1e9:.1f} GB uncompressed, and {available / 1e9:.1f} GB of "
                    "memory are available: written by np.savez instead of np.savez_compressed it is read sample by sample"
                )
            try:
                with np.load(self.path, allow_pickle=False) as arrays:
                    self._loaded.append(arrays[self.name])
            except DAMAGE as error:
                raise UserError(f"cannot read {self.path} as .npz: {error}") from error
        return self._loaded[0]


def _row(values: np.ndarray, index: int) -> np.ndarray:
    """A copy of a row, an array even where it is a single text."""
    return values[index : index + 1].reshape(values.shape[1:]).copy()


def open_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays by name: of an .npz file, of an .npy file, or of the .npy files in a folder, which are named like their arrays.

    Only headers are read, and what is read later is the rows that are asked for. The exception are compressed arrays, which can only
    be read as a whole, when the first of their rows is.

    Raises:
        UserError: nothing of this kind is there, or it is damaged.
    """
    if path.is_dir():
        files = [file for file in files_in(path, nested=False) if file.suffix == ".npy"]
        if not files:
            raise UserError(f"folder {path} has no .npy files")
        return {file.stem: _of_npy(file) for file in files}
    if not path.is_file():
        raise UserError(f"data file {path} does not exist")
    with open(path, "rb") as file:
        plain = file.read(len(MAGIC)) == MAGIC
    return {path.stem: _of_npy(path)} if plain else _of_npz(path)


def _of_npy(path: Path) -> StoredArray:
    try:
        return _of_bytes(path, 0, path.stat().st_size)
    except DAMAGE as error:
        raise UserError(f"cannot read {path} as .npy: {error}") from error


def _of_npz(path: Path) -> dict[str, StoredArray]:
    arrays: dict[str, StoredArray] = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    continue
                name = entry.filename.removesuffix(".npy")
                if entry.compress_type == zipfile.ZIP_STORED:
                    begin = _data_offset(file, entry)
                    arrays[name] = _of_bytes(path, begin, begin + entry.file_size)
                else:
                    with archive.open(entry) as member:
                        shape, _, dtype = _header(member)
                    arrays[name] = CompressedArray(shape, dtype, path, name)
    except DAMAGE as error:
        raise UserError(f"cannot read {path} as .npz: {error}") from error
    return arrays


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin: behind its name and what else its own header holds."""
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    return entry.header_offset + LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array that begins here."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects instead of numbers or text")
    return shape, columns_first, dtype


def _of_bytes(path: Path, begin: int, end: int) -> StoredArray:
    """The array between two places of a file."""
    with open(path, "rb") as file:
        file.seek(begin)
        shape, columns_first, dtype = _header(file)
        array = (ColumnsFirst if columns_first and len(shape) > 1 else FileArray)(shape, dtype, path, file.tell())
    if array.offset + array.nbytes > end:
        raise ValueError("it is shorter than its header says")
    return array


def available_memory() -> int | None:
    """Bytes of memory that programs can still take here; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
