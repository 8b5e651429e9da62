"""A random street: the path of the road, what stands beside it, how the camera drives and what else moves.

World frame: x right, y down, z forward along the road at the start, the ground at y = 0, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from coopnet_core.data import rendered_objects as objects
from coopnet_core.data.rendered_objects import Materials, Thing
from coopnet_core.data.rendered_raster import Quads, cast_grid, concatenate, transformed, view
from coopnet_core.data.rendered_textures import Atlas
from coopnet_core.geometry.camera import Camera

STATIC, ALONG, ACROSS = 0, 1, 2
_LANE = 3.5
_MAP_STEP = 1.0
_BEHIND, _AHEAD = 40.0, 130.0
_MEETING_SECONDS = 3.0


@dataclass(frozen=True)
class Path:
    """The middle of the road, sampled along its length; straight beyond both ends.

    Attributes:
        s, x, z, heading: (P,) metres and radians; heading turns from +z towards +x.
    """

    s: np.ndarray
    x: np.ndarray
    z: np.ndarray
    heading: np.ndarray

    def at(self, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World x, z and heading at arc length `s` and lateral offset `d` (right positive)."""
        s, d = np.broadcast_arrays(np.asarray(s, float), np.asarray(d, float))
        heading = np.interp(s, self.s, self.heading)
        beyond = s - np.clip(s, self.s[0], self.s[-1])
        x = np.interp(s, self.s, self.x) + beyond * np.sin(heading) + d * np.cos(heading)
        z = np.interp(s, self.s, self.z) + beyond * np.cos(heading) - d * np.sin(heading)
        return x, z, heading

    def poses(self, s: np.ndarray, d: np.ndarray, turn: np.ndarray | float = 0.0) -> np.ndarray:
        """T_world_object (N, 4, 4) of objects standing on the ground, facing along the road + `turn`."""
        x, z, heading = self.at(s, d)
        return _standing(np.atleast_1d(x), np.atleast_1d(z), np.atleast_1d(heading + turn))


@dataclass(frozen=True)
class GroundMap:
    """Arc length, lateral offset and heading of the road over a grid of the ground.

    Attributes:
        origin: world (x, z) of the first cell.
        values: (rows along z, columns along x, 3) float32: s, d, heading.
    """

    origin: tuple[float, float]
    values: np.ndarray

    def lookup(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Bilinear (N, 3) at world positions; the border's values outside."""
        rows, columns = self.values.shape[:2]
        u = np.clip((x - self.origin[0]) / _MAP_STEP, 0, columns - 1.001)
        v = np.clip((z - self.origin[1]) / _MAP_STEP, 0, rows - 1.001)
        i, j = u.astype(np.int64), v.astype(np.int64)
        fu, fv = (u - i).astype(np.float32)[:, None], (v - j).astype(np.float32)[:, None]
        flat = self.values.reshape(-1, 3)
        index = j * columns + i
        near = flat[index] * (1 - fu) + flat[index + 1] * fu
        far = flat[index + columns] * (1 - fu) + flat[index + columns + 1] * fu
        return near * (1 - fv) + far * fv


@dataclass(frozen=True)
class Mover:
    """An independently moving object.

    Attributes:
        thing: its shape.
        poses: (N, 4, 4) T_world_object at each frame.
        kind: ALONG the road (near the epipolar lines of a driving camera) or ACROSS it.
    """

    thing: Thing
    poses: np.ndarray
    kind: int


@dataclass(frozen=True)
class Street:
    """All of a scene.

    Attributes:
        static: the faces of the static world; face 0 is the ground.
        movers: the moving objects.
        cameras: (N, 4, 4) T_world_camera.
        atlas, materials, ground: what the faces look like.
        side_streets: arc lengths where another street crosses.
        road_half: half the width of the road, metres.
    """

    static: Quads
    movers: tuple[Mover, ...]
    cameras: np.ndarray
    atlas: Atlas
    materials: Materials
    ground: GroundMap
    side_streets: tuple[float, ...]
    road_half: float

    def faces(self, index: int) -> Quads:
        """All faces at frame `index`: the static ones first, then each mover's."""
        return concatenate([self.static, *mover_faces(self.movers, index)])


def mover_faces(movers: tuple[Mover, ...] | list[Mover], index: int) -> list[Quads]:
    """The faces of each mover at frame `index`, in the world."""
    result = []
    for number, mover in enumerate(movers):
        quads = transformed(mover.thing.quads, mover.poses[index])
        result.append(replace(quads, owner=np.full(len(quads), number, np.int64)))
    return result


@dataclass(frozen=True)
class Plan:
    """The choices of a scene.

    Attributes:
        frames, fps: length.
        camera: the camera.
        movers: wanted share of moving pixels, 0 for none.
        camera_moves: whether the camera drives.
        speed_range: m/s.
    """

    frames: int
    fps: float
    camera: Camera
    movers: float
    camera_moves: bool
    speed_range: tuple[float, float]


def build_street(rng: np.random.Generator, plan: Plan) -> Street:
    """Draw a scene."""
    side = 1.0 if rng.random() < 0.7 else -1.0
    parking = bool(rng.random() < 0.6)
    road_half = _LANE + (2.2 if parking else 0.4)
    travel = _travel(rng, plan)
    path = _path(rng, float(travel[-1]))
    cameras = _cameras(rng, plan, path, travel, side * 0.5 * _LANE)
    materials, atlas = objects.make_materials(rng, road_half, _LANE)
    movers, side_streets = _movers(rng, plan, path, travel, side, cameras, materials, road_half)
    static = _static(rng, plan, path, materials, movers, cameras, side_streets, road_half, parking, float(travel[-1]))
    return Street(static, tuple(movers), cameras, atlas, materials, _ground_map(path), side_streets, road_half)


def _standing(x: np.ndarray, z: np.ndarray, heading: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(x), 1, 1))
    sine, cosine = np.sin(heading), np.cos(heading)
    poses[:, 0, 0], poses[:, 0, 2] = cosine, sine
    poses[:, 2, 0], poses[:, 2, 2] = -sine, cosine
    poses[:, 0, 3], poses[:, 2, 3] = x, z
    return poses


def _smooth(rng: np.random.Generator, count: int, fps: float, seconds: float) -> np.ndarray:
    """A smooth random signal of unit amplitude with periods around `seconds`."""
    time = np.arange(count) / fps
    periods = seconds * rng.uniform(0.6, 1.8, 3)
    phases = rng.uniform(0, 2 * np.pi, 3)
    return np.sin(2 * np.pi * time[:, None] / periods + phases).sum(1) / 2.0


def _travel(rng: np.random.Generator, plan: Plan) -> np.ndarray:
    """Arc length of the camera at each frame."""
    if not plan.camera_moves:
        return np.zeros(plan.frames)
    speed = rng.uniform(*plan.speed_range) * (1 + 0.15 * _smooth(rng, plan.frames, plan.fps, 5.0))
    speed = np.clip(speed, *plan.speed_range)
    return np.concatenate([[0.0], np.cumsum(speed[:-1] / plan.fps)])


def _path(rng: np.random.Generator, travel: float) -> Path:
    s = np.arange(-_BEHIND, travel + _AHEAD + 1.0, 1.0)
    curve = np.zeros(len(s))
    if rng.random() < 0.75:
        wavelength, shift = rng.uniform(110, 260), rng.uniform(0, 2 * np.pi)
        # A radius under 35 m would bring the inner row of houses onto the road.
        amplitude = min(rng.uniform(0.15, 0.9), wavelength / (2 * np.pi * 35.0))
        curve = amplitude * np.sin(2 * np.pi * s / wavelength + shift)
    heading = curve - np.interp(0.0, s, curve)
    x = np.concatenate([[0.0], np.cumsum(np.sin(0.5 * (heading[1:] + heading[:-1])))])
    z = np.concatenate([[0.0], np.cumsum(np.cos(0.5 * (heading[1:] + heading[:-1])))])
    return Path(s, x - np.interp(0.0, s, x), z - np.interp(0.0, s, z), heading)


def _cameras(rng: np.random.Generator, plan: Plan, path: Path, travel: np.ndarray, lane: float) -> np.ndarray:
    """T_world_camera: driving in its lane with a little weaving, pitching and rolling."""
    count, fps = plan.frames, plan.fps
    height, pitch0 = rng.uniform(1.2, 2.0), rng.uniform(-0.02, 0.03)
    moves = 1.0 if plan.camera_moves else 0.0
    weave = rng.uniform(0.0, 0.35) * _smooth(rng, count, fps, 6.0) * moves
    yaw = rng.uniform(0.002, 0.02) * _smooth(rng, count, fps, 3.0) * moves
    shake = rng.uniform(0.0005, 0.006)
    pitch = pitch0 + shake * _smooth(rng, count, fps, 0.8) * moves
    roll = 0.7 * shake * _smooth(rng, count, fps, 1.1) * moves
    bounce = rng.uniform(0.0, 0.02) * _smooth(rng, count, fps, 0.9) * moves
    if not plan.camera_moves:
        yaw = yaw + rng.uniform(-0.3, 0.3)
    poses = path.poses(travel, lane + weave, yaw)
    poses[:, 1, 3] = -height + bounce
    poses[:, :3, :3] = poses[:, :3, :3] @ _pitch_roll(pitch, roll)
    return poses


def _pitch_roll(pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    rx = np.tile(np.eye(3), (len(pitch), 1, 1))
    rx[:, 1, 1] = rx[:, 2, 2] = np.cos(pitch)
    rx[:, 1, 2], rx[:, 2, 1] = -np.sin(pitch), np.sin(pitch)
    rz = np.tile(np.eye(3), (len(roll), 1, 1))
    rz[:, 0, 0] = rz[:, 1, 1] = np.cos(roll)
    rz[:, 0, 1], rz[:, 1, 0] = -np.sin(roll), np.sin(roll)
    return rx @ rz


# --- movers -----------------------------------------------------------------------------------------------------


def _movers(
    rng: np.random.Generator,
    plan: Plan,
    path: Path,
    travel: np.ndarray,
    side: float,
    cameras: np.ndarray,
    materials: Materials,
    road_half: float,
) -> tuple[list[Mover], tuple[float, ...]]:
    """Add objects that do not collide until the wanted share of the pixels moves."""
    movers: list[Mover] = []
    crossings: list[float] = []
    if plan.movers <= 0 or plan.frames < 2:
        return movers, ()
    probe = _Probe(plan, cameras)
    for _ in range(40 + plan.frames // 4):
        if probe.share >= plan.movers:
            break
        across = bool(rng.random() < 0.5)
        draw = _draw_across if across else _draw_along
        mover, crossing = draw(rng, plan, path, travel, side, materials, road_half)
        if not _is_clear(mover, movers, cameras) or not probe.accepts(mover, plan.movers):
            continue
        movers.append(mover)
        if crossing is not None:
            crossings.append(crossing)
    return movers, tuple(crossings)


class _Probe:
    """Measures, in small images of a few frames, the share of pixels that the movers cover."""

    def __init__(self, plan: Plan, cameras: np.ndarray) -> None:
        width = 52
        height = max(8, round(width * plan.camera.height / plan.camera.width))
        self._camera = plan.camera.scaled(width, height)
        self._poses = cameras
        self._times = np.unique(np.linspace(0, plan.frames - 1, min(plan.frames, 10 + plan.frames // 12)).astype(int))
        self._covered = np.zeros((len(self._times), height, width), bool)

    @property
    def share(self) -> float:
        """Mean share of the pixels covered so far."""
        return float(self._covered.mean())

    def accepts(self, mover: Mover, wanted: float) -> bool:
        """Take the mover in if it is seen and neither fills the image nor overshoots the wanted share by far."""
        covered = self._covered.copy()
        for row, time in enumerate(self._times):
            scene = view(mover_faces([mover], time)[0], self._poses[time], self._camera)
            covered[row] |= cast_grid(scene)[1] >= 0
        gain = covered.mean() - self.share
        crowded = covered.mean((1, 2)).max() > 0.6
        if gain < 0.1 / covered[0].size or crowded or covered.mean() > 1.35 * wanted + 0.01:
            return False
        self._covered = covered
        return True


def _draw_along(
    rng: np.random.Generator,
    plan: Plan,
    path: Path,
    travel: np.ndarray,
    side: float,
    materials: Materials,
    road_half: float,
) -> tuple[Mover, None]:
    """A vehicle ahead, oncoming or overtaking, or a person walking on the pavement."""
    time = np.arange(plan.frames) / plan.fps
    moment = int(rng.integers(plan.frames))
    role = rng.choice(["lead", "oncoming", "overtaking", "walker"], p=[0.3, 0.35, 0.2, 0.15])
    if role == "lead" and not plan.camera_moves:
        role = "overtaking"
    lane = 0.5 * _LANE * side
    if role == "walker":
        thing = objects.person(rng, materials)
        direction, speed = rng.choice([-1.0, 1.0]), rng.uniform(0.8, 1.8)
        start = travel[moment] + rng.uniform(4, 20)
        d = rng.choice([-1.0, 1.0]) * (road_half + rng.uniform(0.3, 1.2))
        s = start + direction * speed * (time - time[moment])
        turn = 0.0 if direction > 0 else np.pi
        return Mover(thing, path.poses(s, d, turn), ALONG), None
    thing = objects.truck(rng, materials) if rng.random() < 0.3 else objects.car(rng, materials)
    d = lane + rng.uniform(-0.3, 0.3)
    if role == "lead":
        gap = rng.uniform(6.5, 18) + rng.uniform(0.5, 3.0) * _smooth(rng, plan.frames, plan.fps, 4.0)
        # In a long clip the same vehicle would be ahead for ever: it is met once and draws away.
        away = np.maximum(np.abs(time - time[moment]) - _MEETING_SECONDS, 0.0)
        s = travel + thing.half_length + np.maximum(gap, 4.0) + rng.uniform(2.0, 5.0) * away
        return Mover(thing, path.poses(s, d, 0.0), ALONG), None
    d = -lane + rng.uniform(-0.3, 0.3)
    if role == "oncoming":
        s = travel[moment] + rng.uniform(4, 22) - rng.uniform(4, 13) * (time - time[moment])
        return Mover(thing, path.poses(s, d, np.pi), ALONG), None
    mean_speed = (travel[-1] - travel[0]) / max(time[-1], 1e-9)
    s = travel[moment] + rng.uniform(4, 14) + (mean_speed + rng.uniform(1.0, 6.0)) * (time - time[moment])
    return Mover(thing, path.poses(s, d, 0.0), ALONG), None


def _draw_across(
    rng: np.random.Generator,
    plan: Plan,
    path: Path,
    travel: np.ndarray,
    side: float,
    materials: Materials,
    road_half: float,
) -> tuple[Mover, float | None]:
    """A vehicle out of a side street or a person that crosses the road."""
    time = np.arange(plan.frames) / plan.fps
    moment = int(rng.integers(plan.frames))
    direction = rng.choice([-1.0, 1.0])
    vehicle = bool(rng.random() < 0.6)
    if vehicle:
        thing = objects.truck(rng, materials) if rng.random() < 0.35 else objects.car(rng, materials)
        speed, gap = rng.uniform(3.0, 9.0), rng.uniform(6.0, 20.0)
    else:
        thing = objects.person(rng, materials)
        speed, gap = rng.uniform(0.8, 2.4), rng.uniform(3.5, 12.0)
    s_crossing = float(travel[moment] + gap)
    d = side * 0.5 * _LANE + rng.uniform(-3, 3) + direction * speed * (time - time[moment])
    x0, z0, heading = path.at(s_crossing, 0.0)
    x, z = x0 + d * np.cos(heading), z0 - d * np.sin(heading)
    poses = _standing(x, z, np.full(plan.frames, heading + direction * 0.5 * np.pi))
    return Mover(thing, poses, ACROSS), s_crossing if vehicle else None


def _is_clear(mover: Mover, others: list[Mover], cameras: np.ndarray) -> bool:
    """Whether the mover never touches the camera or another mover."""
    for index in range(len(cameras)):
        centres, radius = mover.thing.discs(mover.poses[index])
        if _gap(centres, cameras[index][[0, 2], 3][None]) < radius + 1.3:
            return False
        for other in others:
            theirs, their_radius = other.thing.discs(other.poses[index])
            if _gap(centres, theirs) < radius + their_radius + 0.1:
                return False
    return True


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min())


# --- the static world -------------------------------------------------------------------------------------------


def _static(
    rng: np.random.Generator,
    plan: Plan,
    path: Path,
    materials: Materials,
    movers: list[Mover],
    cameras: np.ndarray,
    side_streets: tuple[float, ...],
    road_half: float,
    parking: bool,
    travel: float,
) -> Quads:
    """Ground, sky, skyline, houses, and everything that stands beside the road clear of what moves."""
    parts = _backdrop(rng, path, materials)
    pavement = rng.uniform(1.8, 5.0)
    density = rng.choice([0.0, 0.5, 0.85, 1.0], p=[0.1, 0.25, 0.35, 0.3])
    for sign in (-1.0, 1.0):
        parts += _houses(rng, path, materials, sign, road_half + pavement, density, side_streets, travel)
    taken = _Taken(movers, cameras)
    for sign in (-1.0, 1.0):
        if parking:
            parts += _row(rng, path, taken, materials, sign * (_LANE + 1.15), (5.5, 16.0), travel, _parked)
        parts += _row(rng, path, taken, materials, sign * (road_half + 0.5), (5.0, 30.0), travel, _slim)
        parts += _row(rng, path, taken, materials, sign * (road_half + 1.3), (4.0, 25.0), travel, _standing_thing)
        if density < 0.7:
            parts += _row(rng, path, taken, materials, sign * (road_half + pavement + 2.0), (4.0, 12.0), travel, _green)
    return concatenate(parts)


def _backdrop(rng: np.random.Generator, path: Path, materials: Materials) -> list[Quads]:
    """The ground, the clouds and a wall of far scenery around everything."""
    margin = 45.0
    x0, x1 = path.x.min() - margin, path.x.max() + margin
    z0, z1 = path.z.min() - 10.0, path.z.max() + 10.0
    middle = np.array([0.5 * (x0 + x1), 0.0, 0.5 * (z0 + z1)])
    width, length, ceiling, wall = x1 - x0, z1 - z0, rng.uniform(45, 80), rng.uniform(9, 30)
    forward, down, up = np.array([0.0, 0, 1]), np.array([0.0, 1, 0]), np.array([0.0, -1, 0])
    ground = replace(objects.face(middle, up, forward, (width, length), materials.ground), light=np.ones(1))
    above = objects.face(middle + up * ceiling, down, forward, (width, length), materials.sky, None, (0, 0), 3.0)
    parts = [ground, replace(above, light=np.full(1, rng.uniform(0.95, 1.1)))]
    for axis, half in ((0, 0.5 * width), (2, 0.5 * length)):
        for sign in (-1.0, 1.0):
            inward = np.zeros(3)
            inward[axis] = -sign
            centre = middle - inward * half
            span = (length if axis == 0 else width, wall)
            texture = int(rng.choice(materials.skyline))
            texels = 512.0 / wall
            start = (float(rng.uniform(0, 512)), 0.0)
            parts.append(objects.face(centre + up * 0.5 * wall, inward, down, span, texture, None, start, texels))
            high = (span[0], ceiling - wall)
            middle_high = centre + up * 0.5 * (ceiling + wall)
            cloud = objects.face(middle_high, inward, down, high, materials.sky, None, start, 5.0)
            parts.append(replace(cloud, light=np.ones(1)))
    return parts


def _houses(
    rng: np.random.Generator,
    path: Path,
    materials: Materials,
    sign: float,
    offset: float,
    density: float,
    side_streets: tuple[float, ...],
    travel: float,
) -> list[Quads]:
    """A row of houses along one side, open where a street crosses."""
    parts = []
    s = -30.0
    low, high = sorted(rng.uniform(3.5, 22.0, 2))
    while s < travel + 95.0:
        length = float(rng.uniform(6, 22))
        start, s = s, s + length + (0.0 if rng.random() < 0.6 else float(rng.uniform(1, 6)))
        blocked = any(start - 5.0 < crossing < start + length + 5.0 for crossing in side_streets)
        if blocked or rng.random() > density:
            continue
        setback = offset + (0.0 if rng.random() < 0.6 else float(rng.uniform(0, 4)))
        thing = objects.house(rng, materials, length, float(rng.uniform(low, high)))
        xs, zs, _ = path.at(np.array([start, start + length]), sign * setback)
        heading = np.arctan2(xs[1] - xs[0], zs[1] - zs[0])
        # The front, at local z = 0, looks at the road: local +z points away from it.
        turn = heading + sign * 0.5 * np.pi
        pose = _standing(np.array([xs.mean()]), np.array([zs.mean()]), np.array([turn]))[0]
        parts.append(_placed(thing, pose))
    return parts


class _Taken:
    """Where the movers and the camera pass: nothing static may stand there."""

    def __init__(self, movers: list[Mover], cameras: np.ndarray) -> None:
        spots = [np.column_stack([cameras[:, 0, 3], cameras[:, 2, 3], np.full(len(cameras), 1.3)])]
        for mover in movers:
            for pose in mover.poses:
                centres, radius = mover.thing.discs(pose)
                spots.append(np.column_stack([centres, np.full(len(centres), radius)]))
        self._spots = np.concatenate(spots)

    def take(self, thing: Thing, pose: np.ndarray) -> bool:
        """Reserve the footprint if it is free."""
        centres, radius = thing.discs(pose)
        distance = np.sqrt(((centres[:, None] - self._spots[None, :, :2]) ** 2).sum(-1))
        if (distance < radius + self._spots[None, :, 2] + 0.15).any():
            return False
        self._spots = np.concatenate([self._spots, np.column_stack([centres, np.full(len(centres), radius)])])
        return True


def _parked(rng: np.random.Generator, materials: Materials) -> Thing:
    return objects.truck(rng, materials) if rng.random() < 0.18 else objects.car(rng, materials)


def _slim(rng: np.random.Generator, materials: Materials) -> Thing:
    return objects.pole(rng, materials) if rng.random() < 0.6 else objects.tree(rng, materials)


def _standing_thing(rng: np.random.Generator, materials: Materials) -> Thing:
    return objects.person(rng, materials) if rng.random() < 0.55 else objects.crate(rng, materials)


def _green(rng: np.random.Generator, materials: Materials) -> Thing:
    return objects.tree(rng, materials) if rng.random() < 0.7 else objects.crate(rng, materials)


def _row(
    rng: np.random.Generator,
    path: Path,
    taken: _Taken,
    materials: Materials,
    offset: float,
    spacing: tuple[float, float],
    travel: float,
    make: Callable[[np.random.Generator, Materials], Thing],
) -> list[Quads]:
    """Things of one kind along one side of the road, at random spacings."""
    parts = []
    stretch = rng.uniform(0.8, 2.0)
    s = -12.0 + rng.uniform(0, spacing[1])
    while s < travel + 85.0:
        thing = make(rng, materials)
        turn = rng.choice([0.0, np.pi]) + rng.uniform(-0.05, 0.05)
        pose = path.poses(s, offset + rng.uniform(-0.15, 0.15), turn)[0]
        if taken.take(thing, pose):
            parts.append(_placed(thing, pose))
        s += stretch * rng.uniform(*spacing)
    return parts


def _placed(thing: Thing, pose: np.ndarray) -> Quads:
    """The faces in the world, lit for the way they stand there."""
    quads = transformed(thing.quads, pose)
    normal = np.cross(quads.axis_u, quads.axis_v)
    return replace(quads, light=objects.light_of(normal))


def _ground_map(path: Path) -> GroundMap:
    """Road coordinates over the ground: the nearest sample of the path, refined by two Newton steps."""
    margin = 47.0
    x0, z0 = path.x.min() - margin, path.z.min() - 12.0
    columns = int(np.ceil((path.x.max() + margin - x0) / _MAP_STEP)) + 2
    rows = int(np.ceil((path.z.max() + 12.0 - z0) / _MAP_STEP)) + 2
    values = np.empty((rows, columns, 3), np.float32)
    x = x0 + _MAP_STEP * np.arange(columns)
    coarse = slice(None, None, 3)
    for row in range(rows):
        z = z0 + _MAP_STEP * row
        distance = (x[:, None] - path.x[coarse]) ** 2 + (z - path.z[coarse]) ** 2
        s = path.s[coarse][distance.argmin(1)]
        for _ in range(3):
            px, pz, heading = path.at(s, 0.0)
            along = (x - px) * np.sin(heading) + (z - pz) * np.cos(heading)
            s = s + along
        px, pz, heading = path.at(s, 0.0)
        d = (x - px) * np.cos(heading) - (z - pz) * np.sin(heading)
        values[row] = np.stack([s, d, heading], axis=1)
    return GroundMap((float(x0), float(z0)), values)
