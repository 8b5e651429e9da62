"""The pages of a training and of the demo, opened in a real browser."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from unit.browser import BROWSER, NO_BROWSER, look_at
from unit.tiny_run import tiny_clip, tiny_config

from coopnet_core.cotraining.trainer import train
from coopnet_core.cotraining.training_report import write_training_report
from coopnet_core.data.clips import PreparedData, SourceSummary
from coopnet_core.data.report import ReadReport
from coopnet_core.evaluation.reports import Picture, Section, write_report
from coopnet_ros.demo_report import DemoFacts, write_demo_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with its report; all words that come from users are long and full of signs."""
    output = tmp_path_factory.mktemp("a_run_with_a_long_name_" * 3)
    clips, name = [tiny_clip()], "a<b>&" + "x" * 120
    train(tiny_config(), clips, [tiny_clip(seed=1)], output)
    source = SourceSummary(name, "rosbag2", "/camera/" + "image" * 20, "why " + "y" * 100, ReadReport())
    write_training_report(output, PreparedData(clips, [tiny_clip(seed=1)], (64, 64), [source], ["broken: " + name]))
    return output


@pytest.fixture(scope="module")
def demo(run: Path, tmp_path_factory) -> Path:
    """The page of a demo that trained, evaluated and received something."""
    output = tmp_path_factory.mktemp("demo")
    after, live = output / "evaluation" / "after", output / "live"
    after.mkdir(parents=True)
    cv2.imwrite(str(after / "panel_00001.png"), np.random.default_rng(0).integers(0, 255, (400, 1280, 3), np.uint8))
    (live / "frames").mkdir(parents=True)
    picture = np.full((32, 64, 3), 90, np.uint8)
    for index in range(2):
        arrays = {"depth": np.full((32, 64), 5.0, np.float32), "flow_color": picture, "mask": picture[..., 0]}
        np.savez(live / "frames" / f"{index}.npz", **arrays)
    topic = {"type": "sensor_msgs/msg/Image", "encoding": "32FC1", "count": 2, "width": 64, "height": 32}
    topic |= {"frame_id": "camera_optical_frame", "rate_hz": 10.0}
    summary = {"topics": {"/a/long/namespace/coopnet/depth/image": topic}, "frames": 2, "diagnostics": {"a": "b"}}
    (live / "summary.json").write_text(json.dumps(summary))
    write_demo_report(output, DemoFacts(run=run, evaluations={"after": after}, live=live, seconds={"train": 3.0}))
    return output


@pytest.mark.parametrize("page", ["run", "demo"])
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1100, True)])
def test_a_page_is_shown_whole_on_a_phone_and_in_the_dark(page, width, dark, tmp_path, request):
    seen = look_at(request.getfixturevalue(page) / "report.html", tmp_path, width, dark)
    assert seen.complaints == seen.fetched == []
    assert seen.width == width
    assert seen.needed == seen.room
    assert len(seen.pictures) >= (15 if page == "run" else 4)
    for caption, own_width, shown_width in seen.pictures:
        assert own_width > 0, caption
        assert 100 < shown_width <= width, caption
        assert len(caption) > 4
    assert len(seen.headings) == len(set(seen.headings)) >= 4
    assert seen.paper == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    """The check itself: a broken picture, something wide, something from the network."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = write_report(tmp_path / "r.html", "T", [Section("P", pictures=[Picture(tmp_path / "broken.png", "broken")])])
    page.write_text(page.read_text() + '<img src="http://example.com/a.png"><div style="width:900px">wide</div>')
    page.write_text(page.read_text() + "<script>throw new Error('a broken script')</script>")
    seen = look_at(page, tmp_path / "browser")
    assert [picture[1] for picture in seen.pictures] == [0, 0]
    assert seen.needed > seen.room
    assert seen.fetched == ["http://example.com/a.png"]
    assert any("a broken script" in line for line in seen.complaints)
