"""The plot and the table of an experiment."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from r1mini.evaluation.figures import (
    Figures,
    figure_cell,
    format_figure,
    markdown_table,
    read_figures,
    spread,
)
from r1mini.experiments.catalog import EVALUATION, Arm, Experiment
from r1mini.recipe.report import draw_seeds, metric_values

COLOURS = ("black", "tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:brown")


def table(experiment: Experiment, seeds: Sequence[Path]) -> str:
    """A row for each arm: pass@1 on held-out problems, of each seed too, and other figures."""
    rows = []
    for arm in experiment.arms:
        figures = [arm_figures(arm, folder) for folder in seeds]
        each = ", ".join(format_figure(f["pass@1"], "pass@1") for f in figures)
        cells = [spread([f[column] for f in figures], column) for column in experiment.columns]
        flags = f"`{arm.flags}`" if arm.flags else ""
        rows.append([arm.label, flags, figure_cell(figures, "pass@1"), each, *cells])
    columns = ["run", "flags", "pass@1", "each seed", *experiment.columns]
    return markdown_table(columns, rows) + "\n"


def arm_figures(arm: Arm, folder: Path) -> Figures:
    return read_figures(folder / "eval" / f"{arm.name}.json", k=EVALUATION["samples"])["mean"]


def draw(experiment: Experiment, seeds: Sequence[Path], out: Path) -> None:
    """A panel for each metric, a colour for each arm. Thin lines are seeds, thick ones means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    count = len(experiment.panels)
    figure, axes = plt.subplots(1, count, figsize=(3.6 * count, 3), layout="constrained")
    for axis, (metric, title) in zip(axes, experiment.panels.items()):
        arms = [arm for arm in experiment.arms if arm.rl is not None]
        for arm, colour in zip(arms, COLOURS):
            runs = [metric_values(folder / arm.name, metric) for folder in seeds]
            draw_seeds(axis, range(1, len(runs[0]) + 1), runs, colour, arm.label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("RL step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    Image.open(buffer).quantize(64).save(out, optimize=True)  # a third of the size
