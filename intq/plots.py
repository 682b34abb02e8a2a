"""The report's plots: SVG that takes its colours from the page, so that they are dark where the page is.

matplotlib knows no CSS. It draws in the stand-in colours of :data:`COLOURS`, and these are replaced in what it writes.
Text stays text, in the page's font.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = {
    "#000001": "var(--ink)",
    "#000002": "var(--muted)",
    "#000003": "var(--line)",
    "#000004": "var(--accent)",
    "#000005": "var(--second)",
    "#000006": "var(--surface)",
}
INK, MUTED, LINE, ACCENT, SECOND, SURFACE = COLOURS
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "intq",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
WIDTH, HEIGHT = 4.6, 3.1  # inches: at 72 points each as wide as a phone, so that text is as large there as elsewhere


@matplotlib.rc_context(STYLE)
def front(
    name: str, label: str, points: Sequence[Sequence[float]], chosen: Sequence[float], marks: Mapping[str, float]
) -> str:
    """Error against one cost, both as (cost, error); ``marks``: costs that a line is drawn at, by name."""
    figure, axes = _figure()
    known = sorted((x, y) for x, y in points if y > 0)
    axes.plot(*zip(*known, strict=True), "o-", color=ACCENT, markersize=3.5)
    axes.plot(*chosen, "o", markersize=10, markerfacecolor=SURFACE, markeredgecolor=SECOND, markeredgewidth=2)
    axes.annotate("the plan", chosen, xytext=(10, 8), textcoords="offset points", color=SECOND, weight="bold")
    for mark, value in marks.items():
        axes.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        place = axes.get_xaxis_transform()
        axes.annotate(mark, (value, 1), xycoords=place, xytext=(-4, -9), textcoords="offset points", ha="right")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_tick)
    axes.set(xlabel=label, ylabel="error")
    return _svg(figure, f"front-{name}", f"The least error at each cost ({label}), and the plan that was chosen")


@matplotlib.rc_context(STYLE)
def choices(layers: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> str:
    """The error of each layer at each precision that it might have, and at the one it has."""
    figure, axes = _figure(0.75 + 0.25 * len(layers))
    for place, (name, errors) in enumerate(layers.items()):
        known = {bits: error for bits, error in errors.items() if error > 0}
        if known:
            axes.plot([min(known.values()), max(known.values())], [place, place], color=LINE, linewidth=1.2)
            axes.plot(known.values(), [place] * len(known), "o", color=MUTED, markersize=3.5)
        if chosen[name] in known:
            error = known[chosen[name]]
            axes.plot(error, place, "o", color=ACCENT, markersize=7)
            words = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 7.5, "color": ACCENT}
            axes.annotate(chosen[name], (error, place), **words)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_tick)
    axes.set_yticks(range(len(layers)), [_short(name) for name in layers])
    axes.set_ylim(len(layers) - 0.5, -0.8)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("error, log scale")
    return _svg(figure, "choices", "The error of every layer at each precision, the chosen one filled")


@matplotlib.rc_context(STYLE)
def history(name: str, epochs: Sequence[float], values: Sequence[float], label: str) -> str:
    """One number of a training, over its epochs."""
    figure, axes = _figure()
    axes.plot(epochs, values, "o-", color=ACCENT, markersize=3.5)
    axes.annotate(f"{values[-1]:.4g}", (epochs[-1], values[-1]), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.margins(x=0.08, y=0.2)
    axes.xaxis.get_major_locator().set_params(integer=max(epochs) >= 2)
    axes.set(xlabel="epoch", ylabel=label)
    return _svg(figure, f"history-{name}", f"{label} over the epochs of training")


@matplotlib.rc_context(STYLE)
def surface(places: Sequence[float], loss: Sequence[Sequence[float]], curvatures: Sequence[float]) -> str:
    """The loss in a plane through the network: filled contours, the deeper the lighter."""
    figure, axes = _figure(4.1)
    percent = [100 * place for place in places]
    low, high = min(map(min, loss)), max(map(max, loss))
    levels = [low + (high - low) * (i / 10) ** 1.5 for i in range(11)]  # closer together where it is flat
    levels[-1] = math.nextafter(high, math.inf)
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        axes.contourf(percent, percent, loss, levels=[start, end], colors=[ACCENT], alpha=0.04 + 0.07 * i)
    lines = axes.contour(percent, percent, loss, levels=levels[1:-1], colors=[INK], linewidths=0.5, alpha=0.5)
    axes.clabel(lines, lines.levels[::2], fmt="%.2g", fontsize=7.5, colors=[INK])
    axes.plot(0, 0, "+", color=SECOND, markersize=11, markeredgewidth=2)
    axes.grid(False)
    axes.set_aspect("equal")
    first, second = map(scientific, curvatures[:2])
    axes.locator_params(nbins=5)
    axes.set(xlabel=f"along v₁ (λ₁ = {first}), %", ylabel=f"along v₂ (λ₂ = {second}), %")
    return _svg(figure, "landscape", "The loss around the network, along the Hessian's two top eigenvectors")


@matplotlib.rc_context(STYLE)
def density(grid: Sequence[float], values: Sequence[float]) -> str:
    """The density of the Hessian's eigenvalues, over decades."""
    figure, axes = _figure()
    floor = max(values) * 1e-7
    shown = [max(value, floor) for value in values]
    axes.fill_between(grid, shown, floor, color=ACCENT, alpha=0.18, linewidth=0)
    axes.plot(grid, shown, color=ACCENT)
    axes.set_yscale("log")
    axes.set_ylim(floor)
    axes.yaxis.set_major_formatter(_tick)
    axes.xaxis.set_major_formatter(_tick)
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel="eigenvalue", ylabel="density, log scale")
    return _svg(figure, "density", "The density of the eigenvalues of the Hessian")


def _figure(height: float = HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element for HTML, its identifiers its own among those of a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def scientific(value: float) -> str:
    """A number to three digits, 0.0123 or 1.23·10⁻⁷."""
    sign, size = "−" if value < 0 else "", abs(value)
    if not value or 1e-3 <= size < 1e5:
        return f"{sign}{float(f'{size:.3g}'):,.10g}"
    digits, power = f"{size:.2e}".split("e")
    return f"{sign}{float(digits):g}·10{str(int(power)).translate(RAISED)}"


def _tick(value: float, place: int) -> str:
    return scientific(value).removeprefix("1·")


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
