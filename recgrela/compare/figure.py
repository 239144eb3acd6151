"""A bubble chart of quality against memory; the area of a bubble is the cost of scoring a history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recgrela.compare.rows import Row
from recgrela.system.errors import RunError
from recgrela.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

MAX_AREA = 2400.0  # area of the largest bubble, in square points
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7))
GAPS = (3.0, 12.0, 24.0, 40.0)  # points between a bubble and its label


@dataclass(frozen=True)
class Bubble:
    """A model's bubble: memory in MB, quality, and area in square points."""

    label: str
    memory: float
    quality: float
    area: float

    @property
    def radius(self) -> float:
        """Radius in points."""
        return math.sqrt(self.area / math.pi)


def draw_bubbles(path: Path, rows: Sequence[Row], metric: str) -> bool:
    """Draw the networks with known quality and peak memory; returns whether there are any.

    If there are none, an existing figure is removed, because it belongs to an earlier table.

    Raises:
        RunError: the file cannot be written or removed.
    """
    figure = make_figure(rows, metric)
    if figure is not None:
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))
        return True
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot remove {path}, which belongs to an earlier table: {error.strerror}"
        ) from error
    return False


def make_figure(rows: Sequence[Row], metric: str) -> Figure | None:
    """The figure, with a metric of all items ranked; None without a network to draw."""
    from matplotlib import colormaps  # slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [
        (row.contender, row.quality["ranked"].mean[metric], row.cost.peak_memory / 1e6)
        for row in rows
        if row.contender and row.quality and row.cost and row.cost.peak_memory is not None
    ]
    if not drawn:
        return None
    max_flops = max(contender.flops.total for contender, _, _ in drawn)
    bubbles = [
        Bubble(contender.label, memory, quality, MAX_AREA * contender.flops.total / max_flops)
        for contender, quality, memory in drawn
    ]
    figure = Figure(figsize=(8, 5.5), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = colormaps["tab10"]
    for index, bubble in enumerate(bubbles):
        look: dict[str, Any] = {"color": colors(index % 10), "alpha": 0.55, "lw": 0}
        look["zorder"] = 3 - bubble.area / MAX_AREA  # small bubbles above large ones
        axes.scatter(bubble.memory, bubble.quality, s=bubble.area, **look)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    axes.set(
        title=f"Bubble area: FLOPs for scoring one history (largest: {max_flops / 1e6:,.1f} M)",
        xlabel="peak memory of training, MB",
        ylabel=f"{metric}, test split",
    )
    canvas.draw()  # computes the layout, which the labels need
    _write_labels(axes, bubbles, canvas.get_renderer())
    return figure


def _write_labels(axes: Axes, bubbles: Sequence[Bubble], renderer: RendererBase) -> None:
    """Place each label near its bubble, where it overlaps other labels and bubbles least."""
    from matplotlib.text import Text

    taken = [_box_of(axes, bubble) for bubble in bubbles]
    frame = axes.get_window_extent()
    for bubble in bubbles:
        tried: list[tuple[float, Annotation]] = []
        for gap, side in itertools.product(GAPS, SIDES):
            text = _annotate(axes, bubble, gap, side)
            text.update_positions(renderer)
            box = Text.get_window_extent(text)  # without the annotation's line
            outside = box.width * box.height - _overlap(box, frame)
            covered = sum(_overlap(box, other) for other in taken)
            tried.append((covered + 10 * outside + gap, text))
            text.set_visible(False)
        _, best = min(tried, key=lambda pair: pair[0])
        best.set_visible(True)
        taken.append(Text.get_window_extent(best))
        for _, text in tried:
            if text is not best:
                text.remove()


def _annotate(axes: Axes, bubble: Bubble, gap: float, side: tuple[float, float]) -> Annotation:
    """A label at a side of its bubble, connected by a thin line."""
    across, up = side
    away = bubble.radius + gap
    options: dict[str, Any] = {
        "ha": "center" if across == 0 else "left" if across > 0 else "right",
        "va": "center" if up == 0 else "bottom" if up > 0 else "top",
        "arrowprops": {"arrowstyle": "-", "lw": 0.5, "color": "grey", "shrinkA": 0, "shrinkB": 0},
        "in_layout": False,
        "fontsize": 9,
    }
    place, offset = (bubble.memory, bubble.quality), (away * across, away * up)
    return axes.annotate(bubble.label, place, offset, textcoords="offset points", **options)


def _box_of(axes: Axes, bubble: Bubble) -> Bbox:
    """The bounding box of a bubble in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((bubble.memory, bubble.quality))
    radius = bubble.radius * axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _overlap(first: Bbox, second: Bbox) -> float:
    """Area of the intersection of two boxes, in square pixels."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(0.0, width) * max(0.0, height)
