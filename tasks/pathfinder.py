"""Pathfinder: do two dots lie on one contour? (Linsley et al. 2018, arXiv:1805.08315; Tay et al., arXiv:2011.04006).

An image holds two long contours of dashes, which bend but never cross, and shorter ones that distract. A dot marks one
end of a long contour, and another dot the far end either of the same one or of the other. The image is read pixel by
pixel, row by row, and the answer is asked for at the last pixel.

This is the published recipe written anew, so images agree with the published ones in distribution only: a contour grows
dash by dash from its first end, and the next dash turns by an angle t with a chance in proportion to cos²(continuity t)
among those that keep clear of everything drawn before; an image in which a long contour finds no way is thrown away.
That takes a CPU core about a millisecond for each image of 32 x 32 that is kept.
"""

# B images, K directions, P pixels of a patch; points are (row, column), in pixels

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from suite import IGNORED, Batch, Budget, Preset, Settings, ShellSettings, Split, Task
from suite.errors import UsageError
from suite.plugin import IntArray
from suite.spec import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from tasks.training_set import training_generator

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float64]

_NUM_DIRECTIONS = 16
"""Angles that a dash is chosen from, jittered for every dash."""

_WEIGHT_OF_A_DEAD_END = 0.02
"""Of a dash with no room for two more straight after it: fewer contours end too soon, to be thrown away."""

_NUM_STARTS = 16
"""Places that are tried for the start of a distracting contour."""

_MOST_REJECTED = 200
"""Images that are thrown away for each that is wanted, before the sizes are called impossible."""


class Pathfinder(Task):
    """Say whether two dots lie on the same contour of a picture, read pixel by pixel.

    Tokens are shades of grey, black first. Scored is the last position alone: 1 if one contour joins the dots, else 0.
    """

    name = "pathfinder"

    class Options(Settings):
        size: Annotated[int, Field(ge=8)] = 32
        """Rows and columns of the image."""
        num_dashes: PositiveInt = 14
        """Dashes of a long contour."""
        dash_length: PositiveFloat = 2.0
        """In pixels."""
        gap: NonNegativeFloat = 2.0
        """Between two dashes of a contour, in pixels."""
        clearance: PositiveFloat = 2.0
        """From a dash to any that is not its neighbour, at least, in pixels."""
        thickness: PositiveFloat = 1.0
        """Of a dash, in pixels."""
        continuity: PositiveFloat = 1.0
        """How straight contours are."""
        seed_distance: PositiveFloat = 7.0
        """Between the ends at which the long contours begin, in pixels."""
        dot_radius: PositiveFloat = 1.5
        """In pixels."""
        num_distractors: NonNegativeInt = 5
        """Shorter contours at most; those that find no room are left out."""
        distractor_dashes: PositiveInt = 4
        """Dashes of a shorter contour."""
        num_shades: Annotated[int, Field(ge=2)] = 256
        """Shades of grey."""
        num_train_sequences: PositiveInt | None = None
        """Images that there are to train on; if not given, they are fresh at every step."""

        @model_validator(mode="after")
        def _contours_fit(self) -> Self:
            step = self.dash_length + self.gap
            if self.clearance >= step + self.gap:
                raise ValueError(
                    f"clearance {self.clearance:g} keeps a dash from following the last but one; it must be below "
                    f"dash_length + 2 gap = {step + self.gap:g}"
                )
            needed, room = 2 * self.num_dashes * step * self.clearance, (self.size - 2) ** 2
            if needed > room:
                raise ValueError(
                    f"two contours of num_dashes {self.num_dashes} need about {needed:.0f} pixels with their "
                    f"clearance; an image of size {self.size} has room for {room}"
                )
            return self

    presets = {
        "quick": Preset(
            settings={
                "size": 16,
                "num_dashes": 4,
                "gap": 1.0,
                "clearance": 1.5,
                "seed_distance": 4.0,
                "num_distractors": 2,
                "distractor_dashes": 2,
            },
            shell=ShellSettings(width=32, num_layers=2),
            budget=Budget(steps=300, batch_size=16, warmup_steps=20, schedule="cosine", evaluate_every=100),
            learning_rates=(3e-3,),
            cost_lengths=(256,),
        ),
        "standard": Preset(
            settings={"num_dashes": 9},
            shell=ShellSettings(width=128, num_layers=4),
            budget=Budget(
                steps=20_000,
                batch_size=64,
                warmup_steps=1000,
                schedule="cosine",
                evaluate_every=1000,
                validation_batches=16,
                test_batches=32,
            ),
            learning_rates=(3e-4, 1e-3, 3e-3),
            max_extensions=2,
            num_seeds=3,
            cost_lengths=(1024,),
        ),
        # The image of the Long Range Arena; width, depth and budget of S4's experiments.
        "paper": Preset(
            settings={"num_train_sequences": 160_000},
            shell=ShellSettings(width=256, num_layers=6),
            budget=Budget(
                steps=200_000,
                batch_size=64,
                weight_decay=0.03,
                warmup_steps=5000,
                schedule="cosine",
                evaluate_every=2500,
                validation_batches=32,
                test_batches=64,
            ),
            learning_rates=(4e-3, 1e-3),
            cost_lengths=(1024,),
        ),
    }

    @property
    def vocab_size(self) -> int:
        return int(self.options.num_shades)

    @property
    def length(self) -> int:
        return int(self.options.size) ** 2

    @property
    def slices(self) -> tuple[str, ...]:
        return ("on two contours", "on one contour")

    def sample(self, rng: np.random.Generator, *, split: Split, batch_size: int, length: int) -> Batch:
        if length != self.length:
            raise UsageError(
                f"{self.name}: an image of size {self.options.size} has {self.length} pixels, not {length}; set "
                f"{self.name}.size"
            )
        rng = training_generator(rng, split, batch_size, self.options.num_train_sequences)
        inputs = np.empty((batch_size, length), dtype=np.int64)
        is_joined = rng.integers(0, 2, (batch_size, 1))
        num_drawn = num_rejected = 0
        while num_drawn < batch_size:
            # One in five is finished at the published size.
            num_begun = 6 * (batch_size - num_drawn) + 16
            pictures = _Pictures(rng, self.options, num_begun)
            pictures.draw_long_contours()
            num_rejected += num_begun - len(pictures)
            pictures.keep(np.arange(len(pictures)) < batch_size - num_drawn)
            pictures.draw_distractors()
            rows = slice(num_drawn, num_drawn + len(pictures))
            images = pictures.rendered(is_joined[rows, 0] == 1)
            inputs[rows] = np.rint(images.reshape(-1, length) * (self.options.num_shades - 1))
            num_drawn += len(pictures)
            if num_drawn < batch_size and num_rejected > _MOST_REJECTED * (num_drawn + 10):
                raise UsageError(
                    f"{self.name}: of {num_rejected + num_drawn:,} images {num_drawn:,} had room for two contours of "
                    f"{self.options.num_dashes} dashes; take fewer, or a larger size"
                )
        targets = np.full_like(inputs, IGNORED)
        targets[:, -1:] = is_joined
        return Batch(inputs, targets, is_joined)

    def baseline(self) -> float:
        return 0.5


@dataclass(frozen=True)
class _Dash:
    """One dash in each of many images: from `start` to `end`, both (B, 2); the others (B)."""

    start: FloatArray
    end: FloatArray
    angle: FloatArray
    """The way from start to end: 0 along a row, a quarter turn down."""
    is_drawn: BoolArray
    """False where it found no room."""

    def of(self, images: BoolArray) -> _Dash:
        """In some of the images."""
        return _Dash(self.start[images], self.end[images], self.angle[images], self.is_drawn[images])


class _Pictures:
    """Many images, drawn dash by dash, all at the same time."""

    def __init__(self, rng: np.random.Generator, options: Pathfinder.Options, num_images: int) -> None:
        self._rng = rng
        self._options = options
        # The canvas reaches beyond the image, so that no patch does.
        self._margin = 2 + math.ceil(
            max(options.dash_length / 2 + max(options.clearance, options.thickness), options.dot_radius)
        )
        side = options.size + 2 * self._margin
        self._is_taken = np.ones((num_images, side, side), dtype=bool)
        inside = slice(self._margin + 1, self._margin + options.size - 1)
        self._is_taken[:, inside, inside] = False
        self._contours: list[list[_Dash]] = []
        """The dashes of the two long ones."""
        self._distractors: list[_Dash] = []

    def __len__(self) -> int:
        return len(self._is_taken)

    def draw_long_contours(self) -> None:
        """Draws both, a dash of each in turn, and keeps the images in which they found room."""
        options, num_images = self._options, len(self)
        # As published, contours begin far from the edges, or in the middle where the image is not large enough.
        reach = max(1.0, options.size / 2 - 2 * options.seed_distance)
        begin = options.size / 2 + self._rng.uniform(-reach, reach, (num_images, 2))
        other = begin + options.seed_distance * _direction(self._rng.uniform(0, 2 * math.pi, num_images))
        first = self._dash(begin, self._rng.uniform(0, 2 * math.pi, num_images))
        second = self._dash(other, self._rng.uniform(0, 2 * math.pi, num_images), apart_from=first)
        self._contours = [[first], [second]]
        self.keep(first.is_drawn & second.is_drawn)
        for _ in range(options.num_dashes - 1):
            for which in (0, 1):
                contour, rival = self._contours[which], self._contours[1 - which]
                contour.append(self._following(contour[-1], apart_from=rival[-1]))
                self._take(contour[-2])
                self.keep(contour[-1].is_drawn)
        for contour in self._contours:
            self._take(contour[-1])

    def keep(self, images: BoolArray) -> None:
        """Forgets all other images."""
        self._is_taken = self._is_taken[images]
        self._contours = [[dash.of(images) for dash in contour] for contour in self._contours]

    def draw_distractors(self) -> None:
        """Draws shorter contours where there is room for a whole one."""
        options, num_images = self._options, len(self)
        for _ in range(options.num_distractors):
            before = self._is_taken.copy()
            shape = (num_images, _NUM_STARTS)
            starts, angles = self._rng.uniform(0, options.size, (*shape, 2)), self._rng.uniform(0, 2 * math.pi, shape)
            is_free = self._is_free(starts, starts + options.dash_length * _direction(angles))
            chosen = np.arange(num_images), is_free.argmax(axis=1)
            contour = [self._dash(starts[chosen], angles[chosen])]
            for _ in range(options.distractor_dashes - 1):
                contour.append(self._following(contour[-1]))
                self._take(contour[-2])
            self._take(contour[-1])
            is_whole_B = np.logical_and.reduce([dash.is_drawn for dash in contour])
            self._is_taken[~is_whole_B] = before[~is_whole_B]
            self._distractors += [replace(dash, is_drawn=is_whole_B) for dash in contour]

    def rendered(self, is_joined_B: BoolArray) -> FloatArray:
        """The images with their dots, from 0 (black) to 1, (B, size, size)."""
        options = self._options
        canvas = np.zeros(self._is_taken.shape)
        first, second = self._contours
        for dash in (*first, *second, *self._distractors):
            self._brighten(canvas, dash, options.thickness / 2)
        is_swapped = self._rng.integers(0, 2, len(canvas)) == 1
        begin = np.where(is_swapped[:, np.newaxis], first[0].start, second[0].start)
        far = np.where((is_swapped == is_joined_B)[:, np.newaxis], first[-1].end, second[-1].end)
        for dot in (begin, far):
            self._brighten(canvas, replace(first[0], start=dot, end=dot), options.dot_radius)
        inside = slice(self._margin, self._margin + options.size)
        return canvas[:, inside, inside]

    def _following(self, last: _Dash, *, apart_from: _Dash | None = None) -> _Dash:
        """The next dash of a contour; where there is no room for one, the last again, not drawn."""
        options, num_images = self._options, len(self)
        spacing = math.pi / _NUM_DIRECTIONS
        turns_BK = spacing * (np.arange(_NUM_DIRECTIONS) + self._rng.random((num_images, 1))) - math.pi / 2
        angles_BK = last.angle[:, np.newaxis] + turns_BK
        pivot = last.end + options.gap / 2 * _direction(last.angle)
        directions = _direction(angles_BK)
        starts = pivot[:, np.newaxis] + options.gap / 2 * directions
        ends = starts + options.dash_length * directions
        weights_BK = np.cos(np.minimum(options.continuity * abs(turns_BK), math.pi / 2)) ** 2
        weights_BK[~self._is_free(starts, ends, apart_from)] = 0
        leads_on_BK = self._is_free(ends, ends + 2 * (options.gap + options.dash_length) * directions)
        weights_BK[~leads_on_BK] *= _WEIGHT_OF_A_DEAD_END
        sums_BK = np.cumsum(weights_BK, axis=1)
        chosen = np.arange(num_images), (sums_BK > self._rng.random((num_images, 1)) * sums_BK[:, -1:]).argmax(axis=1)
        is_drawn = sums_BK[:, -1] > 1e-6
        has_room = is_drawn[:, np.newaxis]
        return _Dash(
            np.where(has_room, starts[chosen], last.start),
            np.where(has_room, ends[chosen], last.end),
            np.where(is_drawn, angles_BK[chosen], last.angle),
            is_drawn,
        )

    def _dash(self, start: FloatArray, angle: FloatArray, apart_from: _Dash | None = None) -> _Dash:
        """A dash from `start` on; where there is no room for it, not drawn."""
        end = start + self._options.dash_length * _direction(angle)
        is_free_B = self._is_free(start[:, np.newaxis], end[:, np.newaxis], apart_from)[:, 0]
        # What is not drawn stays in the image too, so that nobody has to look out for it.
        middle = np.full_like(start, self._options.size / 2)
        return _Dash(
            np.where(is_free_B[:, np.newaxis], start, middle),
            np.where(is_free_B[:, np.newaxis], end, middle),
            angle,
            is_free_B,
        )

    def _is_free(self, starts: FloatArray, ends: FloatArray, apart_from: _Dash | None = None) -> BoolArray:
        """Whether dashes lie on free pixels, clear of `apart_from`; starts and ends (B, K, 2), the result (B, K)."""
        is_free = np.ones(starts.shape[:2], dtype=bool)
        images = np.arange(len(starts))[:, np.newaxis]
        for share in np.linspace(0, 1, 1 + math.ceil(self._options.dash_length)):
            rows, columns = np.moveaxis(starts + share * (ends - starts), -1, 0)
            is_free &= ~self._is_taken[images, self._on_canvas(rows), self._on_canvas(columns)]
            if apart_from is not None:
                is_free &= _distance(rows, columns, apart_from) > self._options.clearance
        return is_free

    def _take(self, dash: _Dash) -> None:
        """Keeps the surroundings of a dash free of others."""
        radius = self._options.clearance
        where, distance_BP = self._patch(dash, radius)
        self._is_taken[where] |= (distance_BP <= radius) & dash.is_drawn[:, np.newaxis]

    def _brighten(self, canvas: FloatArray, dash: _Dash, radius: float) -> None:
        """Draws what lies within `radius`; a pixel is as bright as it is covered, nearly."""
        where, distance_BP = self._patch(dash, radius)
        shade_BP = np.clip(radius + 0.5 - distance_BP, 0, 1) * dash.is_drawn[:, np.newaxis]
        canvas[where] = np.maximum(canvas[where], shade_BP)

    def _patch(self, dash: _Dash, radius: float) -> tuple[tuple[IntArray, IntArray, IntArray], FloatArray]:
        """Where on the canvas the pixels around a dash are, and how far from it, all (B, P)."""
        longest = float(abs(dash.end - dash.start).max(initial=0.0))
        reach = 1 + math.ceil(longest / 2 + radius)
        # Rows and columns apart: numpy is slow where the last axis is short.
        row_P, column_P = (offsets.ravel() for offsets in np.mgrid[-reach : reach + 1, -reach : reach + 1])
        row_B, column_B = np.rint((dash.start + dash.end) / 2).astype(np.int64).T
        rows, columns = row_B[:, np.newaxis] + row_P, column_B[:, np.newaxis] + column_P
        where = np.arange(len(rows))[:, np.newaxis], self._on_canvas(rows), self._on_canvas(columns)
        return where, _distance(rows, columns, dash)

    def _on_canvas(self, coordinates: Numbers) -> IntArray:
        """Rows or columns of points as indices of the canvas; its edge for all that lie beyond."""
        pixels = np.rint(coordinates).astype(np.int64) + self._margin
        return np.clip(pixels, 0, self._is_taken.shape[1] - 1)


def _direction(angle: FloatArray) -> FloatArray:
    """(row, column) of a step of length 1."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


def _distance(rows: Numbers, columns: Numbers, dash: _Dash) -> FloatArray:
    """From points, whose rows and columns are (B, P), to the image's dash, (B, P)."""
    row, column = dash.start.T[..., np.newaxis]
    row_along, column_along = (dash.end - dash.start).T[..., np.newaxis]
    row_offset, column_offset = rows - row, columns - column
    squared_length = np.maximum(row_along * row_along + column_along * column_along, 1e-12)
    share = np.clip((row_offset * row_along + column_offset * column_along) / squared_length, 0, 1)
    row_rest, column_rest = row_offset - share * row_along, column_offset - share * column_along
    distances: FloatArray = np.sqrt(row_rest * row_rest + column_rest * column_rest)
    return distances
