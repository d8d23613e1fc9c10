"""`--report-to tensorboard`: the metrics of a run as scalars in OUT/tensorboard."""

import time
from collections.abc import Mapping
from pathlib import Path

from r1mini.infra import files


def writer_class() -> type:
    """torch's SummaryWriter. Raises ValueError without the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--report-to tensorboard: needs the package tensorboard (pip install tensorboard)"
        ) from None
    return SummaryWriter


class TensorBoard:
    """Writes rows of metrics.jsonl under the same names.

    A run that starts or resumes writes its scalars anew from metrics.jsonl, which has been cut back
    to the state from which it resumes: every logged step is there once, also after a kill.
    """

    def __init__(self, out: Path, seconds: float):
        folder = out / "tensorboard"
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        self.writer = writer_class()(str(folder))
        self.began = time.time() - seconds  # so that times are those of the run, without pauses
        self.write(*files.read_metrics(out / "metrics.jsonl", "step", "seconds"))

    def write(self, *rows: Mapping[str, float]) -> None:
        for row in rows:
            time_of_row = self.began + row["seconds"]
            for name in [name for name in row if name != "step"]:
                self.writer.add_scalar(name, row[name], row["step"], time_of_row)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
