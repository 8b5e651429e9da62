"""Rendered street clips with exact truth: depth, camera poses, flow, moving pixels and occlusion.

The images are ray-cast on the CPU from textured planes and boxes (no OpenGL), deterministic by seed. The truth is
computed from the same planes along the rays through the pixel centres, so it has no raster or interpolation error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from coopnet_core.data.frames import Clip, Frame, FrameTruth
from coopnet_core.data.rendered_objects import light_of
from coopnet_core.data.rendered_raster import Quads, View, cast_grid, hidden, ray_axes, view
from coopnet_core.data.rendered_scene import STATIC, Mover, Plan, build_street
from coopnet_core.data.rendered_textures import GROUND_TEXELS_PER_METRE, TEXELS_PER_METRE
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

FRAME_ID = "camera_optical_frame"
_GROUND_FACE = 0
_STREET_HALF = 10.2
_SIDE_STREET_HALF = 3.6


@dataclass(frozen=True)
class SceneConfig:
    """One rendered clip.

    Attributes:
        seed: everything random follows from it.
        frames: number of images.
        camera: an undistorted camera.
        fps: images per second.
        movers: wanted share of moving pixels over the clip (0 none, 0.3 a lot; reached approximately, as far as
            objects fit without colliding); None lets the seed choose, from none to 0.3.
        supersampling: rays per pixel and axis.
        camera_moves: False for a standing camera; None lets the seed choose (one clip in eight stands).
        speed_range: of the camera, m/s.
        noise: standard deviation of the sensor noise, grey levels; None lets the seed choose, up to 2.
        start_ns: stamp of the first frame.
    """

    seed: int
    frames: int
    camera: Camera
    fps: float = 10.0
    movers: float | None = None
    supersampling: int = 2
    camera_moves: bool | None = None
    speed_range: tuple[float, float] = (5.0, 14.0)
    noise: float | None = None
    start_ns: int = 1_000_000_000

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if self.frames < 1 or self.fps <= 0 or self.supersampling < 1:
            raise UsageError(
                f"A rendered clip of {self.frames} frames at {self.fps} Hz with {self.supersampling}x supersampling: "
                "at least 1 frame, a positive rate and at least 1x were expected."
            )
        if self.movers is not None and not 0.0 <= self.movers <= 0.5:
            raise UsageError(f"Share of moving pixels {self.movers}: between 0 and 0.5 was expected.")
        if self.camera.is_distorted:
            raise UsageError("The rendered camera must be undistorted: leave the distortion coefficients empty.")


@dataclass(frozen=True)
class RenderedClip:
    """A clip with all that is true of it.

    Attributes:
        clip: the images.
        truth: per frame; flow and occlusion towards the PREVIOUS frame (frame 0: flow NaN, all occluded).
        flow_to_next: per frame (H, W, 2) float32, towards the next frame (last frame: NaN).
        occluded_to_next: per frame (H, W) bool, not visible in the next frame (last frame: all True).
        kinds: per frame (H, W) uint8: 0 static, 1 moving along the road, 2 moving across it.
    """

    clip: Clip
    truth: tuple[FrameTruth, ...]
    flow_to_next: tuple[np.ndarray, ...]
    occluded_to_next: tuple[np.ndarray, ...]
    kinds: tuple[np.ndarray, ...]


def render_clip(config: SceneConfig) -> RenderedClip:
    """Render a whole clip with the truth in both directions."""
    renderer = _Renderer(config)
    shots = [renderer.shoot(index) for index in range(config.frames)]
    images = np.stack([shot.image for shot in shots])
    stamps = np.array([renderer.stamp_ns(index) for index in range(config.frames)], np.int64)
    truths, flows, occlusions = [], [], []
    for index, shot in enumerate(shots):
        truths.append(renderer.truth(shot, shots[index - 1] if index else None))
        flow, occluded = renderer.towards(shot, shots[index + 1] if index + 1 < len(shots) else None)
        flows.append(flow)
        occlusions.append(occluded)
    moving = np.stack([truth.moving for truth in truths])
    clip = Clip(f"rendered seed {config.seed}", images, stamps, config.camera, moving)
    return RenderedClip(clip, tuple(truths), tuple(flows), tuple(occlusions), tuple(shot.kind for shot in shots))


def iter_rendered(config: SceneConfig) -> Iterator[tuple[Frame, FrameTruth]]:
    """Render frame after frame, with flow and occlusion towards the previous one, holding only two of them."""
    renderer = _Renderer(config)
    previous = None
    for index in range(config.frames):
        shot = renderer.shoot(index)
        frame = Frame(shot.image, renderer.stamp_ns(index), config.camera, FRAME_ID)
        yield frame, renderer.truth(shot, previous)
        previous = shot


def iter_images(
    config: SceneConfig, numbers: Iterable[int], draw: Callable[[Callable[[], np.ndarray]], np.ndarray]
) -> Iterator[Frame]:
    """Render frame after frame without the truth, which takes half of the time.

    Args:
        config: the scene.
        numbers: of the frames.
        draw: given what renders an image, gives the image.
    """
    renderer = _Renderer(config)
    for index in numbers:
        image = draw(lambda index=index: renderer.shoot(index).image)
        yield Frame(image, renderer.stamp_ns(index), config.camera, FRAME_ID)


@dataclass(frozen=True)
class _Shot:
    """One rendered moment. `face` is -1 nowhere: the backdrop closes the scene."""

    index: int
    image: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    owner: np.ndarray
    kind: np.ndarray
    view: View


class _Renderer:
    """The scene of a configuration and its camera."""

    def __init__(self, config: SceneConfig) -> None:
        rng = np.random.default_rng([config.seed, 1])
        movers, moves, self._noise = _drawn_choices(config)
        plan = Plan(config.frames, config.fps, config.camera, movers, moves, config.speed_range)
        street = build_street(rng, plan)
        self._street = replace(street, movers=tuple(_lit(mover) for mover in street.movers))
        self._config = config
        self._gain = np.random.default_rng([config.seed, 2]).uniform(0.8, 1.2)

    def stamp_ns(self, index: int) -> int:
        return self._config.start_ns + round(index * 1e9 / self._config.fps)

    def shoot(self, index: int) -> _Shot:
        """Render the image and the truth of one moment."""
        config, faces = self._config, self._street.faces(index)
        scene = view(faces, self._street.cameras[index], config.camera)
        depth, face = cast_grid(scene, 1)
        owner = faces.owner[face]
        kinds = np.array([mover.kind for mover in self._street.movers] + [STATIC], np.uint8)
        image = self._image(index, scene, faces)
        return _Shot(index, image, depth, face, owner, kinds[owner], scene)

    def truth(self, shot: _Shot, previous: _Shot | None) -> FrameTruth:
        """All truth of a shot, flow and occlusion towards the previous one."""
        flow, occluded = self.towards(shot, previous)
        pose = self._street.cameras[shot.index]
        return FrameTruth(shot.depth, pose, flow, shot.owner >= 0, occluded)

    def towards(self, shot: _Shot, other: _Shot | None) -> tuple[np.ndarray, np.ndarray]:
        """Flow (H, W, 2) to another shot and which points are not visible there."""
        height, width = shot.depth.shape
        if other is None:
            return np.full((height, width, 2), np.nan, np.float32), np.ones((height, width), bool)
        points = self._points_in(shot, other)
        camera = self._config.camera
        depth = points[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = points[:, 0] / depth * camera.fx + camera.cx
            v = points[:, 1] / depth * camera.fy + camera.cy
        grid_v, grid_u = np.mgrid[0:height, 0:width]
        flow = np.stack([u - grid_u.ravel(), v - grid_v.ravel()], axis=1).astype(np.float32)
        # A point that has passed behind the camera has no image there, hence no flow.
        flow[depth <= 0.05] = np.nan
        occluded = hidden(other.view, points, shot.face.ravel())
        return flow.reshape(height, width, 2), occluded.reshape(height, width)

    def _points_in(self, shot: _Shot, other: _Shot) -> np.ndarray:
        """Where the surface points of a shot are at the moment of another, in its camera: (H W, 3) float64."""
        x, y = ray_axes(self._config.camera, 1)
        depth = shot.depth.astype(np.float64)
        rays = np.stack(
            [np.broadcast_to(x, depth.shape), np.broadcast_to(y[:, None], depth.shape), np.ones_like(depth)]
        )
        points = (rays * depth).reshape(3, -1)
        owner = shot.owner.ravel()
        cameras, result = self._street.cameras, np.empty_like(points)
        T_other_world = np.linalg.inv(cameras[other.index])
        for number in np.unique(owner):
            motion = np.eye(4)
            if number >= 0:
                poses = self._street.movers[number].poses
                motion = poses[other.index] @ np.linalg.inv(poses[shot.index])
            T_other_shot = T_other_world @ motion @ cameras[shot.index]
            chosen = owner == number
            result[:, chosen] = T_other_shot[:3, :3] @ points[:, chosen] + T_other_shot[:3, 3:]
        return result.T

    def _image(self, index: int, scene: View, faces: Quads) -> np.ndarray:
        """(H, W, 3) uint8."""
        config, factor = self._config, self._config.supersampling
        _, face = cast_grid(scene, factor)
        colour = self._shade(scene, faces, face)
        height, width = config.camera.height, config.camera.width
        colour = colour.reshape(height, factor, width, factor, 3).mean((1, 3), dtype=np.float32)
        colour *= np.float32(self._gain)
        if self._noise > 0:
            rng = np.random.default_rng([config.seed, 3, index])
            colour += np.float32(self._noise) * rng.standard_normal(colour.shape, dtype=np.float32)
        return np.clip(np.rint(colour), 0, 255).astype(np.uint8)

    def _shade(self, scene: View, faces: Quads, face: np.ndarray) -> np.ndarray:
        """Colours (H s, W s, 3) float32 of the faces hit."""
        camera, factor = scene.camera, self._config.supersampling
        x, y = ray_axes(camera, factor)
        q = face.ravel()
        steps = (1.0 / (camera.fx * factor), 1.0 / (camera.fy * factor))
        gx = np.broadcast_to(x.astype(np.float32), face.shape).ravel()
        gy = np.broadcast_to(y.astype(np.float32)[:, None], face.shape).ravel()
        # Only the few faces that are hit are converted; np.unique would sort all samples.
        used = np.flatnonzero(np.bincount(q, minlength=len(faces)))
        rank = np.zeros(len(faces), np.int64)
        rank[used] = np.arange(len(used))
        q = rank[q]
        n = scene.n[used]
        inverse = np.float32(1.0) / _dot(n, q, gx, gy)
        coordinates, footprints = [], []
        for rows in (scene.a[used], scene.b[used]):
            position = _dot(rows, q, gx, gy) * inverse
            change = [
                (rows[:, axis].astype(np.float32)[q] - position * n[:, axis].astype(np.float32)[q])
                * (inverse * np.float32(step))
                for axis, step in enumerate(steps)
            ]
            coordinates.append(position)
            footprints.append(change)
        texture = faces.texture[used][q]
        texel = [
            coordinates[axis] * faces.scale[used, axis].astype(np.float32)[q]
            + faces.offset[used, axis].astype(np.float32)[q]
            for axis in (0, 1)
        ]
        size = [
            np.maximum(np.abs(footprints[axis][0]), np.abs(footprints[axis][1]))
            * faces.scale[used, axis].astype(np.float32)[q]
            for axis in (0, 1)
        ]
        ground = np.flatnonzero(used[q] == _GROUND_FACE)
        if len(ground):
            self._lay_ground(faces, ground, coordinates, footprints, texture, texel, size)
        colour = self._street.atlas.sample(texture, texel[0], texel[1], size[0], size[1])
        colour *= faces.light[used].astype(np.float32)[q][:, None]
        return colour.reshape(*face.shape, 3)

    def _lay_ground(
        self,
        faces: Quads,
        ground: np.ndarray,
        coordinates: list[np.ndarray],
        footprints: list[list[np.ndarray]],
        texture: np.ndarray,
        texel: list[np.ndarray],
        size: list[np.ndarray],
    ) -> None:
        """Replace texture, texels and footprints of the ground's samples by those of the bent road."""
        street, materials = self._street, self._street.materials
        x = coordinates[0][ground] + np.float32(faces.origin[_GROUND_FACE, 0])
        z = coordinates[1][ground] + np.float32(faces.origin[_GROUND_FACE, 2])
        along, across, heading = street.ground.lookup(x, z).T
        sine, cosine = np.sin(heading), np.cos(heading)
        dx, dz = ([step[ground] for step in steps] for steps in footprints)
        wide = np.maximum(*(np.abs(a * cosine - b * sine) for a, b in zip(dx, dz, strict=True)))
        long = np.maximum(*(np.abs(a * sine + b * cosine) for a, b in zip(dx, dz, strict=True)))
        inner = np.abs(across) < _STREET_HALF
        kind = np.where(inner, materials.ground, materials.verge)
        for crossing in street.side_streets:
            paved = (np.abs(along - crossing) < _SIDE_STREET_HALF) & (np.abs(across) > street.road_half - 0.1)
            kind[paved] = materials.asphalt
        scale = np.where(kind == materials.ground, GROUND_TEXELS_PER_METRE, TEXELS_PER_METRE).astype(np.float32)
        texture[ground] = kind
        texel[0][ground] = (across + np.float32(10.24)) * scale
        texel[1][ground] = along * scale
        size[0][ground], size[1][ground] = wide * scale, long * scale


def _dot(rows: np.ndarray, q: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot product of rows[q] with (x, y, 1), float32."""
    rows = rows.astype(np.float32)
    return rows[q, 0] * x + rows[q, 1] * y + rows[q, 2]


def _lit(mover: Mover) -> Mover:
    """The mover with its faces lit for the way it stands in the first frame (constant brightness over the clip)."""
    quads = mover.thing.quads
    normal = np.cross(quads.axis_u, quads.axis_v) @ mover.poses[0][:3, :3].T
    return replace(mover, thing=replace(mover.thing, quads=replace(quads, light=light_of(normal))))


def _drawn_choices(config: SceneConfig) -> tuple[float, bool, float]:
    """Share of movers, whether the camera moves, noise: as configured, or drawn from the seed."""
    rng = np.random.default_rng([config.seed, 0])
    none, share, stands, noise = rng.random() < 0.25, rng.uniform(0.04, 0.3), rng.random() < 0.125, rng.uniform(0, 2)
    movers = (0.0 if none else share) if config.movers is None else config.movers
    moves = (not stands) if config.camera_moves is None else config.camera_moves
    return float(movers), bool(moves), float(noise if config.noise is None else config.noise)
