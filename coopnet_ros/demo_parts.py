"""Which part of a recording the demo trains on, and which it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coopnet_core.data.bag import CameraTopics, find_camera, open_bag
from coopnet_core.errors import NoUsableDataError

FEWEST_IMAGES = 20
_LONGEST_TRAINING = 600
_LONGEST_LIVE = 150


@dataclass(frozen=True)
class Split:
    """Which images of the bag train, and which are replayed and evaluated.

    Attributes:
        topics: of the camera.
        train: first image and the one to stop before.
        test: the same, for what training never sees.
        start_s: when the test part begins, seconds after the first message of the camera's topics.
        end_s: when it ends (exclusive).
        fps: images per second.
    """

    topics: CameraTopics
    train: tuple[int, int]
    test: tuple[int, int]
    start_s: float
    end_s: float
    fps: float


def split_bag(path: Path, topic: str | None, info: str | None, share: float) -> Split:
    """Split the images of a bag by time: the first part trains, the rest tests; long recordings are cut short.

    Args:
        path: bag folder or file.
        topic: image topic, None for the only camera.
        info: CameraInfo topic, None for the one beside the image topic.
        share: of the images that train.

    Raises:
        UsageError: the camera cannot be chosen.
        NoUsableDataError: too few images, or no CameraInfo.
    """
    with open_bag(path) as bag:
        topics = find_camera(bag, topic, info)
        if topics.info is None:
            raise NoUsableDataError(
                f"{path} has no CameraInfo for {topics.image}; the live node needs one. Record the camera's "
                "camera_info as well, or name its topic with --camera-info."
            )
        times = [(message.topic, message.bag_ns) for message in bag.messages([topics.image, topics.info])]
    images = [ns for name, ns in times if name == topics.image]
    if len(images) < FEWEST_IMAGES:
        raise NoUsableDataError(f"{path} has {len(images)} images on {topics.image}: at least {FEWEST_IMAGES} needed.")
    cut = int(share * len(images))
    stop = min(len(images), cut + _LONGEST_LIVE)
    first_ns, period_ns = times[0][1], (images[-1] - images[0]) / (len(images) - 1)
    if period_ns <= 0:
        raise NoUsableDataError(f"All images of {path} were recorded at the same time: it cannot be replayed.")
    return Split(
        topics=topics,
        train=(max(0, cut - _LONGEST_TRAINING), cut),
        test=(cut, stop),
        # A tenth of a period early: CameraInfo may have been written just before its image.
        start_s=max(0.0, (images[cut] - first_ns - 0.1 * period_ns) * 1e-9),
        end_s=(images[stop - 1] - first_ns + 0.5 * period_ns) * 1e-9,
        fps=1e9 / period_ns,
    )
