"""Everything a run leaves on disk. Of several processes that train together, the first alone has one of these."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from coopnet_core.checkpoint import CheckpointMetadata, save_checkpoint
from coopnet_core.config import StageConfig, TrainConfig
from coopnet_core.cotraining.error_model import Evidence, fitted_shares
from coopnet_core.cotraining.instrumentation import symptoms, threshold_and_temperature
from coopnet_core.cotraining.metrics_file import MetricsFile, read_metrics
from coopnet_core.cotraining.run_state import Run, state_of, state_path
from coopnet_core.data.frames import Clip
from coopnet_core.errors import CheckpointError, NoUsableDataError
from coopnet_core.files import PARTIAL, write_whole

_BINS = 100
_SYMPTOM_LINES = 50
"""Logged steps over which figures are averaged before they are taken for a symptom."""


def last_checkpoint(output: Path) -> Path:
    """The newest weights of the run in a folder."""
    return output / "checkpoints" / "last.safetensors"


def best_checkpoint(output: Path) -> Path:
    """The weights with the lowest validation error; without validation the newest ones."""
    return output / "checkpoints" / "best.safetensors"


def focal_factors(output: Path) -> list[float]:
    """All factors of a learned focal length that a run has logged, those before a resume too."""
    try:
        lines = read_metrics(output / "metrics.jsonl")
    except NoUsableDataError:  # shorter than one logged step
        return []
    return [line["focal_factor"] for line in lines if line.get("focal_factor") is not None]


class RunFolder:
    """config.yaml, metrics.jsonl, tensorboard/, warnings.txt, checkpoints/ and state.pt."""

    def __init__(
        self, config: TrainConfig, output: Path, clips: Sequence[Clip], facts: dict[str, Any], last_step: int | None
    ) -> None:
        """Open the folder.

        Args:
            config: of the run.
            output: the folder.
            clips: for training; the first one's camera goes into the checkpoints.
            facts: about the data, likewise.
            last_step: of a resumed run; None: a new one.

        Raises:
            OSError: the disk refuses.
        """
        self._config, self._output, self._facts = config, output, facts
        self._camera = clips[0].camera
        self._saved_step = self._checkpoint_step = last_step
        output.mkdir(parents=True, exist_ok=True)
        self._clean(last_step)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        write_whole(output / "config.yaml", lambda partial: partial.write_text(text))
        self._metrics = MetricsFile(output / "metrics.jsonl", last_step)
        # What a killed process had drawn of steps that are now done again is hidden.
        purge = None if last_step is None else last_step + 1
        self._tensorboard: SummaryWriter | None = SummaryWriter(str(output / "tensorboard"), purge_step=purge)
        self._recent: deque[dict[str, float]] = deque(maxlen=_SYMPTOM_LINES)
        self._said: set[str] = set()
        self._complaints: list[str] = []

    def last_good(self) -> str:
        """The newest checkpoint and where a resume would start, in words."""
        resumed = "" if self._saved_step == self._checkpoint_step else f"; a resume starts at step {self._saved_step}"
        return f"{last_checkpoint(self._output)} (step {self._checkpoint_step}{resumed})"

    def log(self, run: Run, stage: StageConfig, values: Mapping[str, float], has_rigid: bool) -> None:
        """One line of training figures.

        Args:
            run: after the step.
            stage: of the step.
            values: figures of the step.
            has_rigid: the stage has an error model.
        """
        line = dict(values)
        if has_rigid:
            model = run.error_model
            tau, temperature = threshold_and_temperature(model, self._config.loss.error_model)
            line |= model.as_floats()
            line |= {"separation": float(model.separation()), "log_separation": float(model.log_separation())}
            line |= {"tau": tau, "temperature": temperature}
        if run.focal is not None:
            line["focal_factor"] = run.focal.factor()
        line |= {name: float(count) for name, count in run.skipped.items()}
        self._recent.append(line | {"step": float(run.step)})
        self._write({"step": run.step, "stage": stage.name, "validation": False} | line)

    def log_validation(self, run: Run, stage: StageConfig, terms: Mapping[str, float]) -> None:
        """One line of validation figures."""
        self._write({"step": run.step, "stage": stage.name, "validation": True, **terms})

    def warnings(self, step: int) -> list[str]:
        """What has gone wrong and had not been said yet, in the last logged steps or on disk; kept in warnings.txt."""
        new, self._complaints = [*self._complaints, *self._new_symptoms()], []
        if new:
            # A full disk is among the warnings themselves.
            with contextlib.suppress(OSError), (self._output / "warnings.txt").open("a") as file:
                file.writelines(f"step {step}: {text}\n" for text in new)
        return new

    def save(self, run: Run, last: bool) -> None:
        """The checkpoints and state.pt, each replaced whole. `best` is `last` until a validation has chosen one.

        Where the disk refuses, the run goes on with the checkpoints before, and that is among the `warnings`.

        Raises:
            CheckpointError: the disk refuses and this was the last chance.
        """
        try:
            self._save(run)
        except (CheckpointError, OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
            free = shutil.disk_usage(self._output).free / 1e6
            text = f"{str(error).splitlines()[0].rstrip('.')}; {free:.1f} MB are free there"
            if self._saved_step is None:
                raise CheckpointError(
                    f"The run cannot be saved in {self._output} ({text}). Free disk space or choose another output."
                ) from None
            if last:
                raise CheckpointError(
                    f"The state of the run at step {run.step} could not be saved ({text}). The last good checkpoint is "
                    f"{self.last_good()}. Free disk space, then go on from there with --resume."
                ) from None
            self._complaints.append(
                f"the state could not be saved ({text}). The last good checkpoint is {self.last_good()}. Training goes "
                f"on and tries again every {self._config.checkpoint_every} steps: free disk space"
            )

    def save_best(self, run: Run, figures: dict[str, float]) -> bool:
        """best.safetensors, with the validation figures it reached. False: the disk refuses, as `warnings` says."""
        try:
            save_checkpoint(best_checkpoint(self._output), run.product, self._metadata(run, figures))
        except CheckpointError as error:
            self._complaints.append(str(error).rstrip("."))
            return False
        return True

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # a few curves less; a full disk has been said by the last save
                self._tensorboard.close()

    def _clean(self, last_step: int | None) -> None:
        """Remove what a killed process left half written, and numbered checkpoints of steps that are done again."""
        for path in (*self._output.glob(f"*{PARTIAL}"), *(self._output / "checkpoints").glob(f"*{PARTIAL}")):
            path.unlink(missing_ok=True)
        for path in self._numbered():
            if last_step is None or int(path.stem.removeprefix("step_")) > last_step:
                path.unlink(missing_ok=True)

    def _save(self, run: Run) -> None:
        self._metrics.sync()
        metadata = self._metadata(run, {})
        save_checkpoint(last_checkpoint(self._output), run.product, metadata)
        self._checkpoint_step = run.step
        if math.isinf(run.best):
            save_checkpoint(best_checkpoint(self._output), run.product, metadata)
        if self._config.keep_last and run.step:
            numbered = self._output / "checkpoints" / f"step_{run.step:08d}.safetensors"
            save_checkpoint(numbered, run.product, metadata)
        # Last, so that what a resume starts from is never ahead of the rest; steps after it are simply done again.
        write_whole(state_path(self._output), lambda partial: torch.save(state_of(run), partial))
        self._saved_step = run.step
        if self._config.keep_last:
            for path in self._numbered()[: -self._config.keep_last]:
                path.unlink(missing_ok=True)

    def _numbered(self) -> list[Path]:
        """Numbered checkpoints, oldest first."""
        return sorted((self._output / "checkpoints").glob("step_*.safetensors"))

    def _new_symptoms(self) -> list[str]:
        """What the last logged steps say has gone wrong and had not been said yet."""
        if len(self._recent) < _SYMPTOM_LINES or any("e_r" not in values for values in self._recent):
            return []
        names = ("e_r", "e_identity", "depth_spread", "moving_share")
        means = {name: sum(values[name] for values in self._recent) / len(self._recent) for name in names}
        first, last = self._recent[0], self._recent[-1]
        steps = max(last["step"] - first["step"], 1.0)
        means["depth_skipped"] = (last["depth_skipped"] - first["depth_skipped"]) / steps
        found = symptoms(means, self._config.loss.error_model.maximum_pi)
        new = {kind: text for kind, text in found.items() if kind not in self._said}
        self._said |= set(new)
        return list(new.values())

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._metrics.add(line)
        except OSError as error:
            self._complain_once(
                f"metrics.jsonl could not be written ({error.strerror}); its lines wait until it can: free disk space"
            )
        if self._tensorboard is None:
            return
        prefix = "validation" if line["validation"] else "train"
        try:
            for name, value in line.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(f"{prefix}/{name}", value, line["step"])
        except OSError as error:
            self._end_of_curves(error)

    def draw_error_model(self, run: Run, evidence: Evidence) -> None:
        """Histograms of Delta for TensorBoard: of the pixels of a batch, and of as many by the fitted model."""
        values = evidence.delta[evidence.visible > 0].float().cpu()
        if self._tensorboard is None or len(values) < 2 or values.min() == values.max():
            return
        edges = torch.linspace(values.min().item(), values.max().item(), _BINS + 1)
        expected = len(values) * fitted_shares(edges, run.error_model.to("cpu"), self._config.loss.error_model)
        centres = (edges[1:] + edges[:-1]) / 2
        try:
            self._tensorboard.add_histogram("error_model/delta", values, run.step, bins=edges.numpy())
            self._tensorboard.add_histogram_raw(
                "error_model/delta_by_the_model",
                edges[0].item(),
                edges[-1].item(),
                int(expected.sum()),
                (expected * centres).sum().item(),
                (expected * centres.square()).sum().item(),
                edges[1:].tolist(),
                expected.tolist(),
                run.step,
            )
        except OSError as error:
            self._end_of_curves(error)

    def _end_of_curves(self, error: OSError) -> None:
        self._tensorboard = None
        self._complaints.append(
            f"the curves in tensorboard/ end here ({error.strerror}); metrics.jsonl has the same figures"
        )

    def _complain_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._complaints.append(text)

    def _camera_matrix(self, run: Run) -> list[list[float]]:
        matrix = self._camera.matrix
        if run.focal is not None and self._camera.assumed:
            matrix[[0, 1], [0, 1]] *= run.focal.factor()
        return matrix.tolist()

    def _metadata(self, run: Run, figures: dict[str, float]) -> CheckpointMetadata:
        return CheckpointMetadata(
            networks=self._config.networks.model_dump(mode="json"),
            width=self._camera.width,
            height=self._camera.height,
            camera_matrix=self._camera_matrix(run),
            error_model=run.error_model.as_floats(),
            error_model_config=self._config.loss.error_model.model_dump(mode="json"),
            step=run.earlier_steps + run.step,
            data=self._facts,
            figures=figures,
        )
