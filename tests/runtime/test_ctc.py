"""Metrics of text recognisers against the definition of CTC, and texts worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from stages.common.errors import UserError
from stages.runtime.ctc import CtcDecoder, edit_distance
from stages.runtime.metrics import CharacterAccuracy, ExactMatch, Metric
from tests.runtime import models


def rows_of(metric: Metric, outputs: np.ndarray, targets: Any) -> np.ndarray:
    return np.stack([np.atleast_1d(metric.per_sample([output], target)) for output, target in zip(outputs, targets, strict=True)])


def recogniser(characters: str, classes: int, steps: int = 6) -> ov.Model:
    model = models.identity(1, steps, classes)
    model.set_rt_info("\n".join(characters), ["framework", "character"])
    return model


def scores(path: list[int], classes: int) -> np.ndarray:
    """Output [1, T, C] whose best classes are `path`."""
    noise = np.random.default_rng(0).uniform(0, 0.5, (1, len(path), classes)).astype(np.float32)
    noise[0, np.arange(len(path)), path] += 0.6
    return noise


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([0, 1, 1, 0, 2, 0], "ab"),
        ([1, 1, 1, 1, 1, 1], "a"),
        ([1, 0, 1, 1, 0, 1], "aaa"),  # only a blank separates equal characters
        ([0, 0, 0, 0, 0, 0], ""),
        ([1, 2, 1, 2, 3, 4], "ababc "),  # 4 is the space that PaddleOCR adds
    ],
)
def test_ctc_collapses_repeats_and_drops_blanks(path: list[int], text: str) -> None:
    metric = ExactMatch()
    metric.bind(recogniser("abc", 5))
    assert metric.decoder(scores(path, 5)) == text


def test_ctc_equals_the_definition_on_all_short_paths() -> None:
    decoder = CtcDecoder(["", "a", "b"], blank=0)
    for path in itertools.product(range(3), repeat=5):
        collapsed = [index for index, _ in itertools.groupby(path)]
        assert decoder(scores(list(path), 3)) == "".join(["", "a", "b"][index] for index in collapsed)


@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_ctc_finds_the_classes_in_any_layout(layout: tuple[int, int, int]) -> None:
    decoder = CtcDecoder(["", "a", "b", "c"], blank=0)
    assert decoder(scores([1, 0, 3, 3, 2, 2], 4).transpose(layout)) == "acb"


def test_the_blank_may_be_the_last_class() -> None:
    metric = ExactMatch(blank=-1)
    metric.bind(recogniser("abc", 4))
    assert metric.decoder(scores([0, 3, 0, 1, 2, 3], 4)) == "aabc"


def test_characters_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "characters.txt").write_text("ä\nß\n", encoding="utf-8")
    metric = ExactMatch(characters=str(tmp_path / "characters.txt"))
    metric.bind(models.identity(1, 4, 3))
    assert metric.decoder(scores([1, 0, 2, 2], 3)) == "äß"


def test_characters_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"3 characters do not fit an output of shape \[1, 6, 9\]"):
        ExactMatch().bind(recogniser("abc", 9))
    with pytest.raises(UserError, match="the model does not tell its characters"):
        ExactMatch().bind(models.identity(1, 6, 5))
    with pytest.raises(UserError, match=r"cannot read the characters file nowhere\.txt"):
        ExactMatch(characters="nowhere.txt").bind(models.identity(1, 6, 5))


@pytest.mark.parametrize(("classes", "text"), [(3, "äß"), (4, "äß ")])
def test_the_first_output_tells_the_classes_where_the_model_does_not(tmp_path: Path, classes: int, text: str) -> None:
    (tmp_path / "characters.txt").write_text("ä\nß\n", encoding="utf-8")
    metric = ExactMatch(characters=str(tmp_path / "characters.txt"))
    metric.bind(models.identity(-1, 1, -1))
    assert metric.decoder(scores([1, 0, 2, 2, classes - 1], classes).transpose(1, 0, 2)) == text
    other = ExactMatch(characters=str(tmp_path / "characters.txt"))
    other.bind(models.identity(-1, 1, -1))
    with pytest.raises(UserError, match=r"2 characters do not fit an output of shape \[4, 1, 9\]"):
        other.decoder(scores([1, 0, 2, 2], 9).transpose(1, 0, 2))


@pytest.mark.parametrize(("ignore_space", "expected"), [(False, [0, 0, 1]), (True, [1, 0, 1])])
def test_exact_match(ignore_space: bool, expected: list[int]) -> None:
    metric = ExactMatch(ignore_space=ignore_space)
    metric.bind(recogniser("abc", 5))
    outputs = [scores(path, 5) for path in ([4, 1, 0, 2, 3, 4], [0, 1, 2, 0, 0, 0], [1, 0, 2, 0, 3, 3])]  # " abc ", "ab", "abc"
    rows = rows_of(metric, np.stack(outputs), ["abc"] * 3)
    np.testing.assert_array_equal(rows[:, 0], expected)


def test_character_accuracy_counts_edits_over_all_characters() -> None:
    metric = CharacterAccuracy()
    metric.bind(recogniser("abc", 5))
    outputs = np.stack([scores([1, 0, 2, 0, 3, 0], 5), scores([1, 0, 0, 0, 0, 0], 5)])  # "abc", "a"
    rows = rows_of(metric, outputs, ["abc", "cab" * 3])
    np.testing.assert_array_equal(rows, [[0, 3], [8, 9]])
    assert metric.value(rows) == pytest.approx(1 - 8 / 12)
    np.testing.assert_allclose(metric.score(rows), [1, 1 / 9])


@pytest.mark.parametrize("metric", [ExactMatch(), CharacterAccuracy()])
def test_scores_that_are_not_numbers_are_not_hidden(metric: ExactMatch) -> None:
    metric.bind(recogniser("abc", 5))
    output = scores([1, 0, 2, 0, 3, 0], 5)
    output[0, 2, 2] = np.nan
    assert np.isnan(metric.per_sample([output], "abc")).any()


def test_texts_in_arrays_of_one() -> None:
    """As rows of labels [N, 1] are."""
    for metric in (ExactMatch(), CharacterAccuracy()):
        metric.bind(recogniser("abc", 5))
        for label in (np.array(["ab"]), ["ab"], np.array([["ab"]])):
            metric.check(label)
            assert metric.value(np.atleast_2d(metric.per_sample([scores([1, 0, 2, 0, 0, 0], 5)], label))) == 1.0


@pytest.mark.parametrize("target", [None, 3, "", "  ", ["ab", "c"], np.array([""])])
def test_labels_that_are_no_text(target: Any) -> None:
    with pytest.raises(UserError, match="ExactMatch needs the text as label"):
        ExactMatch().check(target)


@pytest.mark.parametrize(
    ("read", "target", "edits"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance(read: str, target: str, edits: int) -> None:
    assert edit_distance(read, target) == edits
    assert edit_distance(target, read) == edits


def test_agreement_is_with_what_the_other_model_reads() -> None:
    for metric, expected in ((ExactMatch(), 0.0), (CharacterAccuracy(), 1 - 1 / 3)):
        metric.bind(recogniser("abc", 5))
        read, other, nothing = (scores(path, 5) for path in ([1, 0, 2, 0, 3, 0], [1, 0, 2, 0, 2, 0], [0] * 6))
        assert metric.agreement([read], [read]) == 1.0
        assert metric.agreement([other], [read]) == pytest.approx(expected)
        assert metric.agreement([read], [nothing]) is None  # no characters of which a share could be right
