"""Which topics of a recording are the camera."""

from __future__ import annotations

from dataclasses import dataclass

from coopnet_core.data.bag_files import Bag, BrokenMessageError, deserialize, list_topics
from coopnet_core.data.bag_storage import TopicInfo
from coopnet_core.errors import NoUsableDataError, UsageError

IMAGE_TYPE, COMPRESSED_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"

_DEPTH_ENCODINGS = ("16UC1", "32FC1", "32FC2", "64FC1")


@dataclass(frozen=True)
class CameraTopics:
    """The topics of one camera.

    Attributes:
        image: Image or CompressedImage.
        info: CameraInfo, or None when the bag has none for this image.
        msgtype: the type of `image`.
        why: how the choice was made, for people.
    """

    image: str
    info: str | None
    msgtype: str
    why: str = ""

    @property
    def compressed(self) -> bool:
        """Whether the images are JPEG or PNG."""
        return self.msgtype == COMPRESSED_TYPE

    @property
    def rectified(self) -> bool:
        """Whether the name says that distortion is already undone (then CameraInfo.p holds, not k and d)."""
        return "rect" in _base_name(self.image, self.msgtype).rsplit("/", 1)[-1]


def find_camera(bag: Bag, topic: str | None = None, info: str | None = None) -> CameraTopics:
    """The image topic to use and the CameraInfo that belongs to it.

    Without `topic`: the only image topic that is no depth, flow (nor their colours) or truth; one with CameraInfo
    beside it goes before one without, raw before compressed.

    Args:
        bag: an open bag.
        topic: image topic chosen by the user.
        info: CameraInfo topic chosen by the user.

    Raises:
        UsageError: `topic` or `info` is not there, or several cameras are; lists the choices.
        NoUsableDataError: there is no image at all; lists what is there.
    """
    if topic is not None:
        image = _named_topic(bag, topic, (IMAGE_TYPE, COMPRESSED_TYPE), "--topic")
        return CameraTopics(image.name, _info_for(bag, image, info, True), image.msgtype, "chosen by the user")
    choices = camera_choices(bag, info)
    if len(choices) > 1:
        listed = "\n".join(
            f"  --topic {choice.image}  ({choice.msgtype}, {bag.topics[choice.image].count} messages)"
            for choice in choices
        )
        raise UsageError(
            f"Bag {bag.path} has {len(choices)} image topics that may be the camera; choose one:\n{listed}"
        )
    return choices[0]


def camera_choices(bag: Bag, info: str | None = None) -> list[CameraTopics]:
    """What `find_camera` chooses from when no topic is named: one, or several that may all be the camera.

    Args:
        bag: an open bag.
        info: CameraInfo topic chosen by the user.

    Raises:
        UsageError: `info` is not there.
        NoUsableDataError: there is no image at all; lists what is there.
    """
    candidates = [image for image in image_topics(bag) if not _is_no_picture(bag, image)]
    if not candidates:
        raise NoUsableDataError(
            f"Bag {bag.path} has no camera topic: {IMAGE_TYPE} or {COMPRESSED_TYPE} with pictures was expected. "
            f"It has:\n{list_topics(bag)}"
        )
    only = len(candidates) == 1
    calibrated = [image for image in candidates if _info_for(bag, image, info, only)]
    chosen = _one_per_camera(calibrated or candidates)
    why = "the only camera topic" if only else f"of {len(candidates)} image topics the one to use"
    if not only:
        why += " (calibrated, raw before compressed)" if calibrated else " (raw before compressed)"
    return [CameraTopics(image.name, _info_for(bag, image, info, only), image.msgtype, why) for image in chosen]


def image_topics(bag: Bag) -> list[TopicInfo]:
    """All topics of images with messages."""
    return sorted(bag.of_type(IMAGE_TYPE) + bag.of_type(COMPRESSED_TYPE), key=lambda info: info.name)


def _named_topic(bag: Bag, name: str, msgtypes: tuple[str, ...], option: str) -> TopicInfo:
    """The topic the user named, with or without the leading slash.

    Raises:
        UsageError: not there, or of another type.
    """
    found = bag.topics.get(name) or bag.topics.get(f"/{name}")
    if found is None or found.msgtype not in msgtypes or not found.count:
        state = f"is {found.msgtype} with {found.count} messages" if found else "not recorded"
        raise UsageError(
            f"{option} {name}: {state} (bag {bag.path}); a topic of {' or '.join(msgtypes)} was expected. There are:\n"
            f"{list_topics(bag, msgtypes)}"
        )
    return found


def _info_for(bag: Bag, image: TopicInfo, chosen: str | None, only_image: bool) -> str | None:
    """The CameraInfo topic of an image topic: beside it, or the only one when there is one camera only."""
    if chosen is not None:
        return _named_topic(bag, chosen, (CAMERA_INFO_TYPE,), "--camera-info").name
    infos = [info.name for info in bag.of_type(CAMERA_INFO_TYPE)]
    base = _base_name(image.name, image.msgtype)
    for name in (f"{base.rsplit('/', 1)[0]}/camera_info", f"{base}/camera_info"):
        if name in infos:
            return name
    return infos[0] if only_image and len(infos) == 1 else None


def _base_name(name: str, msgtype: str) -> str:
    """The topic without the suffix that a transport adds."""
    return name.rsplit("/", 1)[0] if msgtype == COMPRESSED_TYPE and name.count("/") > 1 else name


def _one_per_camera(images: list[TopicInfo]) -> list[TopicInfo]:
    """Leave out compressed twins of raw topics."""
    raw = {image.name for image in images if image.msgtype == IMAGE_TYPE}
    return [image for image in images if image.name in raw or _base_name(image.name, image.msgtype) not in raw]


def _is_no_picture(bag: Bag, image: TopicInfo) -> bool:
    """Whether a topic of images holds truth, depth or flow: by its name or by its first message.

    Nor is a coloured depth or flow beside it a picture (X/color and X/image, as this project publishes them).
    """
    if image.name.startswith("/ground_truth/") or image.name.endswith("/compressedDepth"):
        return True
    if image.name.endswith("/color"):
        shown = bag.topics.get(image.name.removesuffix("color") + "image")
        if shown is not None and _is_no_picture(bag, shown):
            return True
    first = next(bag.messages({image.name}), None)
    if first is None or image.msgtype != IMAGE_TYPE:
        return False
    try:
        return deserialize(IMAGE_TYPE, first.data).encoding in _DEPTH_ENCODINGS
    except BrokenMessageError:
        return False
