"""Pathfinder against its definition: solid contours are followed pixel by pixel, and angles have their law."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.stats import binomtest, kstest

from suite.errors import UsageError
from suite.plugin import IGNORED
from tasks.pathfinder import Pathfinder, _Pictures


def _task(**settings: Any) -> Pathfinder:
    return Pathfinder(Pathfinder.Options.parse(settings, where="pathfinder"))


def _drawn_contours(num_images: int, **settings: Any) -> tuple[_Pictures, np.ndarray]:
    """The pictures, and the points of their long contours: (contours, dashes, both ends, images, 2)."""
    pictures = _Pictures(np.random.default_rng(0), _task(num_distractors=0, **settings).options, num_images)
    pictures.draw_long_contours()
    return pictures, np.array([[(dash.start, dash.end) for dash in contour] for contour in pictures._contours])


@pytest.mark.parametrize("num_distractors", [0, 4])
def test_dots_are_joined_by_a_solid_contour_where_the_target_says_so(num_distractors: int) -> None:
    solid = {"gap": 0.0, "dash_length": 6.0, "clearance": 5.0, "thickness": 0.5, "num_dashes": 4, "size": 64}
    task = _task(num_distractors=num_distractors, **solid)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=60, length=64 * 64)
    for pixels, targets in zip(batch.inputs, batch.targets, strict=True):
        image = pixels.reshape(64, 64)
        everywhere = np.ones((3, 3))
        dots, num_dots = label(image == 255, everywhere)
        assert num_dots == 2
        contours, num_contours = label(image > 50, everywhere)
        assert 2 <= num_contours <= 2 + num_distractors
        first, second = (contours[dots == dot][0] for dot in (1, 2))
        assert targets[-1] == (first == second)
        assert (targets[:-1] == IGNORED).all()
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border < 255).all()


def test_half_of_the_images_are_joined_and_slices_tell_them_apart() -> None:
    task = _task(size=24, num_dashes=3)
    batch = task.sample(np.random.default_rng(0), split="train", batch_size=400, length=576)
    assert binomtest(int(batch.targets[:, -1].sum()), 400).pvalue > 1e-3
    assert batch.slices is not None
    assert (batch.slices[:, 0] == batch.targets[:, -1]).all()


@pytest.mark.parametrize("continuity", [1.0, 1.8])
def test_turns_follow_the_squared_cosine(continuity: float) -> None:
    _, points = _drawn_contours(400, size=400, num_dashes=4, seed_distance=40.0, continuity=continuity)
    steps = points[:, :, 1] - points[:, :, 0]
    angles = np.arctan2(steps[..., 0], steps[..., 1])
    turns = (np.diff(angles, axis=1) + math.pi) % (2 * math.pi) - math.pi

    def share_below(turn: np.ndarray) -> np.ndarray:
        t = np.clip(continuity * turn, -math.pi / 2, math.pi / 2)
        return (t + np.sin(t) * np.cos(t)) / math.pi + 0.5

    assert kstest(turns.ravel(), share_below).pvalue > 1e-3


def test_dashes_have_their_length_their_gaps_and_their_clearance() -> None:
    pictures, points = _drawn_contours(200)
    assert len(pictures) > 10
    starts, ends = points[:, :, 0], points[:, :, 1]
    assert np.linalg.norm(ends - starts, axis=-1) == pytest.approx(2.0)
    gaps = np.linalg.norm(starts[:, 1:] - ends[:, :-1], axis=-1)
    assert gaps.max() <= 2.0 + 1e-9
    assert gaps.min() >= 2.0 * math.cos(math.pi / 4) - 1e-9
    assert points.min() >= 0.5
    assert points.max() <= 30.5
    middles = (starts + ends) / 2
    for (i, k), (j, m) in itertools.combinations(np.ndindex(2, 14), 2):
        if i != j or abs(k - m) > 1:
            # A point is kept clear by the pixel that it lies in.
            assert np.linalg.norm(middles[i, k] - middles[j, m], axis=-1).min() > 2.0 - 0.5**0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clearance": 6.0}, "clearance 6 keeps a dash from following the last but one; it must be below"),
        ({"size": 16}, "two contours of num_dashes 14 need about 224 pixels"),
        ({"num_dashes": 60}, "an image of size 32 has room for 900"),
        ({"num_shades": 1}, "num_shades = 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_reason(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _task(**settings)
    assert message in str(caught.value)


def test_contours_that_hardly_ever_find_room_are_refused_while_drawing() -> None:
    with pytest.raises(UsageError, match="images 0 had room for two contours of 10 dashes; take fewer"):
        _task(size=14, num_dashes=10, gap=1.0, clearance=2.3).sample(
            np.random.default_rng(0), split="train", batch_size=64, length=196
        )


def test_a_length_that_is_not_the_image_is_refused_with_the_setting_that_changes_it() -> None:
    with pytest.raises(UsageError, match=r"size 32 has 1024 pixels, not 1000; set pathfinder\.size"):
        _task().sample(np.random.default_rng(0), split="test", batch_size=1, length=1000)
