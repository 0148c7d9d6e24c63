# SPDX-License-Identifier: Apache-2.0
"""Pictures of what decays and of how a run went; they need matplotlib.

A treemap has a tile for each leaf: its area is the number of parameters, its colour the
shrink. What should not decay and does, and what should and does not, is seen at once.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from optax_wd._tree import fold as _fold

_GREY, _RED = "#d0d0d0", "#d62728"
_LABELLED = 0.01  # the least share of the area that has room for a name


class Report(Protocol):
    """What `describe` and `audit` return, as far as a picture needs it."""

    @property
    def rows(self) -> Sequence[Any]:
        """Tuples with at least `path`, `size` and `shrink`."""
        ...


class Tile(NamedTuple):
    """A rectangle within the unit square, and what it stands for."""

    name: str
    x: float
    y: float
    width: float
    height: float
    shrink: float | None


def plot(report: Report, ax: Any = None) -> Any:
    """Draw a treemap of the leaves: area is parameters, colour is shrink.

    Grey tiles do not decay, red ones grow, hatched ones are not known. Repeated layers
    that shrink alike are one tile.

    Args:
      report: what `describe` or `audit` returned. A description without amounts is
        coloured by its factors.
      ax: the matplotlib Axes to draw on; by default those of a new figure.

    Returns:
      The Axes; `ax.figure.savefig("decay.png")` keeps the picture.

    Raises:
      ImportError: if there is no matplotlib.
      TypeError: if `report` is no report.
      ValueError: if it has no parameters.

    Example:
      >>> import jax.numpy as jnp, optax_wd as wd
      >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
      >>> ax = wd.plot(wd.describe(wd.standard, params, weight_decay=0.1))
    """
    if not hasattr(report, "rows"):
        raise TypeError(
            f"plot takes what describe or audit returns, got a {type(report).__name__}"
        )
    tiles = tiles_of(report)
    matplotlib = _matplotlib()
    if ax is None:
        ax = _figure((9.0, 5.0)).subplots()
    values = [t.shrink for t in tiles if t.shrink is not None and t.shrink > 0]
    low, high = min(values, default=1.0), max(values, default=1.0)
    norm = matplotlib.colors.LogNorm(low, high) if high > 10 * low else None
    norm = norm or matplotlib.colors.Normalize(0.0, high)
    colours = matplotlib.colormaps["viridis"]
    for tile in tiles:
        colour = _GREY if not tile.shrink else colours(norm(tile.shrink))
        colour = _RED if tile.shrink is not None and tile.shrink < 0 else colour
        hatch = "//" if tile.shrink is None else None
        corner, sides = (tile.x, tile.y), (tile.width, tile.height)
        ax.add_patch(
            matplotlib.patches.Rectangle(
                corner, *sides, facecolor=colour, edgecolor="white", hatch=hatch
            )
        )
        dark = sum(matplotlib.colors.to_rgb(colour)) < 1.5
        _label(ax, tile, "white" if dark else "black")
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    scale = matplotlib.cm.ScalarMappable(norm, colours)
    ax.figure.colorbar(scale, ax=ax, label="shrink per step; grey: none")
    return ax


def _label(ax: Any, tile: Tile, colour: str) -> None:
    if tile.width * tile.height < _LABELLED:
        return
    tall = tile.height > 2 * tile.width
    middle = tile.x + tile.width / 2, tile.y + tile.height / 2
    text = ax.text(
        *middle,
        tile.name.replace("$", r"\$"),
        rotation=90 if tall else 0,
        fontsize=6,
        color=colour,
        ha="center",
        va="center",
    )
    text.set_clip_path(ax.patch)


def tiles_of(report: Report) -> list[Tile]:
    """The tiles of a treemap of the unit square, the largest first."""
    facts = [
        (_fold.printable(row.path), (row.size, _shrink(row))) for row in report.rows
    ]
    groups = [
        (name, facts[where[0]][1][0] * len(where), facts[where[0]][1][1])
        for name, where in _fold.fold(facts)
    ]
    groups = sorted((g for g in groups if g[1]), key=lambda g: -g[1])
    total = sum(size for _, size, _ in groups)
    if not total:
        raise ValueError("there is nothing to draw: the report has no parameters")
    areas = [size / total for _, size, _ in groups]
    places = _squarified(areas, 0.0, 0.0, 1.0, 1.0)
    return [
        Tile(name, *place, shrink)
        for (name, _, shrink), place in zip(groups, places, strict=True)
    ]


def _shrink(row: Any) -> float | None:
    """One number for a row: 0 for no decay, None for an unknown one."""
    if not getattr(row, "decays", True):
        return 0.0
    value = row.shrink
    if value is None:
        value = getattr(row, "multiplier", None)
    return sum(value) / len(value) if isinstance(value, tuple) else value


def _squarified(
    areas: Sequence[float], x: float, y: float, width: float, height: float
) -> Iterator[tuple[float, float, float, float]]:
    """Rectangles of the areas, in falling order, that fill one: nearly squares.

    Bruls, Huizing & van Wijk, Squarified Treemaps, 2000.
    """
    while areas:
        short = min(width, height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], short) <= _worst(
            areas[:count], short
        ):
            count += 1
        depth = sum(areas[:count]) / short
        offset = 0.0
        for area in areas[:count]:
            length = area / depth
            if width >= height:
                yield x, y + offset, depth, length
            else:
                yield x + offset, y, length, depth
            offset += length
        if width >= height:
            x, width = x + depth, max(width - depth, 1e-12)
        else:
            y, height = y + depth, max(height - depth, 1e-12)
        areas = areas[count:]


def _worst(areas: Sequence[float], side: float) -> float:
    """The worst ratio of sides in a row of rectangles along a side."""
    depth = sum(areas) / side
    lengths = (area / depth for area in areas)
    return max(max(depth / length, length / depth) for length in lengths)


def plot_metrics(path: str | os.PathLike[str], figure: Any = None) -> Any:
    """Draw what a run logged: a panel for each quantity, over the steps.

    Args:
      path: a file of lines of JSON, each an object with `step` and numbers, also in
        objects inside, such as `{"step": 10, "metrics": {"all": {"shrink": 1e-4}}}`.
        What stands before the last name becomes the name of the line in the panel.
      figure: the matplotlib Figure to draw on; by default a new one.

    Returns:
      The Figure; `savefig("run.png")` keeps the picture.

    Raises:
      ImportError: if there is no matplotlib.
      ValueError: if a line is no JSON object, or no line has a step and a number.

    Example:
      >>> import json, pathlib, tempfile, optax_wd as wd
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl"
      >>> lines = [json.dumps({"step": n, "loss": 1 / (1 + n)}) for n in range(5)]
      >>> _ = path.write_text(chr(10).join(lines))
      >>> figure = wd.plot_metrics(path)
    """
    panels = read_metrics(path)
    _matplotlib()
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    if figure is None:
        figure = _figure((4.0 * columns, 3.0 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (name, lines) in zip(axes, panels.items(), strict=False):
        for label, points in lines.items():
            marker = "." if len(points) < 30 else None  # one point alone is no line
            ax.plot(*zip(*points, strict=True), label=label or name, marker=marker)
        ax.set(title=name, xlabel="step")
        if len(lines) > 1:
            ax.legend(fontsize=6)
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def read_metrics(
    path: str | os.PathLike[str],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Points (step, value) by the last name of a quantity, then by the names before."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(entry, dict):
                raise ValueError(f"{path}, line {number} is no object: {line[:80]!r}")
            step = entry.pop("step", None)
            if not isinstance(step, int | float):
                continue  # a line about something else, such as a summary
            for names, value in _numbers((), entry):
                lines_of = panels.setdefault(names[-1], {})
                lines_of.setdefault("/".join(names[:-1]), []).append((step, value))
    if not panels:
        raise ValueError(f"{path} has no line with a step and a number")
    return panels


def _numbers(
    before: tuple[str, ...], entry: dict[str, Any]
) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers((*before, name), value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*before, name), float(value)


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.cm
        import matplotlib.colors
        import matplotlib.patches
    except ImportError:
        raise ImportError(
            "pictures need matplotlib; install it, or optax_wd[plot]"
        ) from None
    return matplotlib


def _figure(size: tuple[float, float]) -> Any:
    """A figure of its own, which no window system and no list of figures knows."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
