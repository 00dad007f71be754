"""Samples from arrays in a file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from stages.common.errors import UserError
from stages.runtime.datasets.sample import Sample


class Arrays:
    """Samples from an .npz file: one array [N, ...] per model input, and optionally one of targets [N, ...]."""

    def __init__(self, path: str, inputs: dict[str, str] | None = None, targets: str | None = "y", add_batch: bool = True) -> None:
        """
        Args:
            path: the .npz file.
            inputs: input name of the model -> array name in the file. By default every array but the targets is the input of
                the same name; a single array fits the only input of a model whatever it is called.
            targets: name of the array of targets; none if the file has no such array.
            add_batch: arrays are [N, ...] and each sample gets a batch dimension; false: they are [N, 1, ...] and have it.

        Raises:
            UserError: the file is missing or corrupt, lacks an array, or its arrays differ in length.
        """
        if not Path(path).is_file():
            raise UserError(f"data file {path} does not exist")
        try:
            with open(path, "rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if not isinstance(loaded, np.lib.npyio.NpzFile):
                    raise ValueError("it holds a single unnamed array")
                arrays = {name: loaded[name] for name in loaded.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"cannot read {path} as .npz: {error}") from error
        self.path = path
        self.add_batch = add_batch
        self.targets = arrays.pop(targets, None) if targets is not None else None
        wanted = inputs if inputs is not None else {name: name for name in arrays}
        missing = sorted(set(wanted.values()) - set(arrays))
        if missing or not wanted:
            raise UserError(f"{path} has no array {', '.join(missing) or 'for an input'}; its arrays are: {', '.join(arrays) or 'none'}")
        # One array of any name is the only input's.
        names = {"": next(iter(wanted))} if inputs is None and len(wanted) == 1 else wanted
        self.inputs = {name: arrays[source] for name, source in names.items()}
        lengths = {source: arrays[source].shape[:1] for source in wanted.values()}
        if self.targets is not None:
            lengths[targets or ""] = self.targets.shape[:1]
        if len(set(lengths.values())) > 1 or () in lengths.values():
            raise UserError(
                f"the arrays of {path} differ in length: {', '.join(f'{k} has {v[0] if v else 0}' for k, v in lengths.items())}"
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, index: int) -> Sample:
        rows = {name: array[index : index + 1] if self.add_batch else array[index] for name, array in self.inputs.items()}
        target = None if self.targets is None else self.targets[index]
        return Sample(rows, target.item() if isinstance(target, np.generic) else target)
