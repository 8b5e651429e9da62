"""The node's real topics and services are those of `coopnet_ros.interface`, as another participant sees them."""

from __future__ import annotations

import pytest
from ros.rig import TYPES

from coopnet_ros.interface import COMPUTED_TOPICS, SERVICES, TOPICS, topic_type

OF_EVERY_NODE = {"/rosout", "/parameter_events", "/clock", "/tf", "/tf_static", "/coopnet/transition_event"}


def resolved(name: str) -> str:
    return f"/coopnet/{name[2:]}" if name.startswith("~/") else "/" + name.lstrip("/")


def declared(direction: str, *conditions: str) -> dict[str, list[str]]:
    """The topics of the table that are there under these conditions, with their types."""
    return {
        resolved(spec.name): [spec.type_name]
        for spec in TOPICS
        if spec.direction == direction and spec.condition in ("", *conditions)
    }


def seen(pairs: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
    return {name: types for name, types in pairs if name not in OF_EVERY_NODE}


@pytest.mark.parametrize(("transport", "source"), [("raw", "none"), ("compressed", "odometry")])
def test_the_topics(make_rig, transport, source):
    rig = make_rig(image_transport=transport, scale_source=source)
    node = ("coopnet", "/")
    outputs, inputs = declared("out"), declared("in", f"image_transport: {transport}", f"scale_source: {source}")

    def ours() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        publishers = seen(rig.peer.get_publisher_names_and_types_by_node(*node))
        return publishers, seen(rig.peer.get_subscriber_names_and_types_by_node(*node))

    # What an earlier node of this name had is still known for a moment.
    rig.wait(lambda: ours() == (outputs, inputs), f"publishers {outputs} and subscribers {inputs}")


def test_the_services(make_rig):
    rig = make_rig()
    expected = {resolved(spec.name): [spec.type_name] for spec in SERVICES}

    def ours() -> dict[str, list[str]]:
        pairs = rig.peer.get_service_names_and_types_by_node("coopnet", "/")
        of_every_node = ("rcl_interfaces/", "lifecycle_msgs/", "type_description_interfaces/")
        return {name: types for name, types in pairs if not types[0].startswith(of_every_node)}

    rig.wait(lambda: ours() == expected, "the services")
    assert ours() == expected


def test_the_tests_of_values_know_every_output():
    assert {spec.name[2:]: topic_type(spec.name) for spec in COMPUTED_TOPICS} == TYPES
