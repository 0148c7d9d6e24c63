# SPDX-License-Identifier: Apache-2.0
"""Pictures: what is drawn where, how large, in which colour."""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import optax_wd as wd
from optax_wd._see import plot as _plot


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def model() -> dict[str, Any]:
    blocks = {f"block_{n}": {"kernel": leaf(8, 8), "bias": leaf(8)} for n in range(3)}
    return {"embed": {"embedding": leaf(16, 8)}, **blocks, "head": {"kernel": leaf(8)}}


def tiles(report: Any) -> dict[str, _plot.Tile]:
    return {tile.name: tile for tile in _plot.tiles_of(report)}


def colours(ax: Any) -> list[Any]:
    """The colour of each tile that is drawn, in the order of the tiles."""
    return [tuple(np.round(patch.get_facecolor(), 3)) for patch in ax.patches]


# --------------------------------------------------------------------------- the tiles


def test_areas_are_shares_of_the_parameters() -> None:
    found = tiles(wd.describe(wd.standard, model()))
    total = 16 * 8 + 3 * (64 + 8) + 8
    sizes = {
        "embed/embedding": 128,
        "block_{0..2}/kernel": 192,
        "block_{0..2}/bias": 24,
        "head/kernel": 8,
    }
    assert set(found) == set(sizes)
    for name, size in sizes.items():
        tile = found[name]
        np.testing.assert_allclose(tile.width * tile.height, size / total, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_tiles_fill_the_square_and_do_not_overlap(count: int) -> None:
    rng = np.random.default_rng(count)
    params = {f"w{chr(97 + n)}": leaf(int(rng.integers(1, 99))) for n in range(count)}
    found = list(_plot.tiles_of(wd.describe(wd.everything, params)))
    names = {name for name in params}
    assert len(found) == len(names)
    points = (np.arange(64) + 0.5) / 64
    x, y = np.meshgrid(points, points)
    covered = sum(
        ((t.x <= x) & (x < t.x + t.width) & (t.y <= y) & (y < t.y + t.height)).astype(
            int
        )
        for t in found
    )
    np.testing.assert_array_equal(covered, 1)


def test_tiles_are_nearly_squares() -> None:
    params = {f"w{chr(97 + n)}": leaf(10 + n) for n in range(20)}
    ratios = [
        max(t.width / t.height, t.height / t.width)
        for t in _plot.tiles_of(wd.describe(wd.everything, params))
    ]
    assert max(ratios) < 4.0  # side by side they would be 20


# ----------------------------------------------------------------------------- colours


def test_what_does_not_decay_is_grey_and_what_shrinks_more_is_brighter() -> None:
    factors = wd.first_match((wd.contains("head"), 1.0), default=0.1)
    mask = ~wd.contains("embed") & ~wd.named("bias")
    report = wd.describe(mask, model(), multiplier=factors, weight_decay=0.1)
    ax = wd.plot(report)
    names = [tile.name for tile in _plot.tiles_of(report)]
    drawn = dict(zip(names, colours(ax), strict=True))
    grey = drawn["embed/embedding"]
    assert grey == drawn["block_{0..2}/bias"] == (0.816, 0.816, 0.816, 1.0)
    assert sum(drawn["head/kernel"][:3]) > sum(drawn["block_{0..2}/kernel"][:3])


def test_what_grows_is_red_and_what_is_unknown_is_hatched() -> None:
    def row(path: str, kind: str, shrink: float | None) -> wd.AuditRow:
        return wd.AuditRow(path, (4,), "float32", 4, kind, shrink, "zero", 1.0)

    report = wd.Audit((row("a", "growing", -0.1), row("b", "unknown", None)), ())
    first, second = wd.plot(report).patches
    assert tuple(np.round(first.get_facecolor(), 2)) == (0.84, 0.15, 0.16, 1.0)
    assert first.get_hatch() is None and second.get_hatch() == "//"


def test_an_audit_is_drawn_as_a_description_is() -> None:
    params = {"dense": {"kernel": leaf(4, 4), "bias": leaf(4)}}
    tx = optax.adamw(0.1, weight_decay=0.5, mask=wd.standard)
    found = tiles(wd.audit(tx, params))
    assert found["dense/bias"].shrink == 0.0
    assert found["dense/kernel"].shrink == pytest.approx(0.05, rel=1e-3)


def test_it_draws_on_the_axes_that_it_is_given_and_shows_names_as_they_are() -> None:
    figure = Figure()
    ax = figure.subplots()
    params = {"$x_1$": leaf(4, 4)}
    assert wd.plot(wd.describe(wd.everything, params), ax) is ax
    assert [text.get_text() for text in ax.texts] == [r"\$x_1\$"]
    figure.canvas.draw()  # math is not parsed


# ----------------------------------------------------------------------------- metrics


def journal(path: pathlib.Path, lines: list[Any]) -> pathlib.Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_each_quantity_has_a_panel_and_each_group_a_line(
    tmp_path: pathlib.Path,
) -> None:
    lines = [
        {
            "step": n,
            "loss": 2.0 / n,
            "metrics": {"all": {"shrink": 0.1 * n}, "embed": {"shrink": 0.2}},
        }
        for n in (1, 2, 3)
    ]
    path = journal(tmp_path / "metrics.jsonl", [*lines, {"summary": {"loss": 1.0}}])
    axes = wd.plot_metrics(path).axes
    assert [ax.get_title() for ax in axes] == ["loss", "shrink"]
    shrink = {line.get_label(): line for line in axes[1].get_lines()}
    assert set(shrink) == {"metrics/all", "metrics/embed"}
    x, y = shrink["metrics/all"].get_data()
    np.testing.assert_allclose(x, [1, 2, 3])
    np.testing.assert_allclose(y, [0.1, 0.2, 0.3])


def test_metrics_are_drawn_on_the_figure_that_is_given(tmp_path: pathlib.Path) -> None:
    path = journal(tmp_path / "m.jsonl", [{"step": 1, "loss": 1.0}])
    figure = Figure()
    assert wd.plot_metrics(path, figure) is figure and len(figure.axes) == 1


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json}", "line 1 is no JSON: "),
        ('{"step": 1, "loss": 2}\n[1, 2]', r"line 2 is no object: '\[1, 2\]"),
        ("", "has no line with a step and a number"),
        ('{"loss": 2}', "has no line with a step and a number"),
        ('{"step": 1, "name": "x"}', "has no line with a step and a number"),
    ],
)
def test_files_without_metrics_are_refused(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        wd.plot_metrics(path)


def test_only_reports_with_parameters_are_drawn() -> None:
    with pytest.raises(TypeError, match="plot takes what describe or audit returns"):
        wd.plot(model())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is nothing to draw"):
        wd.plot(wd.Audit((), ()))


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib; install it, or"):
        wd.plot(wd.describe(wd.standard, model()))
