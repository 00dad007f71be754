"""The data sets that conf/ offers: what `validation` takes from `calibration`, and what their defaults do to an image."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stages.common.errors import ConfigError
from stages.configuration.loading import create
from tests.configuration.resolving import EXAMPLE, Resolve
from tests.project import Project

LINES = "stages.runtime.datasets.TextLines"


def test_image_folder_validation_follows_calibration(resolve: Resolve, project: Project) -> None:
    project.write("images/1.png", "")
    both = "data: {calibration: {path: images, size: [64, 48], color: BGR}, validation: {path: images}}"
    config = resolve(both, EXAMPLE[0], "data: image_folder")
    assert config.data.validation == config.data.calibration
    only = resolve("data: {calibration: {path: images}, validation: null}", EXAMPLE[0], "data: image_folder")
    assert only.data.validation is None
    with pytest.raises(ConfigError, match=r"^data\.validation\.path: \?\?\? is not allowed; a value must be given"):
        resolve("data: {calibration: {path: images}}", EXAMPLE[0], "data: image_folder")


@pytest.mark.parametrize(
    ("choice", "calibration", "own", "expected"),
    [
        ("arrays", {"path": "a.npz", "targets": "label"}, {"path": "b.npz"}, {"path": "b.npz", "targets": "label", "add_batch": True}),
        ("coco", {"path": "a.npz", "annotations": "a.npz", "size": [4, 4]}, {"path": "b.npz"}, {"annotations": "a.npz", "size": [4, 4]}),
        ("custom", {"_target_": LINES, "count": 3, "seed": 1}, {"seed": 2}, {"count": 3, "seed": 2}),
        ("text_lines", {"count": 3}, {"count": 4}, {"count": 4, "seed": 2}),
        ("custom", {"_target_": LINES, "count": 3, "seed": 1}, {}, {"count": 3, "seed": 1}),
    ],
)
def test_validation_of_the_same_kind_says_only_what_differs(
    resolve: Resolve, project: Project, choice: str, calibration: dict[str, Any], own: dict[str, Any], expected: dict[str, Any]
) -> None:
    for file in ("a.npz", "b.npz"):
        project.write(file, "")
    keys = yaml.safe_dump({"data": {"calibration": calibration, "validation": own}})
    data = resolve(keys, EXAMPLE[0], f"data: {choice}").data
    assert data.validation is not None
    assert data.validation["_target_"] == data.calibration["_target_"]
    assert {key: data.validation[key] for key in expected} == expected
    assert data.validation.keys() == data.calibration.keys()


def test_validation_of_another_kind_takes_nothing_from_calibration(resolve: Resolve, project: Project) -> None:
    project.write("a.npz", "")
    keys = f"data: {{calibration: {{path: a.npz}}, validation: {{_target_: {LINES}, count: 4}}}}"
    assert resolve(keys, EXAMPLE[0], "data: arrays").data.validation == {"_target_": LINES, "count": 4}


def test_an_image_folder_shows_all_of_an_image_of_the_models_size(resolve: Resolve, project: Project) -> None:
    """`size` alone is enough: no other default cuts off what is at the borders, and any way to resize goes with it."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (project.root / "images").mkdir()
    Image.fromarray(pixels).save(project.root / "images" / "1.png")
    for resize in ("", "resize: stretch, ", "resize: pad, ", "resize: crop, "):
        keys = f"data: {{calibration: {{path: images, size: [64, 64], {resize}mean: 0, std: 1}}, validation: null}}"
        config = resolve(keys, EXAMPLE[0], "data: image_folder")
        (array,) = create(config.data.calibration, "data.calibration")[0].inputs.values()
        np.testing.assert_array_equal(array[0], pixels.transpose(2, 0, 1), err_msg=resize)


def test_a_way_to_resize_that_does_not_exist_is_refused_at_once(resolve: Resolve, project: Project) -> None:
    project.write("images/1.png", "")
    for key, value, allowed in (("resize", "strech", "'stretch', 'crop' or 'pad'"), ("color", "rgb", "'RGB', 'BGR' or 'GRAY'")):
        with pytest.raises(ConfigError, match=rf"^data\.calibration\.{key}: '{value}' is not allowed; expected {allowed}"):
            resolve(f"data: {{calibration: {{path: images, {key}: {value}}}, validation: null}}", EXAMPLE[0], "data: image_folder")
