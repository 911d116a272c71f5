"""Labels beside the points of a picture, none on top of another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
Point = tuple[float, float]

ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200, 65, 115, 295, 245)
DISTANCES = (3, 10, 20, 32, 46, 62, 80, 100, 125, 150, 180, 215, 250, 300)  # points, from the edge of the marker
LINED = 4  # from this distance on a line leads to the label
ROOM = 2.0  # points around a label


def label(axes: Any, points: Sequence[tuple[float, float, float, str]]) -> None:
    """``points``: x and y as drawn, the area of the marker (as ``scatter`` takes it), the text.

    Call it last: the layout has to be as it will be saved. Each label takes the nearest free place.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, pixels = canvas.get_renderer(), figure.dpi / 72
    centres = [tuple(axes.transData.transform((x, y))) for x, y, _, _ in points]
    radii = [math.sqrt(area / math.pi) * pixels for _, _, area, _ in points]
    inside = tuple(axes.get_window_extent(renderer).extents)
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(centres, radii, strict=True)]
    lines: list[tuple[Point, Point]] = []
    order = sorted(range(len(points)), key=lambda i: -min(distances(centres[i], centres, i), default=0.0))
    for i in order:
        words = axes.text(0, 0, points[i][3], fontsize=8)
        extent = words.get_window_extent(renderer)
        words.remove()
        box, end = free_place(
            centres[i], radii[i], (extent.width, extent.height), pixels, inside, taken, lines, [taken[i]]
        )
        taken.append(box)
        lines.append((centres[i], end))
        back = axes.transData.inverted()
        left, middle = back.transform((box[0] + ROOM * pixels, (box[1] + box[3]) / 2))
        axes.text(left, middle, points[i][3], fontsize=8, va="center_baseline", ha="left", zorder=4)
        if math.dist(centres[i], end) - radii[i] > LINED * pixels:
            start, stop = back.transform(centres[i]), back.transform(end)
            axes.plot([start[0], stop[0]], [start[1], stop[1]], color="0.5", lw=0.7, zorder=1.5)


def distances(centre: Point, others: Sequence[Point], own: int) -> Iterator[float]:
    return (math.dist(centre, other) for j, other in enumerate(others) if j != own)


def free_place(
    centre: Point, radius: float, size: tuple[float, float], pixels: float, inside: Box, taken: Sequence[Box],
    lines: Sequence[tuple[Point, Point]], own: Sequence[Box],
) -> tuple[Box, Point]:  # fmt: skip
    """The box of a label and the end of its line: the first without a fault, else the one with the fewest."""
    best: tuple[float, Box, Point] | None = None
    for distance in DISTANCES:
        for angle in ANGLES:
            box, end = placed(centre, radius + distance * pixels, angle, size, ROOM * pixels)
            faults = 10.0 * sum(overlaps(box, other) for other in taken) + 30.0 * (not contains(inside, box))
            faults += sum(crosses(line, box) for line in lines)
            faults += sum(crosses((centre, end), other) for other in taken if other not in own)
            if best is None or faults < best[0]:
                best = faults, box, end
            if not faults:
                return box, end
    assert best is not None
    return best[1:]


def placed(centre: Point, distance: float, angle: int, size: tuple[float, float], room: float) -> tuple[Box, Point]:
    """The box whose nearest side is so far away in that direction, and the point of it that is looked at."""
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    end = centre[0] + distance * dx, centre[1] + distance * dy
    width, height = size[0] + 2 * room, size[1] + 2 * room
    left, bottom = end[0] - width * (1 - dx) / 2, end[1] - height * (1 - dy) / 2
    return (left, bottom, left + width, bottom + height), end


def overlaps(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def contains(outer: Box, box: Box) -> bool:
    return outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]


def crosses(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a segment meets a box; looked at every few pixels."""
    (x0, y0), (x1, y1) = line
    steps = max(2, int(math.dist(*line) / 4))
    between = [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(steps)]
    return any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in between)
