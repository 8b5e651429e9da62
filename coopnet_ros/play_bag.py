"""The command `play_bag`: replays a recording, for where `ros2 bag play` is not installed."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rosgraph_msgs.msg import Clock

from coopnet_core.data.bag import Bag, list_topics, open_bag
from coopnet_core.data.bag_storage import RawMessage, TopicInfo
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_ros.command import run_guarded
from coopnet_ros.interrupts import interrupted_once
from coopnet_ros.messages import to_time
from coopnet_ros.sequence import NANOSECONDS

_STATIC_TOPICS = ("/tf_static", "/robot_description")
_ACKNOWLEDGE_S = 2
_SETTLE_S = 0.5
"""A best-effort subscriber that a publisher has found may not have found the publisher yet, and misses what is sent
meanwhile: measured on Jazzy and Kilted in one start of twelve, for up to 0.06 s."""
_EXAMPLES = """\
examples:
  everything, as recorded:
      play_bag drive_bag
  seconds 15 to 20 of two topics, half as fast, once the node is there:
      play_bag drive_bag --topics /camera/image_raw /camera/camera_info --start 15 --end 20 --rate 0.5 \\
               --wait-for-subscribers 2
  endlessly, with /clock for nodes that use_sim_time, under other names:
      play_bag drive.mcap --loop --clock --ros-args -r /camera/image_raw:=/front/image

exit codes: 0 done, 2 wrong usage or no subscribers, 3 no usable data, 130 interrupted
"""


@dataclass(frozen=True)
class Replay:
    """What is replayed, and how.

    Attributes:
        start_s: begin of the part, seconds after the first message of the bag.
        end_s: end of the part (exclusive), None for all.
        rate: seconds of recording per second.
        clock_hz: rate of /clock, None for none.
    """

    start_s: float = 0.0
    end_s: float | None = None
    rate: float = 1.0
    clock_hz: float | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        options = _parser().parse_args(remove_ros_args(["play_bag", *arguments])[1:])
        _check(options)
        with interrupted_once():
            return _run(options, arguments, Console())

    try:
        return run_guarded(work, "Interrupted.")
    finally:
        rclpy.try_shutdown()


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="play_bag",
        description="Replay a recording (rosbag2, mcap or sqlite3) on its topics. Messages are sent as recorded, "
        "reliably, so that best-effort and reliable subscribers both receive them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bag", type=Path, metavar="BAG", help="bag folder, .mcap or .db3 file")
    add("--topics", nargs="+", default=[], metavar="TOPIC", help="replay only these (default: all of known type)")
    add("--start", "--from", type=float, default=0.0, metavar="S", help="begin S seconds after the first message")
    add("--end", "--to", type=float, default=None, metavar="S", help="end S seconds after the first message")
    add("--rate", type=float, default=1.0, metavar="R", help="seconds of recording per second (default: %(default)s)")
    add(
        "--loop",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="start again at the end, until interrupted (default: once)",
    )
    add("--clock", nargs="?", type=float, const=40.0, default=None, metavar="HZ", help="publish /clock (default 40 Hz)")
    add(
        "--wait-for-subscribers",
        type=int,
        default=0,
        metavar="N",
        help="begin only when the replayed topics have N subscriptions in all (image and camera_info of one node: 2)",
    )
    add("--wait-timeout", type=float, default=30.0, metavar="S", help="give up waiting after S seconds (default: 30)")
    add("--dry-run", action="store_true", help="say what would be replayed, and end")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers that make no replay.

    Raises:
        UsageError: says which.
    """
    if options.rate <= 0 or (options.clock is not None and options.clock <= 0):
        raise UsageError(f"--rate {options.rate} --clock {options.clock}: positive numbers were expected.")
    if options.start < 0 or (options.end is not None and options.end <= options.start):
        raise UsageError(f"--start {options.start} --end {options.end}: 0 <= start < end was expected, in seconds.")


def _run(options: argparse.Namespace, arguments: list[str], console: Console) -> int:
    with open_bag(options.bag) as bag:
        chosen, skipped = choose_topics(bag, options.topics)
        console.print(_plan(options, chosen, skipped))
        if options.dry_run:
            return 0
        rclpy.init(args=["play_bag", *arguments], signal_handler_options=SignalHandlerOptions.NO)
        node = Node("play_bag")
        player = Player(node, chosen, Replay(options.start, options.end, options.rate, options.clock))
        if options.wait_for_subscribers:
            console.print(f"Waiting for {options.wait_for_subscribers} subscriptions.")
            player.wait_for_subscribers(options.wait_for_subscribers, options.wait_timeout)
        _play(player, bag, options.loop, console)
        for problem in bag.problems:
            console.print(f"[yellow]{escape(problem)}[/]")
        node.destroy_node()
    return 0


def _plan(options: argparse.Namespace, chosen: Sequence[TopicInfo], skipped: Sequence[TopicInfo]) -> Table:
    """What will be replayed, as a table."""
    part = f"{options.start:g} s to {'the end' if options.end is None else f'{options.end:g} s'}"
    table = Table(title=f"{options.bag.name}, {part}, at {options.rate:g} x{', in a loop' if options.loop else ''}")
    for heading in ("topic", "type", "messages", ""):
        table.add_column(heading, overflow="fold")
    for info in chosen:
        table.add_row(info.name, info.msgtype, str(info.count), "")
    for info in skipped:
        table.add_row(info.name, info.msgtype, str(info.count), "skipped: this type is not installed")
    return table


def _play(player: Player, bag: Bag, loop: bool, console: Console) -> None:
    """Replay with a progress bar, once or until interrupted.

    Raises:
        NoUsableDataError: the part holds no message.
    """
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("replaying", total=sum(info.count for info in player.topics))
        while True:
            sent = player.play(bag, lambda passed: progress.update(task, completed=passed))
            if sent == 0:
                raise NoUsableDataError("No message lies between --start and --end. Choose times within the recording.")
            if not loop:
                break
    player.finish()
    console.print(f"Replayed {sent} messages.")


def choose_topics(bag: Bag, names: Sequence[str]) -> tuple[list[TopicInfo], list[TopicInfo]]:
    """The topics that are replayed, and those whose type is not installed here.

    Raises:
        UsageError: a named topic is not in the bag, or its type is not installed.
        NoUsableDataError: no topic is left.
    """
    for name in names:
        if name not in bag.topics:
            raise UsageError(f"{bag.path} has no topic {name}. It has:\n{list_topics(bag)}")
    wanted = [bag.topics[name] for name in (names or sorted(bag.topics))]
    chosen = [info for info in wanted if message_class(info.msgtype) is not None]
    skipped = [info for info in wanted if message_class(info.msgtype) is None]
    if names and skipped:
        raise UsageError(f"{skipped[0].name} is a {skipped[0].msgtype}, a type that is not installed here.")
    if not chosen:
        raise NoUsableDataError(f"{bag.path} has no topic of a type that is installed. It has:\n{list_topics(bag)}")
    return chosen, skipped


def message_class(type_name: str) -> type | None:
    """The class of `package/msg/Name`, None where it is not installed."""
    package, _, name = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name, None)
    except ImportError:
        return None


class Player:
    """Publishes recorded messages as they are, at their times."""

    def __init__(self, node: Node, topics: Sequence[TopicInfo], replay: Replay) -> None:
        """Open the publishers.

        Args:
            node: who publishes.
            topics: what is replayed; every type is installed.
            replay: part and speed.
        """
        self.topics = list(topics)
        self._replay = replay
        self._publishers: dict[str, Publisher] = {
            info.name: node.create_publisher(message_class(info.msgtype), info.name, _offered_qos(info.name))
            for info in topics
        }
        self._clock = node.create_publisher(Clock, "/clock", 10) if replay.clock_hz else None

    def wait_for_subscribers(self, number: int, timeout_s: float) -> None:
        """Wait until the topics have so many subscriptions in all, and then a moment for them to find the topics.

        Raises:
            UsageError: they do not come in time.
        """
        end = time.monotonic() + timeout_s
        while (found := self._subscriptions()) < number:
            if time.monotonic() > end:
                raise UsageError(
                    f"{found} of {number} subscriptions on {', '.join(self._publishers)} after {timeout_s:g} s. Start "
                    "the node first, and check its remappings, ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE."
                )
            time.sleep(0.05)
        time.sleep(_SETTLE_S)

    def _subscriptions(self) -> int:
        return sum(publisher.get_subscription_count() for publisher in self._publishers.values())

    def play(self, bag: Bag, progress: Callable[[int], None] = lambda passed: None) -> int:
        """Replay the part once.

        Args:
            bag: where the messages come from.
            progress: told how many messages of the bag have been passed.

        Returns:
            Number of messages sent.
        """
        sent, began = 0, time.monotonic()
        for passed, offset_ns, message in self._part(bag):
            self._sleep_until(began, max(0, offset_ns), message.bag_ns)
            self._publishers[message.topic].publish(bytes(message.data))
            sent += 1
            progress(passed)
        return sent

    def finish(self) -> None:
        """Wait a little for the reliable subscribers that have not acknowledged yet."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=_ACKNOWLEDGE_S))

    def _part(self, bag: Bag) -> Iterator[tuple[int, int, RawMessage]]:
        """(messages passed, nanoseconds after the start of the part, message) within the part.

        Static topics before the part belong to it: a subscriber would have them.
        """
        first_ns = None
        start_ns = round(self._replay.start_s * NANOSECONDS)
        end_ns = None if self._replay.end_s is None else round(self._replay.end_s * NANOSECONDS)
        for passed, message in enumerate(bag.messages(list(self._publishers)), start=1):
            first_ns = message.bag_ns if first_ns is None else first_ns
            since_first = message.bag_ns - first_ns
            if end_ns is not None and since_first >= end_ns:
                return
            if since_first >= start_ns or message.topic in _STATIC_TOPICS:
                yield passed, since_first - start_ns, message

    def _sleep_until(self, began: float, offset_ns: int, bag_ns: int) -> None:
        """Sleep until a message is due; /clock runs on meanwhile."""
        due = began + offset_ns / NANOSECONDS / self._replay.rate
        while True:
            remaining = due - time.monotonic()
            if self._clock is not None:
                now_ns = bag_ns - round(max(0.0, remaining) * self._replay.rate * NANOSECONDS)
                self._clock.publish(Clock(clock=to_time(now_ns)))
            if remaining <= 0:
                return
            time.sleep(min(remaining, 1 / self._replay.clock_hz) if self._replay.clock_hz else remaining)


def _offered_qos(topic: str) -> QoSProfile:
    """Reliable; static topics are kept for subscribers that come later."""
    static = topic in _STATIC_TOPICS
    return QoSProfile(
        depth=100 if static else 10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if static else DurabilityPolicy.VOLATILE,
    )


if __name__ == "__main__":
    sys.exit(main())
