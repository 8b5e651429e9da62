"""What stands on a rendered street: boxes put together to cars, trucks, people, trees, poles and houses.

Objects are built around the origin of their own frame: x right, y down, z forward, the ground at y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coopnet_core.data import rendered_textures as textures
from coopnet_core.data.rendered_raster import Quads, concatenate
from coopnet_core.data.rendered_textures import TEXELS_PER_METRE

_SUN = np.array([0.45, -0.75, -0.48])


@dataclass(frozen=True)
class Materials:
    """Which atlas indices carry which material."""

    ground: int
    verge: int
    asphalt: int
    sky: int
    skyline: tuple[int, ...]
    facades: tuple[int, ...]
    foliage: tuple[int, ...]
    plain: tuple[int, ...]
    cars: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Thing:
    """An object in its own frame.

    Attributes:
        quads: its faces.
        half_width, half_length: metres, of its footprint (x and z).
    """

    quads: Quads
    half_width: float
    half_length: float

    def discs(self, pose: np.ndarray) -> tuple[np.ndarray, float]:
        """Discs that cover the footprint at T_world_object: centres (K, 2) in world x, z, and their radius."""
        radius = min(self.half_width, self.half_length)
        reach = max(self.half_width, self.half_length) - radius
        count = 1 + int(np.ceil(reach / max(radius, 0.3)))
        axis = 2 if self.half_length >= self.half_width else 0
        along = np.linspace(-reach, reach, count)
        centres = pose[[0, 2], 3] + along[:, None] * pose[[0, 2], axis]
        return centres, 1.2 * radius


def make_materials(rng: np.random.Generator, road_half: float, lane: float) -> tuple[Materials, textures.Atlas]:
    """Draw all textures of a scene."""
    images: list[np.ndarray] = []

    def add(new: list[np.ndarray]) -> tuple[int, ...]:
        images.extend(new)
        return tuple(range(len(images) - len(new), len(images)))

    ground = add([textures.street(rng, road_half, lane)])[0]
    verge_colour = np.array([rng.uniform(70, 120), rng.uniform(85, 125), rng.uniform(50, 85)], np.float32)
    verge = add([textures.mottled(rng, 512, 512, verge_colour, 20.0)])[0]
    asphalt = add([textures.mottled(rng, 512, 512, textures.random_colour(rng, (70, 110), 0.06), 15.0)])[0]
    above = add([textures.sky(rng)])[0]
    far = add(textures.make_many(rng, 2, textures.skyline))
    facades = add(textures.make_many(rng, int(rng.integers(4, 8)), textures.facade))
    leaves = add(textures.make_many(rng, 2, textures.foliage))
    plain = add(textures.make_many(rng, int(rng.integers(6, 10)), textures.plain))
    cars = []
    for _ in range(int(rng.integers(4, 8))):
        colour = textures.random_colour(rng, (35, 200), float(rng.choice([0.1, 0.7])))
        make = (textures.car_side, textures.car_end, textures.car_glass)
        cars.append(add([draw(rng, colour) for draw in make]))
    materials = Materials(ground, verge, asphalt, above, far, facades, leaves, plain, tuple(cars))
    return materials, textures.build_atlas(images)


def light_of(normals: np.ndarray) -> np.ndarray:
    """Brightness (Q,) of faces with these unit normals (Q, 3), under one sun and a bright sky."""
    return 0.86 + 0.24 * normals @ _SUN


def face(
    centre: np.ndarray,
    normal: np.ndarray,
    down: np.ndarray,
    size: tuple[float, float],
    texture: int,
    stretch: int | None = None,
    offset: tuple[float, float] = (0.0, 0.0),
    texels_per_metre: float = TEXELS_PER_METRE,
) -> Quads:
    """One rectangle whose texture rows run along `down`.

    Args:
        centre, normal, down: (3,) metres and unit vectors.
        size: metres across and along `down`.
        texture: atlas index.
        stretch: side of the texture in texels to fit it exactly once; None to repeat it at a fixed scale.
        offset: texels.
    """
    across = np.cross(down, normal)
    origin = centre - 0.5 * size[0] * across - 0.5 * size[1] * down
    scale = (texels_per_metre, texels_per_metre) if stretch is None else (stretch / size[0], stretch / size[1])
    one = np.ones(1)
    return Quads(
        origin=origin[None],
        axis_u=across[None],
        axis_v=np.asarray(down, float)[None],
        size=np.array([size], float),
        texture=(one * texture).astype(np.int64),
        scale=np.array([scale], float),
        offset=np.array([offset], float),
        light=light_of(np.asarray(normal, float)[None]),
        owner=(-one).astype(np.int64),
    )


def block(
    x: tuple[float, float],
    height: tuple[float, float],
    z: tuple[float, float],
    ends: int,
    sides: int,
    top: int | None,
    stretch: int | None = None,
    offset: tuple[float, float] = (0.0, 0.0),
) -> Quads:
    """A box between two heights above the ground; `ends` textures face +z and -z, `sides` +x and -x."""
    low, high = height
    middle = np.array([0.5 * (x[0] + x[1]), -0.5 * (low + high), 0.5 * (z[0] + z[1])])
    half = np.array([0.5 * (x[1] - x[0]), 0.5 * (high - low), 0.5 * (z[1] - z[0])])
    down = np.array([0.0, 1.0, 0.0])
    parts = []
    for axis, texture in ((0, sides), (2, ends)):
        for sign in (1.0, -1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            size = (2 * half[2 - axis], 2 * half[1])
            parts.append(face(middle + normal * half, normal, down, size, texture, stretch, offset))
    if top is not None:
        normal = np.array([0.0, -1.0, 0.0])
        size = (2 * half[0], 2 * half[2])
        parts.append(face(middle + normal * half, normal, np.array([0.0, 0.0, 1.0]), size, top, None, offset))
    return concatenate(parts)


def _some_offset(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, 512)), float(rng.uniform(0, 512))


def car(rng: np.random.Generator, materials: Materials) -> Thing:
    """A passenger car: a body with wheels painted on it and a cabin."""
    side, end, glass = materials.cars[rng.integers(len(materials.cars))]
    half_width, half_length = rng.uniform(0.82, 0.98), rng.uniform(1.8, 2.4)
    belt, roof = rng.uniform(0.78, 1.0), rng.uniform(1.38, 1.75)
    x, z = (-half_width, half_width), (-half_length, half_length)
    body = block(x, (0.04, belt), z, end, side, side, 256)
    cabin_x = (-half_width * 0.88, half_width * 0.88)
    cabin_z = (-half_length * rng.uniform(0.75, 0.98), half_length * rng.uniform(0.3, 0.55))
    cabin = block(cabin_x, (belt, roof), cabin_z, glass, glass, side, 256)
    return Thing(concatenate([body, cabin]), half_width, half_length)


def truck(rng: np.random.Generator, materials: Materials) -> Thing:
    """A van, truck or bus: one tall box on a low one."""
    side, end, glass = materials.cars[rng.integers(len(materials.cars))]
    cargo = materials.plain[rng.integers(len(materials.plain))]
    half_width, half_length = rng.uniform(1.0, 1.25), rng.uniform(2.4, 4.2)
    top = rng.uniform(2.2, 3.4)
    x, z = (-half_width, half_width), (-half_length, half_length)
    chassis = block(x, (0.04, 0.9), z, end, side, side, 256)
    cabin = block(x, (0.9, 2.1), (half_length - 1.6, half_length), glass, glass, side, 256)
    box = block(x, (0.9, top), (-half_length, half_length - 1.65), cargo, cargo, None, None, _some_offset(rng))
    return Thing(concatenate([chassis, cabin, box]), half_width, half_length)


def person(rng: np.random.Generator, materials: Materials) -> Thing:
    """A person-like stack of boxes: legs, trunk, head."""
    legs, trunk, head = (materials.plain[i] for i in rng.integers(len(materials.plain), size=3))
    scale = rng.uniform(0.9, 1.1)
    half = 0.24 * scale
    parts = [
        block((-half * 0.7, half * 0.7), (0.0, 0.85 * scale), (-0.12, 0.12), legs, legs, None, None, _some_offset(rng)),
        block((-half, half), (0.85 * scale, 1.5 * scale), (-0.16, 0.16), trunk, trunk, trunk, None, _some_offset(rng)),
        block((-0.1, 0.1), (1.5 * scale, 1.76 * scale), (-0.11, 0.11), head, head, head, None, _some_offset(rng)),
    ]
    return Thing(concatenate(parts), half, 0.25)


def crate(rng: np.random.Generator, materials: Materials) -> Thing:
    """A bin, box, stack or short wall beside the road."""
    texture = materials.plain[rng.integers(len(materials.plain))]
    half_width, half_length = rng.uniform(0.25, 0.7), rng.uniform(0.25, 1.5)
    height = rng.uniform(0.5, 1.9)
    x, z = (-half_width, half_width), (-half_length, half_length)
    quads = block(x, (0.0, height), z, texture, texture, texture, None, _some_offset(rng))
    return Thing(quads, half_width, half_length)


def pole(rng: np.random.Generator, materials: Materials) -> Thing:
    """A lamp post or sign post, sometimes with a sign."""
    texture = materials.plain[rng.integers(len(materials.plain))]
    half, height = rng.uniform(0.05, 0.14), rng.uniform(2.6, 7.0)
    parts = [block((-half, half), (0.0, height), (-half, half), texture, texture, None, None, _some_offset(rng))]
    if rng.random() < 0.5:
        sign = materials.plain[rng.integers(len(materials.plain))]
        width, top = rng.uniform(0.25, 0.6), min(height, rng.uniform(2.4, 3.2))
        shift = half + 0.04
        parts.append(block((-width, width), (top - 0.8, top), (-shift, shift), sign, sign, None, None))
    return Thing(concatenate(parts), half, half)


def tree(rng: np.random.Generator, materials: Materials) -> Thing:
    """A trunk under a crown of a few boxes of leaves."""
    bark = materials.plain[rng.integers(len(materials.plain))]
    half, trunk = rng.uniform(0.1, 0.22), rng.uniform(1.6, 2.6)
    parts = [block((-half, half), (0.0, trunk + 0.5), (-half, half), bark, bark, None, None, _some_offset(rng))]
    for _ in range(int(rng.integers(3, 6))):
        size = rng.uniform(0.5, 1.1, 3)
        x, z = rng.uniform(-0.6, 0.6, 2)
        low = trunk + rng.uniform(-0.2, 1.3)
        leaves = materials.foliage[rng.integers(len(materials.foliage))]
        span_x, span_z = (x - size[0], x + size[0]), (z - size[2], z + size[2])
        parts.append(block(span_x, (low, low + 1.6 * size[1]), span_z, leaves, leaves, None, None, _some_offset(rng)))
    return Thing(concatenate(parts), half, half)


def house(rng: np.random.Generator, materials: Materials, length: float, height: float) -> Thing:
    """A building `length` metres along the street (x), its front at z = 0, its body towards +z."""
    texture = materials.facades[rng.integers(len(materials.facades))]
    depth = float(rng.uniform(6, 14))
    x = (-0.5 * length, 0.5 * length)
    quads = block(x, (0.0, height), (0.0, depth), texture, texture, None, None, _some_offset(rng))
    return Thing(quads, 0.5 * length, depth)
