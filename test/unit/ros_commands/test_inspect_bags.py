"""The command: what it says, writes, agrees on with the training, and returns."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from unit import bag_factory as make
from unit.bag_factory import IMAGE, IMAGE_TOPIC, recording, stamp, write_bag

from coopnet_ros import train_from_bags
from coopnet_ros.inspect_bags import main

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return write_bag(tmp_path / "drive", recording(30))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def found(tmp_path: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    assert run(*arguments, "--json", tmp_path / "found.json") == code
    return json.loads((tmp_path / "found.json").read_text())


def dry_run(capsys, *arguments: object) -> tuple[int, int, int]:
    """Clips for training, targets and clips for validation as `train_from_bags --dry-run` says."""
    capsys.readouterr()
    assert train_from_bags.main([*map(str, arguments), "--dry-run"]) == 0
    said = capsys.readouterr().out
    numbers = re.search(r"clips +(\d+) for training \((\d+) targets\), (\d+) for validation", said)
    assert numbers is not None
    return tuple(map(int, numbers.groups()))


def counted(content: dict[str, Any]) -> tuple[int, int, int]:
    """The same, from the best camera of each usable bag."""
    bags = [bag for bag in content["bags"] if bag["verdict"]["usable"]]
    best = [max((camera["training"] for camera in bag["cameras"]), key=lambda facts: facts["targets"]) for bag in bags]
    return tuple(sum(facts[key] for facts in best) for key in ("train_clips", "targets", "validation_clips"))


def with_still_and_gap(frames: int = 40) -> list:
    """A camera that stops for a while, with one image that is broken and a pause of 1 s."""
    messages = recording(frames)
    for index in range(10, 15):
        messages[2 * index + 1] = (IMAGE_TOPIC, IMAGE, stamp(index), make.image(make.picture(10), stamp(index)))
    messages[3] = (IMAGE_TOPIC, IMAGE, stamp(1), make.image(make.picture(1), stamp(1), data=np.zeros(9, np.uint8)))
    del messages[50:70]
    return messages


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--validation-share", "0.3"],
        ["--still-threshold", "0", "--gap-factor", "100"],
        ["--frames", "3:21", "--size", "128x64"],
    ],
)
def test_counts_agree_with_the_dry_run_of_the_training(tmp_path: Path, capsys, options: list[str]):
    bags = [write_bag(tmp_path / "one", with_still_and_gap()), write_bag(tmp_path / "two", recording(25, seed=1))]
    content = found(tmp_path, *bags, *options)
    assert counted(content) == dry_run(capsys, *bags, *options)
    assert all(camera["training"]["exact"] for bag in content["bags"] for camera in bag["cameras"])


def test_the_command_it_names_uses_what_it_found(tmp_path: Path, capsys):
    """No calibration in one bag, two cameras in the next, nothing in the third: the counts agree all the same."""
    blind = write_bag(tmp_path / "blind", recording(20, info_topic=None, seed=3))
    both = write_bag(
        tmp_path / "both", [*recording(12), *recording(24, "/rear/image_raw", "/rear/camera_info", seed=2)]
    )
    empty = write_bag(tmp_path / "empty", [])
    content = found(tmp_path, blind, both, empty, "--gap-factor", "3", "--sample", "500")
    words = shlex.split(content["training"]["command"])
    assert words[0] == "train_from_bags"
    assert words[1:3] == [str(blind), str(both)]
    assert "--learn-intrinsics" in words
    assert words[words.index("--gap-factor") + 1] == "3.0"
    assert str(empty) not in words
    assert "--sample" not in words
    call = words[1 : words.index("--init")]
    assert counted(content) == dry_run(capsys, *call)
    assert counted(content)[1] > 0


def test_what_is_said_of_a_good_bag(tmp_path: Path, capsys):
    bag = write_bag(tmp_path / "drive", recording(230))
    assert run(bag, "--sample", 60) == 0
    said = capsys.readouterr().out
    for words in (
        "/camera/image_raw",
        "96x64 rgb8",
        "camera_optical_frame",
        "K fx 80.0 fy 80.0 cx 47.5 cy 31.5",
        "22.9 s at 10.0 Hz",
        "60 of 230 images",
        "\nready\n",
        "the only camera topic",
        "36 MB for the run folder",
        f"command       train_from_bags {bag} --init",
    ):
        assert words in said


def test_all_looks_at_everything_and_no_sample_at_no_more_than_it_says(tmp_path: Path):
    bag = write_bag(tmp_path / "drive", recording(200))
    (camera,) = found(tmp_path, bag, "--all")["bags"][0]["cameras"]
    assert (camera["pictures"]["looked_at"], camera["pictures"]["pairs"]) == (200, 199)
    (camera,) = found(tmp_path, bag)["bags"][0]["cameras"]
    assert (camera["pictures"]["looked_at"], camera["pictures"]["pairs"]) == (200, 150)
    (camera,) = found(tmp_path, bag, "--sample", 20)["bags"][0]["cameras"]
    assert (camera["pictures"]["looked_at"], camera["pictures"]["pairs"]) == (20, 16)


def test_one_broken_bag_never_stops_the_others(tmp_path: Path, capsys, drive: Path):
    damaged = write_bag(tmp_path / "damaged", recording(5))
    file = make.storage_file(damaged)
    file.write_bytes(file.read_bytes()[:600])
    infos = write_bag(tmp_path / "infos", [message for message in recording(3) if message[0] != IMAGE_TOPIC])
    wobbly = recording(5)
    wobbly[0] = (*wobbly[0][:3], make.camera_info(stamp(0), d=np.full(5, 0.1), distortion_model="wobbly"))
    odd = write_bag(tmp_path / "odd", wobbly)
    content = found(tmp_path, damaged, tmp_path / "absent", infos, odd, drive)
    states = [bag["verdict"]["state"] for bag in content["bags"]]
    assert states == [*["not usable"] * 4, "usable, but"]
    assert content["usable"]
    said = " ".join(capsys.readouterr().out.split())
    for words in ("is damaged", "neither a folder nor a file", "no camera topic", "wobbly", "25 targets"):
        assert words in said


def test_exit_codes(tmp_path: Path, capsys, drive: Path):
    absent = tmp_path / "absent"
    empty = write_bag(tmp_path / "empty", [])
    assert run(absent) == 2
    assert run(empty) == run(empty, absent) == 3
    assert run(empty, absent, drive) == 0
    assert run() == 2
    assert run(drive, "--sample", "0") == 2
    assert run(drive, "--all", "--sample", "5") == 2
    assert run(drive, "--topic", "/nonsense") == 3
    (tmp_path / "file").write_text("")
    assert run(drive, "--output", tmp_path / "file") == 2
    assert run(drive, "--json", tmp_path / "no" / "file.json") == 2
    assert "in a folder that exists" in " ".join(capsys.readouterr().err.split())


def test_a_chosen_camera_and_field_of_view(tmp_path: Path, capsys):
    bag = write_bag(
        tmp_path / "both",
        [*recording(12, info_topic=None), *recording(24, "/rear/image_raw", info_topic=None, seed=2)],
    )
    content = found(tmp_path, bag, "--topic", "/rear/image_raw", "--fov", "90", "--frames", "2:")
    (camera,) = content["bags"][0]["cameras"]
    assert camera["topic"] == "/rear/image_raw"
    assert camera["calibration"]["used"][2] == pytest.approx(48)
    assert camera["training"]["usable"] == 22
    kinds = {remark["kind"] for remark in camera["verdict"]["remarks"]}
    assert "not calibrated" not in kinds
    words = shlex.split(content["training"]["command"])
    assert words[words.index("--topic") + 1] == "/rear/image_raw"
    assert words[words.index("--frames") + 1] == "2:"
    assert counted(content) == dry_run(capsys, *words[1 : words.index("--init")])


def test_contact_sheets(tmp_path: Path, drive: Path):
    (tmp_path / "other").mkdir()
    same_name = write_bag(tmp_path / "other" / "drive", recording(10, seed=4))
    both = write_bag(tmp_path / "both", [*recording(5), *recording(5, "/rear/image_raw", "/rear/camera_info")])
    assert run(drive, same_name, both, "--output", tmp_path / "sheets") == 0
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["both_camera_image_raw.png", "both_rear_image_raw.png", "drive.png", "drive_2.png"]
    sheet = cv2.imread(str(tmp_path / "sheets" / "drive.png"))
    assert sheet.shape[1] == 6 * 320
    assert sheet.shape[0] > 4 * 213  # 24 of 30 images in four rows


def keys_of(value: Any, place: str = "") -> set[str]:
    """Every key with its place: "bags[].cameras[].topic"."""
    if isinstance(value, list):
        return set().union(*(keys_of(item, f"{place}[]") for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    names = {f"{place}.{key}".lstrip(".") for key in value}
    return names.union(*(keys_of(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()))


def documented_keys() -> dict[str, set[str]]:
    """Place -> keys, from the table of docs/training.md."""
    text = (REPOSITORY / "docs" / "training.md").read_text()
    table = text.split("<!-- inspect_bags --json -->")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {place.strip(" `").removeprefix("(top)"): set(re.findall(r"`([a-z_]+)`", keys)) for place, keys in rows}


def test_the_keys_of_the_json_are_the_documented_ones(tmp_path: Path):
    content = found(tmp_path, write_bag(tmp_path / "bag", with_still_and_gap()))
    assert content["version"] == 1
    own: dict[str, set[str]] = {}
    for key in keys_of(content):
        place, _, name = key.rpartition(".")
        own.setdefault(place, set()).add(name)
    # Their keys are the reasons.
    for place in ("unusable", "examples"):
        del own[f"bags[].cameras[].{place}"]
    twice = "bags[].cameras[].verdict"
    assert own.pop(twice) == own["bags[].verdict"]
    assert own.pop(f"{twice}.remarks[]") == own["bags[].verdict.remarks[]"]
    assert own == documented_keys()


def test_a_camera_info_of_nonsense_numbers_is_written_as_null(tmp_path: Path):
    messages = recording(5)
    messages[0] = (*messages[0][:3], make.camera_info(stamp(0), k=np.full(9, np.nan)))
    content = found(tmp_path, write_bag(tmp_path / "bag", messages), code=3)
    (camera,) = content["bags"][0]["cameras"]
    assert camera["calibration"]["k"] == [None] * 9
    assert "nan" in camera["problem"]


def test_brackets_are_printed_as_they_are(tmp_path: Path, capsys):
    bag = write_bag(tmp_path / "drive[bold]", recording(10, "/cam[/red]/image_raw", None))
    assert run(bag) == 0
    said = capsys.readouterr().out
    assert "drive[bold]" in said
    assert "/cam[/red]/image_raw" in said


def test_help(capsys):
    assert run("--help") == 0
    said = capsys.readouterr().out
    for words in ("examples:", "exit codes:", "--still-threshold", "--json FILE", "--all"):
        assert words in said


def test_interrupted(drive: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coopnet_ros.inspect_bags.inspect_bag", interrupt)
    assert run(drive) == 130
    assert "--json was not written" in capsys.readouterr().err


def test_real_recordings_are_answered(tmp_path: Path, shared_data, capsys):
    """Malformed, compressed and legacy ones."""
    bags = sorted(shared_data("rosbag2_small").iterdir())
    content = found(tmp_path, *bags, "--output", tmp_path / "sheets", code=3)
    assert len(content["bags"]) == 4
    assert not any(bag["verdict"]["usable"] for bag in content["bags"])
    amber = content["bags"][[bag.name.startswith("amber") for bag in bags].index(True)]
    assert amber["cameras"][0]["training"]["usable"] == 2
    geocam = content["bags"][[bag.name == "geocam_all_types.db3" for bag in bags].index(True)]
    assert [camera["unusable"] for camera in geocam["cameras"]] == [{"malformed image": 2}] * 2
    assert len(geocam["topics"]) == 94
    assert "Traceback" not in capsys.readouterr().out
