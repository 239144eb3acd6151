from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from matplotlib.text import Annotation, Text

from recgrela.compare.figure import MAX_AREA, draw_bubbles, make_figure
from recgrela.compare.flops import Flops
from recgrela.compare.plan import Contender
from recgrela.compare.rows import Cost, Quality, Row
from recgrela.system.errors import RunError

METRIC = "NDCG@10"
LABELS = [
    "RecGRELA",
    "SASRec",
    "LinRec",
    "LRURec",
    "Mamba4Rec",
    "EchoMamba4Rec",
    "EulerFormer",
    "RecBLR",
    "SIGMA",
]


def row(label: str, quality: float, memory: int | None, flops: int) -> Row:
    scores = Quality({METRIC: quality}, None, {}, None)
    contender = Contender(label, label, 1, Flops(flops, 0), ())
    return Row(label, contender, [1], {}, {"ranked": scores}, {}, Cost(1.0, [1], [1], memory))


@pytest.mark.parametrize("seed", range(5))
def test_nine_labels_keep_clear_of_each_other(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        row(label, rng.gauss(0.2, 0.01), int(rng.gauss(600, 150) * 1e6), int(rng.uniform(1, 9) * 1e7))
        for label in LABELS
    ]
    figure = make_figure(rows, METRIC)
    assert figure is not None
    figure.canvas.draw()
    (axes,) = figure.axes
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    assert [text.get_text() for text in texts] == LABELS
    boxes = [Text.get_window_extent(text) for text in texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_the_area_is_in_proportion_to_the_flops() -> None:
    figure = make_figure([row("a", 0.1, 10**8, 10), row("b", 0.2, 2 * 10**8, 40)], METRIC)
    assert figure is not None
    small, large = (collection.get_sizes()[0] for collection in figure.axes[0].collections)
    assert large == pytest.approx(4 * small)


def test_a_model_with_unknown_memory_has_no_bubble() -> None:
    assert make_figure([row("a", 0.1, None, 10)], METRIC) is None
    figure = make_figure([row("a", 0.1, None, 10), row("b", 0.2, 10**8, 40)], METRIC)
    assert figure is not None and len(figure.axes[0].collections) == 1


def test_areas_are_relative_to_the_largest_drawn_model() -> None:
    failed = Row("b", Contender("b", "b", 1, Flops(10**9, 0), ()), [], {1: "why"}, {}, {}, None)
    figure = make_figure([row("a", 0.1, 10**8, 10**7), failed, row("c", 0.1, None, 10**8)], METRIC)
    assert figure is not None
    (axes,) = figure.axes
    (bubble,) = axes.collections
    assert bubble.get_sizes()[0] == pytest.approx(MAX_AREA)
    assert "largest: 10.0 M" in axes.get_title()


def test_an_older_figure_is_removed_if_nothing_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "bubbles.png"
    assert draw_bubbles(path, [row("a", 0.1, 10**8, 10)], METRIC) and path.is_file()
    assert not draw_bubbles(path, [row("a", 0.1, None, 10)], METRIC) and not path.exists()
    assert not draw_bubbles(path, [row("a", 0.1, None, 10)], METRIC)
    path.mkdir()
    with pytest.raises(RunError, match=r"cannot remove .*bubbles\.png"):
        draw_bubbles(path, [row("a", 0.1, None, 10)], METRIC)
