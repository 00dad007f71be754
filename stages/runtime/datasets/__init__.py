"""Data sets, and samples checked against the model they are for.

A data set is any object with `__len__` and `__getitem__(index)`, where an item is one of

    array                       the only input of the model
    {"input name": array}       inputs by name
    (either of these, target)   with what the metrics compare with: a class, a text, a class map, ...
    Sample(inputs, target)

Arrays carry the batch dimension, of size 1: what a model takes of shape [N, 3, 224, 224] is [1, 3, 224, 224] here. An optional
`label(index)` says what to call a sample in messages, e.g. its file (`Dataset` has all that is optional). Whatever NumPy can read
will do, e.g. tensors of PyTorch. A data set of your own is such a class, named by `_target_` in conf/data/.
"""

from stages.runtime.datasets.arrays import Arrays
from stages.runtime.datasets.binding import Samples
from stages.runtime.datasets.coco import CocoImages
from stages.runtime.datasets.identities import Identity, identity
from stages.runtime.datasets.image_folder import ImageFolder
from stages.runtime.datasets.image_masks import ImageMasks
from stages.runtime.datasets.inputs import ModelInput, model_inputs
from stages.runtime.datasets.sample import Dataset, Part, Sample
from stages.runtime.datasets.text_lines import TextLines

__all__ = [
    "Arrays",
    "CocoImages",
    "Dataset",
    "Identity",
    "ImageFolder",
    "ImageMasks",
    "ModelInput",
    "Part",
    "Sample",
    "Samples",
    "TextLines",
    "identity",
    "model_inputs",
]
