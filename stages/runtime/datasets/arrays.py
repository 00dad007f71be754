"""Samples from arrays in files."""

from __future__ import annotations

from pathlib import Path

from stages.common.errors import UserError
from stages.runtime.datasets.array_files import open_arrays
from stages.runtime.datasets.sample import Sample


class Arrays:
    """Samples from files of NumPy: one array [N, ...] per model input, and optionally one of targets [N, ...].

    Samples are read one by one, so the files may be larger than the memory; only those that np.savez_compressed writes must fit.
    """

    def __init__(self, path: str, inputs: dict[str, str] | None = None, targets: str | None = "y", add_batch: bool = True) -> None:
        """
        Args:
            path: an .npz file, an .npy file, or a folder of .npy files that are named like their arrays.
            inputs: input name of the model -> name of the array. By default every array but the targets is the input of
                the same name; a single array fits the only input of a model whatever it is called.
            targets: name of the array of targets; none if there is no such array.
            add_batch: arrays are [N, ...] and each sample gets a batch dimension; false: they are [N, 1, ...] and have it.

        Raises:
            UserError: the file is missing or corrupt, lacks an array, or its arrays differ in length.
        """
        arrays = open_arrays(Path(path))
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
        return next(iter(self.inputs.values())).shape[0]

    def __getitem__(self, index: int) -> Sample:
        rows = {name: array[index][None] if self.add_batch else array[index] for name, array in self.inputs.items()}
        target = None if self.targets is None else self.targets[index]
        return Sample(rows, target.item() if target is not None and target.ndim == 0 else target)
