"""What benchmarks/gpu_check.sh runs: parts, each in a process of its own with a time limit.

    facts         the machine
    comparisons   the cases of benchmarks/gpu_comparisons.py: this device against the CPU
    training      triplets per second, share of the data path, peak memory; by preset, stage and batch size
    inference     latency of one frame, image in, arrays out, and peak memory; by network and input size

Results are written as they come, to PART.json and gpu_check.json. A part that fails or runs out of time is recorded,
and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

    from coopnet_core.config import TrainConfig
    from coopnet_core.data.frames import Clip

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = {
    "torch": "torch",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "rich": "rich",
    "tensorboard": "tensorboard",
}
"""What the checks import, and the package that has it."""
BUDGETS_S = {"facts": 60.0, "comparisons": 190.0, "training": 180.0, "inference": 100.0}
BATCH_SIZES = (8, 16, 32)
"""Tried beside that of the preset."""
INFERENCE_SIZES = ((320, 96), (416, 128), (640, 192), (1280, 384))
FRAME = (1280, 384)
"""Size of the images given to inference."""
QUICK_TRAINING_SIZE = (96, 64)
WINDOW, QUICK_WINDOW = 10, 2
"""Steps of each of the three windows of a run whose speed is measured."""
DONE, FAILED, OUT_OF_TIME = "done", "failed", "out of time"
PASSED, NOT_PASSED, NOTHING_RUN, INCOMPLETE = 0, 1, 2, 3
"""Exit codes."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        state: DONE, FAILED or OUT_OF_TIME.
        seconds: that it took.
        problem: what is to be said of it; empty where nothing is.
        results: what it had written by then.
    """

    state: str
    seconds: float
    problem: str
    results: list[dict[str, Any]]


def missing_modules() -> list[str]:
    """Packages that this Python lacks, looked for without importing any."""
    return [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]


def advice(missing: list[str]) -> str:
    """What to do about missing packages, with a network and without."""
    names, version = " ".join(missing), f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"Missing in {sys.executable}: {names}. Nothing was run.\n"
        f"With a network:    {sys.executable} -m pip install {names}\n"
        f"Without a network: where there is one, with Python {version} on {platform.machine()}, download them with\n"
        f"                   python3 -m pip download -d wheels {names}\n"
        f"                   bring the folder wheels here, and\n"
        f"                   {sys.executable} -m pip install --no-index --find-links wheels {names}\n"
        "                   (torch itself should be the build for this GPU that is there already)"
    )


def run_part(name: str, output: Path, options: list[str], budget_s: float) -> Outcome:
    """A part in a process of its own, ended when its time is over."""
    path = output / f"{name}.json"
    path.unlink(missing_ok=True)
    start = time.monotonic()
    command = [
        sys.executable,
        str(REPOSITORY / "benchmarks" / "gpu_check.py"),
        "--part",
        name,
        "--output",
        str(output),
        *options,
    ]
    path_of_modules = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path_of_modules, "PYTHONUNBUFFERED": "1"}
    problem = ""
    with subprocess.Popen(command, env=environment) as process:
        try:
            code = process.wait(budget_s)
            state = DONE if code == 0 else FAILED
        except subprocess.TimeoutExpired:
            process.kill()
            state, problem = OUT_OF_TIME, f"It was ended after {budget_s:.0f} s: what it had measured by then is kept."
        except BaseException:
            process.kill()
            raise
    written = json.loads(path.read_text()) if path.is_file() else {"results": [], "problem": ""}
    if state == FAILED:
        problem = written["problem"] or f"Its process ended with code {code}."
    return Outcome(state, time.monotonic() - start, problem, written["results"])


def exit_code(outcomes: dict[str, Outcome]) -> int:
    """By the comparisons first, then by whether every measurement is there."""
    comparisons = outcomes.get("comparisons")
    if comparisons and (comparisons.state != DONE or not all(result["passed"] for result in comparisons.results)):
        return NOT_PASSED
    complete = all(
        outcome.state == DONE and not any(result.get("problem") for result in outcome.results)
        for outcome in outcomes.values()
    )
    return PASSED if complete else INCOMPLETE


class Recorder:
    """Writes the results of a part whole after each of them."""

    def __init__(self, path: Path) -> None:
        self._path, self._results = path, []

    def add(self, text: str, result: dict[str, Any]) -> None:
        """One more result, and a line about it for the terminal."""
        print(f"  {text}")
        self._results.append(result)
        self.write()

    def write(self, problem: str = "") -> None:
        """The file as it is now: nothing of it is ever half there."""
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"results": self._results, "problem": problem}, indent=1) + "\n")
        partial.replace(self._path)


def facts(recorder: Recorder, device: torch.device, quick: bool) -> None:
    """The machine."""
    import cv2
    import numpy as np
    import torch

    from coopnet_core import __version__
    from coopnet_core.devices import half_dtype

    found: dict[str, Any] = {
        "coopnet": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "half": str(half_dtype(device)),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "memory_mib": properties.total_memory / 2**20,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    recorder.add(", ".join(f"{name} {value}" for name, value in found.items()), found)


def _driver() -> str:
    """As nvidia-smi names it; empty where that does not answer."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.strip().splitlines()[0] if answer.strip() else ""


def comparisons(recorder: Recorder, device: torch.device, quick: bool) -> None:
    """Every case on this device and on the CPU; one that cannot be computed has failed."""
    from benchmarks.gpu_comparisons import cases, compare

    for case in cases(device, quick):
        start = time.perf_counter()
        try:
            result = asdict(compare(case, device)) | {"problem": ""}
        except Exception as error:  # whatever a device may answer: the other cases are still of interest
            result = {"title": case.title, "passed": False, "problem": f"{type(error).__name__}: {error}"[:2000]}
        result["seconds"] = time.perf_counter() - start
        recorder.add(_line_of(result), _finite(result))


def _line_of(result: dict[str, Any]) -> str:
    verdict = "equal    " if result["passed"] else "DIFFERENT"
    if result["problem"]:
        return f"{verdict} {result['title']}: {result['problem'].splitlines()[0][:200]}"
    parts = [
        f"{kind} {result[kind]:.1e} of {result['limits'][kind + 's']:.0e} ({result[f'worst_{kind}']})"
        for kind in ("value", "gradient")
        if result[f"worst_{kind}"]
    ]
    return f"{verdict} {result['title']}: {', '.join(parts)}"


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {name: str(value) if value == float("inf") else value for name, value in result.items()}


def training(recorder: Recorder, device: torch.device, quick: bool) -> None:
    """`train` itself, one stage at a time, on images in memory; figures after the first steps."""
    from benchmarks.gpu_comparisons import PRESETS
    from coopnet_core.config import load_config, preset_names
    from coopnet_core.data.prepare import choose_size
    from coopnet_core.errors import CoopnetError
    from coopnet_core.geometry.camera import Camera
    from coopnet_core.networks.bundle import SIZE_MULTIPLE

    others = [] if quick else [preset for preset in preset_names() if preset not in PRESETS]
    configs = {preset: load_config(preset, [], {}) for preset in [*PRESETS, *others]}
    plan = [(preset, config.stages[-1], config.batch_size) for preset, config in configs.items()]
    if not quick:
        ends = {preset: configs[preset] for preset in PRESETS}
        plan += [(preset, stage, config.batch_size) for preset, config in ends.items() for stage in config.stages[:-1]]
        plan += [(preset, config.stages[-1], size) for size in BATCH_SIZES for preset, config in ends.items()]
    for preset, stage, batch_size in plan:
        size = choose_size(Camera.from_field_of_view(*FRAME, 80.0), configs[preset].pixels, SIZE_MULTIPLE)
        if quick:
            size, batch_size = QUICK_TRAINING_SIZE, 2
        case = {
            "preset": preset,
            "stage": stage.name,
            "batch_size": batch_size,
            "size": f"{size[0]}x{size[1]}",
            "sources": min(stage.sources, len(configs[preset].frame_offsets)),
        }
        config = configs[preset].model_copy(update={"batch_size": batch_size, "stages": (stage,)})
        title = f"{preset}, {stage.name}, {case['size']}, batch {batch_size}"
        try:
            figures = _training_figures(config, _clouds(size, 24), device, QUICK_WINDOW if quick else WINDOW)
        except CoopnetError as error:  # no memory left, for one
            recorder.add(f"{title}: {error}", case | {"problem": str(error)})
            continue
        text = f"{figures['triplets_per_s']:.1f} triplets/s, data path {100 * figures['data_share']:.1f} %"
        text += f", matches on the CPU {100 * figures['matches_share']:.1f} %, {_megabytes(figures)}"
        recorder.add(f"{title}: {text}", case | figures)


def _training_figures(config: TrainConfig, clip: Clip, device: torch.device, window: int) -> dict[str, Any]:
    """Of a run of three windows of steps, the first left out.

    Returns:
        triplets_per_s; data_share: of the time, waiting for batches and for their way to the device; matches_share: for
        the matches of the classical method, which are found on the CPU; peak_memory_mib of the device, None on a CPU.
    """
    import torch

    from coopnet_core.cotraining import objective
    from coopnet_core.cotraining.trainer import train
    from coopnet_core.data.prefetch import Batches

    seconds, batches = Counter[str](), [0]

    def clocked(name: str, work: Callable) -> Callable:
        def wrapped(*arguments: object, **named: object) -> object:
            if name == "matches":
                _wait_for(device)  # it would itself, for the images
            batches[0] += name == "draw"
            start = time.perf_counter()
            result = work(*arguments, **named)
            if batches[0] > window:
                seconds[name] += time.perf_counter() - start
            return result

        return wrapped

    ends = 10**9
    changes = {"steps": 3 * window, "log_every": window, "checkpoint_every": ends, "validate_every": ends}
    places = ((Batches, "next", "draw"), (objective, "classical_matches", "matches"))
    _forget_peak(device)
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(mock.patch.object(owner, attribute, clocked(name, getattr(owner, attribute))))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        train(config.model_copy(update=changes | {"device": str(device)}), [clip], [], folder)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["triplets_per_s"] for line in lines[1:]]
    total = sum(window * config.batch_size / rate for rate in rates)
    return {
        "triplets_per_s": len(rates) * window * config.batch_size / total,
        "data_share": seconds["draw"] / total,
        "matches_share": seconds["matches"] / total,
        "peak_memory_mib": _peak_mib(device),
        "half": str(_half(config, device)),
        "torch_threads": torch.get_num_threads(),
    }


def _half(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    from coopnet_core.devices import half_dtype

    return half_dtype(device) if config.mixed_precision else None


def inference(recorder: Recorder, device: torch.device, quick: bool) -> None:
    """One frame after another through `StreamPredictor`, everything wanted: from uint8 image to arrays on the host."""
    from benchmarks.gpu_comparisons import PRESETS, SHIPPED
    from coopnet_core.config import load_config
    from coopnet_core.inference.stream import StreamPredictor
    from coopnet_core.resources import shipped_file

    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS if quick else [*PRESETS, "edge"]:
            path = shipped_file(SHIPPED)
            if preset != "cpu-small":
                path = _random_weights(Path(folder) / f"{preset}.safetensors", load_config(preset, [], {}))
            sizes = [(size, True) for size in (INFERENCE_SIZES[:2] if quick else INFERENCE_SIZES)]
            if device.type == "cuda":
                sizes.append((INFERENCE_SIZES[1], False))
            for size, graphs in sizes:
                _forget_peak(device)
                predictor = StreamPredictor(path, str(device), size, cuda_graphs=graphs)
                frames = (1, 3) if quick else (20, 200) if graphs else (10, 50)
                figures = _latency(predictor, _clouds(FRAME, 12), *frames)
                figures |= {"peak_memory_mib": _peak_mib(device)}
                text = f"p50 {figures['p50_ms']:.2f} ms, p95 {figures['p95_ms']:.2f} ms, {_megabytes(figures)}"
                case = {"preset": preset, "size": f"{size[0]}x{size[1]}", "frame": f"{FRAME[0]}x{FRAME[1]}"}
                case["cuda_graphs"] = graphs and device.type == "cuda"
                manner = "" if graphs else ", without CUDA graphs"
                recorder.add(f"{preset}, {case['size']}{manner}: {text}", case | figures)


def _latency(predictor: Any, clip: Clip, warm: int, count: int) -> dict[str, float]:
    """Of `count` frames after `warm` others, back and forth through a clip."""
    import numpy as np

    from coopnet_core.data.frames import Frame

    there_and_back = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    times, prediction = [], None
    for k in range(warm + count):
        frame = Frame(clip.images[there_and_back[k % len(there_and_back)]], k * 10**8, clip.camera)
        start = time.perf_counter()
        prediction = predictor.predict(frame)
        times.append(1e3 * (time.perf_counter() - start))
    if not np.nan_to_num(prediction.flow).any():
        raise RuntimeError("The frames were taken for a standing camera: the networks of pairs were not measured.")
    p50, p95 = np.percentile(times[warm:], (50, 95))
    return {"p50_ms": float(p50), "p95_ms": float(p95), "frames": count}


def _random_weights(path: Path, config: TrainConfig) -> Path:
    """A checkpoint of untrained networks: as fast as trained ones."""
    from coopnet_core.checkpoint import CheckpointMetadata, save_checkpoint
    from coopnet_core.cotraining.error_model import ErrorModelState
    from coopnet_core.networks.bundle import CoopNetworks

    metadata = CheckpointMetadata(
        networks=config.networks.model_dump(mode="json"),
        width=FRAME[0],
        height=FRAME[1],
        camera_matrix=[[1000.0, 0, 639.5], [0, 1000.0, 191.5], [0, 0, 1]],
        error_model=ErrorModelState.initial().as_floats(),
        error_model_config=config.loss.error_model.model_dump(mode="json"),
        step=0,
    )
    save_checkpoint(path, CoopNetworks(config.networks), metadata)
    return path


def _clouds(size: tuple[int, int], frames: int) -> Clip:
    """Coloured clouds that move past the camera by four pixels a frame."""
    import cv2
    import numpy as np

    from coopnet_core.data.frames import Clip
    from coopnet_core.geometry.camera import Camera

    width, height = size
    coarse = np.random.default_rng(0).integers(0, 255, (height // 8, (width + 4 * frames) // 8, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, (width + 4 * frames, height), interpolation=cv2.INTER_CUBIC)
    images = np.stack([wide[:, 4 * k : 4 * k + width] for k in range(frames)])
    return Clip("clouds", images, np.arange(frames) * 10**8, Camera.from_field_of_view(width, height, 80.0))


def _wait_for(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_mib(device: torch.device) -> float | None:
    """Most memory of the device that tensors took at once since `_forget_peak`; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def _megabytes(figures: dict[str, Any]) -> str:
    peak = figures["peak_memory_mib"]
    return "memory not measured" if peak is None else f"peak {peak:.0f} MiB"


PARTS: dict[str, Callable[[Recorder, Any, bool], None]] = {
    "facts": facts,
    "comparisons": comparisons,
    "training": training,
    "inference": inference,
}


def run_in_this_process(name: str, output: Path, device_name: str, quick: bool) -> int:
    """One part, whatever goes wrong in it written down."""
    recorder = Recorder(output / f"{name}.json")
    try:
        from coopnet_core.devices import resolve_device

        PARTS[name](recorder, resolve_device(device_name), quick)
    except Exception as error:
        recorder.write(f"{type(error).__name__}: {error}")
        raise
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Check what is there, run the parts, write gpu_check.json, say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/gpu_check"))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats, to try the script itself")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts (and the facts)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if missing := missing_modules():
        print(advice(missing), file=sys.stderr)
        return NOTHING_RUN
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        return run_in_this_process(options.part, options.output, options.device, options.quick)
    handed_on = ["--device", options.device, *(["--quick"] if options.quick else [])]
    names = [name for name in PARTS if name == "facts" or name in options.only]
    outcomes: dict[str, Outcome] = {}
    for name in names:
        print(f"{name} (at most {BUDGETS_S[name]:.0f} s)")
        outcomes[name] = run_part(name, options.output, handed_on, BUDGETS_S[name])
        usable = outcomes["facts"].state == DONE
        code = exit_code(outcomes) if usable else NOTHING_RUN
        summary = {
            "device": options.device,
            "quick": options.quick,
            "exit_code": code if name == names[-1] or not usable else None,
            "parts": {name: asdict(outcome) for name, outcome in outcomes.items()},
        }
        (options.output / "gpu_check.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"{name}: {outcomes[name].state} in {outcomes[name].seconds:.0f} s. {outcomes[name].problem}")
        if not usable:
            print(f"Device {options.device} cannot be used: nothing else was run.", file=sys.stderr)
            break
    _say_what_differs(outcomes)
    print(f"Written to {options.output / 'gpu_check.json'}.")
    return code


def _say_what_differs(outcomes: dict[str, Outcome]) -> None:
    if "comparisons" not in outcomes:
        return
    results = outcomes["comparisons"].results
    different = [result for result in results if not result["passed"]]
    print(f"{len(results) - len(different)} of {len(results)} comparisons are equal within their limits.")
    for result in different:
        print(_line_of(result))


if __name__ == "__main__":
    sys.exit(main())
