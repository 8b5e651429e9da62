"""A rosbag2 recording as a source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from coopnet_core.data.bag import Bag, CameraTopics, decode_message, find_camera, open_bag, read_frames
from coopnet_core.data.bag_files import recorded_files
from coopnet_core.data.frames import Frame
from coopnet_core.data.image_files import absolute
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.cameras import CameraChooser
from coopnet_core.data.sources.decoding import Decoding
from coopnet_core.data.sources.interface import SourceOptions, describe_file, describe_nothing_usable, uncalibrated
from coopnet_core.errors import CoopnetError


class BagSource:
    """One camera of a bag as a `Source`."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Open the bag and find the camera.

        Raises:
            UsageError, NoUsableDataError: from `open_bag` and `find_camera`.
        """
        self._bag = open_bag(path)
        try:
            topics = choose_topics(self._bag, options)
        except CoopnetError:
            self._bag.close()
            raise
        self._topics, self._options = topics, options
        self.name, self.label, self.kind = absolute(path).name, f"Bag {path}", "rosbag2"
        self.camera = topics.image
        self.why = f"camera topic {topics.image} with {topics.info or 'no CameraInfo'}: {topics.why}"
        found = f"{topics.info} says K[0] = 0, which means uncalibrated" if topics.info else "there is no CameraInfo"
        self.uncalibrated = uncalibrated(
            self.label,
            topics.image,
            f"{found}; a sensor_msgs/CameraInfo with the focal length was expected: name its topic with --camera-info",
        )
        self.count = self._bag.topics[topics.image].count
        self.report = ReadReport()
        self.decoding = Decoding()
        self._cameras = CameraChooser(options, self.report)

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        chosen = (self._bag, self._topics, self.report, None, self._options.frames, self._decode)
        for frame in read_frames(*chosen):
            if frame.camera is None:
                height, width = frame.image.shape[:2]
                yield replace(frame, camera=self._cameras.camera(None, width, height))
            else:
                yield frame
        self.report.unread = self._bag.problems

    def _decode(self, data: bytes, msgtype: str) -> tuple[np.ndarray, str]:
        """See `decode_message`."""
        frame_id = ""

        def decode() -> np.ndarray:
            nonlocal frame_id
            image, frame_id = decode_message(data, msgtype)
            return image

        return self.decoding(decode), frame_id

    def identity(self) -> list[str]:
        """See `Source.identity`."""
        return [describe_file(file) for file in recorded_files(self._bag.path)]

    def close(self) -> None:
        """Release the files."""
        self._bag.close()


def choose_topics(bag: Bag, options: SourceOptions) -> CameraTopics:
    """The camera of a bag: the first of the topics the user named that it has, else the one it has.

    Raises:
        UsageError, NoUsableDataError: from `find_camera`.
    """
    named = [topic for topic in options.topics if topic in bag.topics or f"/{topic}" in bag.topics]
    return find_camera(bag, named[0] if named else next(iter(options.topics), None), options.info)


def expected_images(bag: Bag, topics: CameraTopics, options: SourceOptions) -> int:
    """How many images of a camera the options select."""
    return options.selected(bag.topics[topics.image].count)


def nothing_usable(bag: Bag, topics: CameraTopics, report: ReadReport, options: SourceOptions) -> str:
    """The message for a bag whose images all had to be skipped."""
    read = replace(report, unread=bag.problems)
    return describe_nothing_usable(f"Bag {bag.path}", topics.image, bag.topics[topics.image].count, read, options)
