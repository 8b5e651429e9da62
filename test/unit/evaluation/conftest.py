import pytest

from coopnet_core.data.bag_writer import BagWriter
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.geometry.camera import Camera


@pytest.fixture(scope="session")
def truth_bag(tmp_path_factory):
    """A rendered recording of 8 frames, 200x96, with movers and all truth."""
    path = tmp_path_factory.mktemp("evaluation") / "bag"
    camera = Camera.from_field_of_view(200, 96, 80)
    with BagWriter(path) as writer:
        for frame, truth in iter_rendered(SceneConfig(4, 8, camera, movers=0.25, camera_moves=True, supersampling=1)):
            writer.write(frame, truth)
    return path
