"""Draws the figures of README.md and docs/: the stages of a run, the network, one layer before and after compression.

python docs/figures/draw.py            write the figures beside this file
python docs/figures/draw.py --check    exit code 1 where a figure differs from what this script draws
"""

from __future__ import annotations

import argparse
import io
import random
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

FOLDER = Path(__file__).parent
INK, PALE, SPIKES, REAL = "#333333", "#D8D8D8", "#0072B2", "#8A8A8A"
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"
STEPS, NEURONS, CHANNELS, HEADS = 4, 12, 16, 6
KEPT_HEADS, KEPT_NEURONS, KEPT_STEPS = (0, 2, 5), (0, 3, 4, 8, 11), 2


def canvas(width: float, height: float):
    """A figure of so many inches, and its axes in the same units, y downwards."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def text(axes, x: float, y: float, words: str, size: float = 9, **style) -> None:
    axes.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": size, "color": INK, **style})


def box(axes, x: float, y: float, words: str, *, width: float, height: float = 0.46, spiking: bool = False) -> None:
    """A box centred at x, y: blue and filled for a spiking layer, an outline for a real-valued operation."""
    face, edge, ink = (SPIKES, SPIKES, "white") if spiking else ("white", REAL, INK)
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=1.1))
    text(axes, x, y, words, 8.5, color=ink)


def arrow(axes, *points: tuple[float, float], spikes: bool = False) -> None:
    """A line through the points that ends in an arrowhead; blue where spikes travel."""
    colour = SPIKES if spikes else REAL
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=colour, linewidth=1.2, solid_capstyle="round")
    head = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.2, "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=head)


# -------------------------------------------------------------------------------------------------------- the stages

ALL = (4,) * 8  # time steps of eight neurons in a small raster
HALF = tuple(4 if row in (0, 2, 5, 6) else 0 for row in range(8))
SHORT = tuple({0: 2, 2: 1, 5: 2, 6: 1}.get(row, 0) for row in range(8))
FIRED = {(0, 1), (1, 2), (2, 0), (2, 3), (3, 1), (4, 0), (4, 3), (5, 1), (6, 0), (6, 2), (7, 3)}
STAGES = (
    ("teacher", "fine-tune BERT\non the task", "dense teacher", None),
    ("internal_kd", "match hidden states\nand attention scores", "spiking student", ALL),
    ("prediction_kd", "match the teacher's\nsoftened output", "uncompressed student", ALL),
    ("spatial", "prune heads, neurons\nand synapses", "masks", HALF),
    ("temporal", "remove time steps\nlayer by layer", "t_steps", SHORT),
    ("finetune", "recover", "compressed student", SHORT),
)


def stages() -> Figure:
    """From teacher to compressed student: what each stage does, what it leaves, and the spikes that remain."""
    figure, axes = canvas(11.4, 3.6)
    for i, (name, does, leaves, kept) in enumerate(STAGES):
        left = 0.35 + 1.82 * i
        colour = INK if i == 0 else SPIKES if i < 3 else NEGATIVE
        style = "round,pad=0,rounding_size=0.09"
        axes.add_patch(FancyBboxPatch((left, 0.5), 1.55, 2.35, boxstyle=style, fill=False, edgecolor=colour))
        text(axes, left + 0.775, 0.72, name, 10, weight="bold", color=colour)
        text(axes, left + 0.775, 1.12, does, 8)
        text(axes, left + 0.775, 3.05, f"→ {leaves}", 8.5, style="italic")
        for row in range(8):
            y = 1.45 + 0.16 * row
            if kept is None:
                cell(
                    axes,
                    left + 0.45,
                    y,
                    0.7 * (0.35, 0.8, 0.15, 0.55, 0.95, 0.25, 0.7, 0.45)[row],
                    INK,
                    INK,
                    height=0.1,
                )
            for step in range(0 if kept is None else 4):
                alive = step < kept[row]
                face = colour if alive and (row, step) in FIRED else "none"
                cell(axes, left + 0.37 + 0.21 * step, y, 0.17, face, colour if alive else PALE, height=0.1)
        if i:
            arrow(axes, (left - 0.27, 1.7), (left, 1.7))
    for start, end, words, colour in ((1, 3, "distil", SPIKES), (3, 6, "compress", NEGATIVE)):
        axes.plot([0.35 + 1.82 * start, 0.08 + 1.82 * end], [0.35, 0.35], color=colour, linewidth=1.3)
        text(axes, 0.215 + 0.91 * (start + end), 0.18, words, 9.5, color=colour)
    legend = "→ output of a stage.   Rasters: neurons (rows) over time steps (columns); filled: a spike; pale: removed."
    text(axes, 5.7, 3.4, legend, 8, color="#777777")
    return figure


# ------------------------------------------------------------------------------------------------------- the network


def network() -> Figure:
    """Above: token ids to logits. Below: one encoder layer. Blue: spikes; grey: real values."""
    figure, axes = canvas(11.4, 4.7)
    row = (
        ("token ids\n[B, N]", 0.75, 0.9, False),
        ("word, position,\nsegment; layer norm", 2.2, 1.45, False),
        ("spiking layer\n$T_0$ steps", 3.8, 1.15, True),
        ("encoder layer 1\n$T_1$ steps", 5.3, 1.25, True),
        ("encoder layer $L$\n$T_L$ steps", 7.35, 1.3, True),
        ("pooling\nmean or [CLS]", 8.95, 1.15, False),
        ("classifier", 10.05, 0.75, False),
    )
    chain(axes, 0.55, row, height=0.56)
    text(axes, 6.31, 0.4, "…", 12, color=SPIKES)
    arrow(axes, (10.425, 0.55), (10.7, 0.55))
    text(axes, 11.02, 0.55, "logits\n[B, C]", 8.5)

    frame = FancyBboxPatch((0.2, 1.35), 11.0, 2.8, boxstyle="round,pad=0,rounding_size=0.1", fill=False)
    frame.set(edgecolor=SPIKES, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.add_patch(frame)
    for x in (5.3 - 0.62, 5.3 + 0.62):
        axes.plot([x, 0.4 if x < 5.3 else 11.0], [0.83, 1.35], color=SPIKES, linewidth=0.7, linestyle=(0, (4, 3)))
    encoder_layer(axes)
    legend = "blue: a layer of spiking neurons, and spike trains; grey: a real-valued operation, and currents"
    text(axes, 5.7, 4.42, legend, 8, color="#777777")
    return figure


def chain(axes, y: float, row: tuple, **size: float) -> None:
    """Boxes (words, x, width, spiking) from left to right, with an arrow from each to the next."""
    for words, x, width, spiking in row:
        box(axes, x, y, words, width=width, spiking=spiking, **size)
    for (_, x, width, spiking), (_, after, wide, _) in zip(row, row[1:], strict=False):
        arrow(axes, (x + width / 2, y), (after - wide / 2, y), spikes=spiking)


def encoder_layer(axes) -> None:
    middle = 2.75
    text(axes, 0.5, middle - 0.17, "$a$", 10, color=SPIKES)
    for y, words, spiking in ((2.0, "$W_q$", None), (middle, "$W_k$", "$k$"), (3.5, "$W_v$", "$v$")):
        arrow(axes, (0.7, middle), (0.7, y), (1.0, y), spikes=True)
        box(axes, 1.25, y, words, width=0.5, height=0.38)
        if spiking:
            arrow(axes, (1.5, y), (1.78, y))
            box(axes, 2.05, y, spiking, width=0.54, height=0.38, spiking=True)
        start, end = 2.32 if spiking else 1.5, middle + 0.18 * (y - middle)
        arrow(axes, (start, y), (2.75, y), (2.75, end), (3.0, end), spikes=bool(spiking))
    text(axes, 2.1, 1.82, "$q$ (current)", 8.5)
    axes.plot([0.3, 0.7], [middle, middle], color=SPIKES, linewidth=1.2)
    row = (
        ("softmax($qk^T/\\sqrt{d}$) $v$", 3.8, 1.6, False),
        ("$c$", 5.1, 0.46, True),
        ("$W_o$, + $a$\nlayer norm", 6.05, 0.92, False),
        ("$h$", 6.98, 0.46, True),
        ("$W_1$, gelu", 7.8, 0.76, False),
        ("$f$", 8.62, 0.46, True),
        ("$W_2$, + $h$\nlayer norm", 9.5, 0.92, False),
        ("$a'$", 10.4, 0.46, True),
    )
    chain(axes, middle, row)
    arrow(axes, (10.63, middle), (11.05, middle), spikes=True)
    arrow(axes, (0.7, 3.5), (0.7, 3.9), (6.05, 3.9), (6.05, middle + 0.23), spikes=True)
    arrow(axes, (6.98, middle - 0.23), (6.98, 1.75), (9.5, 1.75), (9.5, middle - 0.23), spikes=True)
    text(axes, 4.4, 3.76, "residual", 8)
    text(axes, 8.25, 1.61, "residual", 8)
    for x, words in ((5.1, "[T, B, N, D]"), (6.98, "[T, B, N, D]"), (8.62, "[T, B, N, F]"), (10.4, "[T, B, N, D]")):
        text(axes, x, middle + 0.36, words, 7, color="#777777")


# --------------------------------------------------------------------------------------------- one layer, compressed


def layer() -> Figure:
    """One encoder layer uncompressed (above) and compressed (below); pale outlines are what was removed."""
    figure, axes = canvas(11.4, 4.9)
    draw = random.Random(3)
    weights = [[draw.choice((-1, 1)) * draw.uniform(0.25, 1) for _ in range(CHANNELS)] for _ in range(NEURONS)]
    present = [[draw.random() < 0.5 for _ in range(CHANNELS)] for _ in range(NEURONS)]
    spikes = [[draw.random() < 0.4 for _ in range(STEPS)] for _ in range(NEURONS)]
    columns = (
        (2.35, "attention heads"),
        (5.85, "$W_1$: synapses of the feed-forward neurons"),
        (9.75, "spikes of $f$"),
    )
    for x, words in columns:
        text(axes, x, 0.25, words, 9.5, weight="bold")
    for top, name, compressed in ((0.5, "uncompressed", False), (2.55, "compressed", True)):
        text(axes, 0.62, top + 0.85, name, 9.5, weight="bold", color=SPIKES if compressed else INK)
        heads(axes, 1.3, top + 0.1, compressed)
        matrix(axes, 4.0, top, weights, present, compressed)
        raster(axes, 9.2, top, spikes, compressed)
    for x, words in (
        (2.35, "spatial pruning:\nthe mask of heads"),
        (5.85, "spatial pruning: the mask of neurons removes rows;\nsynapse pruning removes single weights"),
        (9.75, "temporal pruning: fewer steps;\nthe loss on additions: fewer spikes"),
    ):
        text(axes, x, 4.58, words, 8, color="#777777")
    return figure


def heads(axes, left: float, top: float, compressed: bool) -> None:
    for i in range(HEADS):
        kept = not compressed or i in KEPT_HEADS
        x, y = left + 0.72 * (i % 3), top + 0.72 * (i // 3)
        cell(axes, x, y, 0.62, SPIKES if kept else "none", SPIKES if kept else PALE, alpha=0.85)
        text(axes, x + 0.31, y + 0.31, f"head {i}", 7.5, color="white" if kept else "#AAAAAA")


def matrix(axes, left: float, top: float, weights, present, compressed: bool) -> None:
    """Rows: feed-forward neurons; columns: input channels. The colour is a weight's sign, its strength the size."""
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            gone = compressed and (i not in KEPT_NEURONS or not present[i][j])
            colour = POSITIVE if weight > 0 else NEGATIVE
            place = left + 0.232 * j, top + 0.145 * i
            alpha = 1.0 if gone else 0.15 + 0.8 * abs(weight)
            cell(axes, *place, 0.2, "none" if gone else colour, PALE if gone else "none", height=0.115, alpha=alpha)


def raster(axes, left: float, top: float, spikes, compressed: bool) -> None:
    """Rows: feed-forward neurons; columns: time steps. Filled: a spike."""
    for i, row in enumerate(spikes):
        for t, fired in enumerate(row):
            gone = compressed and (i not in KEPT_NEURONS or t >= KEPT_STEPS)
            face = SPIKES if fired and not gone else "none"
            cell(axes, left + 0.28 * t, top + 0.145 * i, 0.24, face, PALE if gone else SPIKES, height=0.115)


def cell(axes, x: float, y: float, width: float, face: str, edge: str, *, height: float | None = None, alpha=1.0):
    style = {"facecolor": face, "edgecolor": edge, "linewidth": 0.6, "alpha": alpha}
    axes.add_patch(Rectangle((x, y), width, height or width, **style))


# --------------------------------------------------------------------------------------------------------------------

FIGURES = {"stages.svg": stages, "network.svg": network, "layer.svg": layer}


def svg(figure: Figure) -> str:
    """Without date, version or random names: the same drawing gives the same text."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": "spikeprune", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    stale = []
    for name, draw in FIGURES.items():
        drawn, path = svg(draw()), FOLDER / name
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != drawn):
            stale.append(name)
        elif not check:
            path.write_text(drawn, encoding="utf-8")
    if stale:
        print(f"docs/figures: {', '.join(stale)} differ from what draw.py draws")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
