"""The way of the data: preparing against bare decoding, the cache, the sampler, and what of a training waits for it.

Takes any recordings; without, four of one street are made: a raw bag, a jpeg bag, a folder of images and (with PyAV) a
video. Each is decoded bare (its files or messages, nothing else), prepared without a cache, into a new one and from it;
then triplets are drawn and a short training tells the share of its time that it waits for batches. Writes loader.json.
Best of --repeats; files are read from the page cache where it holds them.

python benchmarks/loader.py --output out/loader [RECORDING ...] [--frames 60] [--repeats 3] [--steps 12]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coopnet_core.config import load_config
from coopnet_core.cotraining import trainer
from coopnet_core.data.bag import open_bag, read_frames
from coopnet_core.data.clips import PreparedData, PrepareOptions, prepare_clips
from coopnet_core.data.frames import Clip
from coopnet_core.data.image_files import PICTURE_SUFFIXES, files_with, find_image_folder
from coopnet_core.data.prefetch import AHEAD_ON_GPU
from coopnet_core.data.prepared_cache import PreparedCache
from coopnet_core.data.sources import SourceOptions, open_source
from coopnet_core.data.sources.bags import choose_topics
from coopnet_core.data.sources.video import VIDEO_SUFFIXES
from coopnet_core.data.triplets import TripletSampler
from coopnet_ros import make_demo_bag
from coopnet_ros.command import image_size

_BATCHES = 200


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Of one call, the best of the repeats: on the clock, and of the processor, which other processes do not change."""
    clock, processor = [], []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    return min(clock), min(processor)


def make_recordings(folder: Path, frames: int, width: int, height: int) -> list[Path]:
    """One rendered street as a raw bag, a folder of jpeg files, a jpeg bag and a video; those there are kept."""
    raw, images, jpeg, video = (folder / name for name in ("raw_bag", "images", "jpeg_bag", "video.mp4"))
    size = [f"--width={width}", f"--height={height}", f"--frames={frames}"]
    if not raw.exists() and make_demo_bag.main(["--output", str(raw), *size]):
        raise SystemExit("The demo bag could not be made.")
    with closing(open_source(raw)) as source:
        shown = list(source.frames())
    if not images.exists():
        images.mkdir()
        for index, frame in enumerate(shown):
            cv2.imwrite(str(images / f"{index:06d}.jpg"), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
        camera = shown[0].camera
        facts = {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")} | {"fps": 10}
        for path in (images / "meta.json", video.with_suffix(".json")):
            path.write_text(json.dumps(facts))
    camera_option = ["--camera", str(images / "meta.json")]
    if not jpeg.exists() and make_demo_bag.main(
        ["--from-folder", str(images), *camera_option, "--compressed", "--output", str(jpeg)]
    ):
        raise SystemExit("The jpeg bag could not be made.")
    if find_spec("av") is None:
        return [raw, jpeg, images]
    if not video.exists():
        _write_video(video, [frame.image for frame in shown])
    return [raw, jpeg, images, video]


def _write_video(path: Path, images: Sequence[np.ndarray]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.height, stream.width = images[0].shape[:2]
        stream.bit_rate = 8_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decode_bare(path: Path) -> int:
    """Decode every image of a recording to RGB and do nothing with it; gives their number."""
    if path.suffix in VIDEO_SUFFIXES:
        import av

        with closing(av.open(str(path))) as container:
            container.streams.video[0].thread_type = "AUTO"
            return sum(1 for picture in container.decode(video=0) if picture.to_ndarray(format="rgb24") is not None)
    if path.is_dir() and not (path / "metadata.yaml").exists():
        files = files_with(find_image_folder(path, suffixes=PICTURE_SUFFIXES), PICTURE_SUFFIXES)
        for file in files:
            cv2.cvtColor(cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return len(files)
    with open_bag(path) as bag:
        return sum(1 for _ in read_frames(bag, choose_topics(bag, SourceOptions()), fov_degrees=80.0))


def reading_figures(path: Path, size: tuple[int, int] | None, repeats: int, scratch: Path) -> dict[str, float]:
    """Images per second of bare decoding and of preparing: without cache, into a new one, from it.

    Also the milliseconds of the processor that each takes per image.
    """

    def prepared(cache: PreparedCache | None) -> PreparedData:
        return prepare_clips([path], size, PrepareOptions(fov_degrees=80.0), cache=cache)

    def into_a_new_cache() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        prepared(PreparedCache(scratch, lambda text: None))

    images = decode_bare(path)
    times = {
        "bare decode": seconds(lambda: decode_bare(path), repeats),
        "without cache": seconds(lambda: prepared(None), repeats),
        "new cache": seconds(into_a_new_cache, repeats),
        "from the cache": seconds(lambda: prepared(PreparedCache(scratch, lambda text: None)), repeats),
    }
    rates = {name: images / clock for name, (clock, _) in times.items()}
    return {"images": images} | rates | {f"{name}, ms": 1e3 * cpu / images for name, (_, cpu) in times.items()}


def sampler_rate(clips: Sequence[Clip], batch_size: int, repeats: int) -> float:
    """Triplets per second that the sampler draws and assembles."""
    sampler = TripletSampler(clips, (-1, 1), batch_size, 0)
    taken, _ = seconds(lambda: [sampler.next(2) for _ in range(_BATCHES)], repeats)
    return _BATCHES * batch_size / taken


def training_figures(clips: Sequence[Clip], preset: str, device: str, steps: int, ahead: int) -> dict[str, float]:
    """Triplets per second of a training, and the share of its time that it waits for batches."""
    ends = str(10**9)
    settings = {"steps": str(3 * steps), "log_every": str(steps), "validate_every": ends, "checkpoint_every": ends}
    config = load_config(preset, [], settings | {"device": device})
    config = config.model_copy(update={"stages": config.stages[-1:]})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(trainer, "batches_ahead", return_value=ahead):
        trainer.train(config, clips, [], Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    # The first line has the start of everything in it.
    return {name: float(np.mean([line[name] for line in lines[1:]])) for name in ("triplets_per_s", "data_wait_share")}


def main() -> int:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path("out/loader"))
    parser.add_argument("--frames", type=int, default=60, help="of the recordings that are made")
    parser.add_argument(
        "--recorded-size", type=image_size, default=(640, 192), metavar="WxH", help="of the images that are made"
    )
    parser.add_argument("--preset", default="cpu-small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of training between two lines of its log")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    width, height = arguments.recorded_size
    recordings = arguments.recordings or make_recordings(arguments.output, arguments.frames, width, height)
    config = load_config(arguments.preset, [], {})
    scratch = arguments.output / "cache"
    figures: dict[str, dict[str, float]] = {}
    table = Table("recording", "images", "bare decode", "without cache", "new cache", "from the cache")
    for path in recordings:
        found = reading_figures(path, None, arguments.repeats, scratch)
        figures[str(path)] = found
        names = ("bare decode", "without cache", "new cache", "from the cache")
        cells = (f"{found[name]:.0f} ({found[f'{name}, ms']:.2f})" for name in names)
        table.add_row(path.name, f"{found['images']}", *cells)
    console = Console()
    console.print(table)
    console.print("images per second (milliseconds of the processor per image)")

    options = PrepareOptions(fov_degrees=80.0)
    data = prepare_clips(recordings[:1], None, options)
    cached = prepare_clips(recordings[:1], data.size, options, cache=PreparedCache(scratch, lambda text: None))
    batch = config.batch_size
    rates = {
        "in memory": sampler_rate(data.train, batch, arguments.repeats),
        "from the cache": sampler_rate(cached.train, batch, arguments.repeats),
    }
    training = {
        f"{ahead} ahead": training_figures(cached.train, arguments.preset, arguments.device, arguments.steps, ahead)
        for ahead in (0, AHEAD_ON_GPU)
    }
    table = Table("sampler", "triplets per second")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}")
    console.print(table)
    table = Table("training, batches drawn", "triplets per second", "waiting for data")
    for name, values in training.items():
        share = f"{100 * values['data_wait_share']:.2f} %"
        table.add_row(name, f"{values['triplets_per_s']:.2f}", share)
    console.print(table)
    facts = {"device": arguments.device, "threads": arguments.threads, "preset": arguments.preset, "size": data.size}
    content = facts | {"images_per_s": figures, "sampler_triplets_per_s": rates, "training": training}
    (arguments.output / "loader.json").write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
