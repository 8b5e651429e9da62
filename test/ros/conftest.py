"""ROS for the tests of the node: the image profile of Fast DDS, a domain per module, a rig per test."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("rclpy") is None:  # a machine without ROS: nothing here can be collected
    collect_ignore_glob = ["test_*.py"]

PROFILE = Path(__file__).resolve().parents[2] / "config" / "fastdds_image_profile.xml"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
    os.environ.setdefault(variable, str(PROFILE))


@pytest.fixture(scope="module")
def ros():
    """rclpy in a domain of this module, so that parallel runs do not hear each other."""
    import rclpy
    from ros.rig import open_context
    from ros_domain import own_domain

    with own_domain() as domain:
        open_context(domain)
        yield domain
        rclpy.try_shutdown()


@pytest.fixture
def make_rig(ros):
    """Opens rigs and closes them after the test."""
    from ros.rig import Rig

    rigs = []

    def make(*args, **kwargs):
        rigs.append(Rig(*args, **kwargs))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def warnings(monkeypatch):
    """What the node warned, in order."""
    from coopnet_ros import notifier

    texts = []
    original = notifier.Notifier.__init__

    def spying(self, say, *args, **kwargs):
        original(self, lambda text: (texts.append(text), say(text)), *args, **kwargs)

    monkeypatch.setattr(notifier.Notifier, "__init__", spying)
    return texts
