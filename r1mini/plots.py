"""The curves of a recipe run: what R1-Zero and R1 gained over their RL steps, in the manner of the report's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from r1mini.checkpoint import read_metrics

PANELS = (
    ("rewards/accuracy/mean", "accuracy on training problems", "report, figure 2"),
    ("completions/mean_length", "response length (tokens)", "report, figure 3"),
    ("rewards/language/mean", "language consistency", ""),
    ("rewards/format/mean", "format", ""),
)


def smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Trailing mean.

    >>> smooth([0.0, 1.0, 2.0], window=2)
    [0.0, 0.5, 1.5]
    """
    return [fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def draw_curves(lines: Mapping[str, Sequence[Path]], out: Path) -> None:
    """One line a model, through the RL runs that made it one after another; dotted where the next one starts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    for axis, (key, title, note) in zip(axes.flat, PANELS):
        for (label, folders), colour in zip(lines.items(), ("tab:orange", "tab:blue")):
            offset = 0
            for folder in folders:
                values = [row[key] for row in read_metrics(folder / "metrics.jsonl") if key in row]
                steps = range(offset, offset + len(values))
                if offset and values:
                    axis.axvline(offset - 0.5, color=colour, linestyle=":", linewidth=1)
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label=None if offset else label)
                offset += len(values)
        axis.set_title(title + (f"  ({note})" if note else ""), fontsize=10)
        axis.set_xlabel("RL step")
        axis.grid(alpha=0.25)
        if "length" not in key:
            axis.set_ylim(0, 1.02)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)
