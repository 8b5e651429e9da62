"""Times of the parts on this machine, as a table and as JSON. Compare figures of one run only: machines differ.

python benchmarks/run.py --output out/bench [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coopnet_core.checkpoint import CheckpointMetadata, save_checkpoint
from coopnet_core.config import load_config
from coopnet_core.cotraining import objective as objective_module
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.instrumentation import gradient_shares, retain_gradients, threshold_and_temperature
from coopnet_core.cotraining.objective import StepOutput
from coopnet_core.cotraining.step import step
from coopnet_core.data.augmentation import augment, to_float
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.prepare import fit_frame
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.data.triplets import TripletSampler
from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.networks.bundle import CoopNetworks

SIZE = (416, 128)
INFERENCE_SIZES = ((320, 96), (416, 128), (640, 192))


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of one call: median, minimum, maximum over the repeats, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}


def training_figures(clip: Clip, preset: str, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """One optimisation step of every stage of a preset, and of the last stage under the rule sum."""
    config = load_config(preset, [], {})
    sampler = TripletSampler([clip], config.frame_offsets, config.batch_size, 0)
    networks = CoopNetworks(config.networks).to(device)
    optimiser = torch.optim.Adam(networks.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(0)
    half = half_dtype(device)
    cases = {stage.name: (stage, config.loss) for stage in config.stages}
    last = config.stages[-1]
    cases[f"{last.name}, rule sum"] = (last, config.loss.model_copy(update={"rule": "sum"}))
    figures = {}
    for name, (stage, loss) in cases.items():
        state = [ErrorModelState.initial(device)]

        def one(stage=stage, loss=loss, state=state) -> None:
            batch = augment(to_float(sampler.next(stage.sources).to(device)), config.augmentation, generator)
            output = step(networks, batch, state[0], loss, stage, half)
            optimiser.zero_grad(set_to_none=True)
            output.loss.backward()
            optimiser.step()
            state[0] = output.error_model
            _wait_for(device)

        figures[name] = timed(one, repeats)
        figures[name]["targets_per_s"] = 1e3 * config.batch_size / figures[name]["median_ms"]
    return figures


def machinery_figures(clip: Clip, preset: str, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """What the error model and the instrumentation take of a step of the last stage: mean ms, and share of it.

    The error model works in every step; the instrumentation in every `log_every`-th, and is spread over them here.
    """
    config = load_config(preset, [], {})
    stage, half = config.stages[-1], half_dtype(device)
    sampler = TripletSampler([clip], config.frame_offsets, config.batch_size, 0)
    networks = CoopNetworks(config.networks).to(device)
    state, seconds = ErrorModelState.initial(device), Counter[str]()

    def clocked(name: str, work: Callable) -> Callable:
        def wrapped(*arguments: object, **named: object) -> object:
            _wait_for(device)
            start = time.perf_counter()
            result = work(*arguments, **named)
            _wait_for(device)
            seconds[name] += time.perf_counter() - start
            return result

        return wrapped

    def one() -> None:
        batch = to_float(sampler.next(stage.sources).to(device))
        output = step(networks, batch, state, config.loss, stage, half)
        networks.zero_grad(set_to_none=True)
        retain_gradients(output)
        output.loss.backward()
        measure(output)

    def report_of(output: StepOutput) -> None:
        gradient_shares(output)
        threshold_and_temperature(output.error_model, config.loss.error_model)
        _ = {name: float(value) for name, value in output.terms.items()} | output.error_model.as_floats()

    measure, whole = clocked("instrumentation", report_of), clocked("step", one)
    parts = dict.fromkeys(("_evidence", "update", "_pixel_weights"), "error model")
    with contextlib.ExitStack() as stack:
        for attribute, name in parts.items():
            clocked_part = clocked(name, getattr(objective_module, attribute))
            stack.enter_context(mock.patch.object(objective_module, attribute, clocked_part))
        whole()
        seconds.clear()
        for _ in range(repeats):
            whole()
    seconds["step"] -= seconds["instrumentation"]
    seconds["instrumentation"] /= config.log_every
    return {
        name: {"mean_ms": 1e3 * value / repeats, "share": value / seconds["step"]} for name, value in seconds.items()
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def inference_figures(clip: Clip, preset: str, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Depth, odometry, flow and mask of one frame after another, from uint8 image to arrays on the host."""
    config = load_config(preset, [], {})
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        metadata = CheckpointMetadata(
            networks=config.networks.model_dump(mode="json"),
            width=SIZE[0],
            height=SIZE[1],
            camera_matrix=clip.camera.matrix.tolist(),
            error_model=ErrorModelState.initial().as_floats(),
            error_model_config=config.loss.error_model.model_dump(mode="json"),
            step=0,
        )
        save_checkpoint(path, CoopNetworks(config.networks), metadata)
        for width, height in INFERENCE_SIZES:
            predictor = StreamPredictor(path, device, (width, height))
            stamps = iter(range(10**9))

            def one(predictor=predictor, stamps=stamps) -> None:
                stamp = next(stamps)
                predictor.predict(Frame(clip.images[stamp % len(clip)], stamp, clip.camera))

            figures[f"{width}x{height}"] = timed(one, 4 * repeats)
            figures[f"{width}x{height}"]["frames_per_s"] = 1e3 / figures[f"{width}x{height}"]["median_ms"]
    return figures


def data_figures(clip: Clip, repeats: int) -> dict[str, dict[str, float]]:
    """Rendering one frame, and fitting one 1241x376 frame to the networks."""
    large = np.random.default_rng(0).integers(0, 255, (376, 1241, 3), dtype=np.uint8)
    camera = Camera(1241, 376, 718.9, 718.9, 607.2, 185.2)
    scene = SceneConfig(seed=0, frames=1, camera=clip.camera)
    return {
        "render 416x128": timed(lambda: render_clip(scene), min(repeats, 3)),
        "fit 1241x376 to 416x128": timed(lambda: fit_frame(Frame(large, 0, camera), *SIZE), 4 * repeats),
    }


def main() -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--preset", default="cpu-small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    camera = Camera.from_field_of_view(*SIZE, 80.0)
    clip = render_clip(SceneConfig(seed=0, frames=8, camera=camera)).clip
    groups = {
        "training step": training_figures(clip, arguments.preset, device, arguments.repeats),
        "machinery": machinery_figures(clip, arguments.preset, device, 2 * arguments.repeats),
        "inference": inference_figures(clip, arguments.preset, arguments.device, arguments.repeats),
        "data": data_figures(clip, arguments.repeats),
    }
    table = Table("part", "case", "median ms (machinery: mean)", "min-max ms", "per second")
    for group, cases in groups.items():
        for case, values in cases.items():
            typical = values["mean_ms"] if "mean_ms" in values else values["median_ms"]
            rate = values.get("targets_per_s", values.get("frames_per_s", 1e3 / typical))
            spread = f"{values['min_ms']:.1f}-{values['max_ms']:.1f}" if "min_ms" in values else ""
            if "share" in values:
                spread = f"{100 * values['share']:.1f} % of a step"
            table.add_row(group, case, f"{typical:.1f}", spread, f"{rate:.1f}")
    Console().print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "device": str(device),
        "threads": arguments.threads,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "preset": arguments.preset,
        "half": str(half_dtype(device)),
    }
    (arguments.output / "bench.json").write_text(json.dumps(facts | groups, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
