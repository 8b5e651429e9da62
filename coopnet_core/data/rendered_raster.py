"""Ray casting of textured rectangles, vectorised over the pixels of each rectangle's image.

Everything is exact for planar faces: along the ray (x, y, 1) of the camera, the depth is c / (n . d) and the position
on the face is (a . d) / (n . d). Depth and visibility come from the same expressions, so the truth has no raster error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coopnet_core.geometry.camera import Camera

NEAR = 0.05
# Two faces that touch (a wheel on the road) must not hide each other: relative depth tolerance of visibility.
_TOLERANCE = 2e-4
_SEAM = 1e-5
"""Faces reach this much (relative, and in metres) over their edges, lest a ray fall between two that share one."""


@dataclass(frozen=True)
class Quads:
    """Q textured rectangles, seen from the side of their normal axis_u x axis_v.

    Attributes:
        origin: (Q, 3) metres, the corner u = v = 0.
        axis_u, axis_v: (Q, 3) unit vectors.
        size: (Q, 2) metres.
        texture: (Q,) index in the atlas.
        scale, offset: (Q, 2) texels per metre, texels.
        light: (Q,) factor on the colour.
        owner: (Q,) index of the moving object, -1 for the static world.
    """

    origin: np.ndarray
    axis_u: np.ndarray
    axis_v: np.ndarray
    size: np.ndarray
    texture: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    light: np.ndarray
    owner: np.ndarray

    def __len__(self) -> int:
        return len(self.origin)


def concatenate(parts: list[Quads]) -> Quads:
    """All rectangles of several sets, in order."""
    names = Quads.__dataclass_fields__
    return Quads(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def transformed(quads: Quads, T_dst_src: np.ndarray) -> Quads:
    """The rectangles with positions and axes in another frame."""
    rotation, translation = T_dst_src[:3, :3], T_dst_src[:3, 3]
    fields = {name: getattr(quads, name) for name in Quads.__dataclass_fields__}
    fields["origin"] = quads.origin @ rotation.T + translation
    fields["axis_u"] = quads.axis_u @ rotation.T
    fields["axis_v"] = quads.axis_v @ rotation.T
    return Quads(**fields)


@dataclass(frozen=True)
class View:
    """The rectangles of a moment as one camera sees them.

    Attributes:
        a, b, n: (Q, 3): u = a.d / n.d and v = b.d / n.d metres on the face, along the ray d = (x, y, 1).
        c: (Q,): depth = c / n.d.
        size: (Q, 2) metres.
        visible: indices of the faces that can be seen, near ones first.
        box: (Q, 4) x0, y0, x1, y1 pixels of the face's image.
        camera: the camera.
    """

    a: np.ndarray
    b: np.ndarray
    n: np.ndarray
    c: np.ndarray
    size: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    camera: Camera


def view(quads_world: Quads, T_world_camera: np.ndarray, camera: Camera) -> View:
    """Prepare the rectangles for one camera pose."""
    quads = transformed(quads_world, np.linalg.inv(T_world_camera))
    n = np.cross(quads.axis_u, quads.axis_v)
    c = np.einsum("qi,qi->q", n, quads.origin)
    along_u = np.einsum("qi,qi->q", quads.axis_u, quads.origin)
    along_v = np.einsum("qi,qi->q", quads.axis_v, quads.origin)
    a = quads.axis_u * c[:, None] - along_u[:, None] * n
    b = quads.axis_v * c[:, None] - along_v[:, None] * n
    box, seen, nearest = _image_boxes(quads, camera)
    seen &= c < 0
    visible = np.flatnonzero(seen)
    visible = visible[np.argsort(nearest[visible], kind="stable")]
    return View(a, b, n, c, quads.size, visible, box, camera)


def _image_boxes(quads: Quads, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounding boxes (Q, 4) in pixels, whether they meet the image, and the nearest corner's distance."""
    u = quads.axis_u * quads.size[:, :1]
    v = quads.axis_v * quads.size[:, 1:]
    corners = np.stack([quads.origin, quads.origin + u, quads.origin + u + v, quads.origin + v], axis=1)
    z = corners[..., 2]
    after, z_after = np.roll(corners, -1, axis=1), np.roll(z, -1, axis=1)
    crossing = (z - NEAR) * (z_after - NEAR) < 0
    share = np.where(crossing, (NEAR - z) / np.where(crossing, z_after - z, 1.0), 0.0)
    cuts = corners + share[..., None] * (after - corners)
    points = np.concatenate([corners, cuts], axis=1)
    usable = np.concatenate([z >= NEAR, crossing], axis=1)
    depth = np.where(usable, points[..., 2], 1.0)
    x = points[..., 0] / depth * camera.fx + camera.cx
    y = points[..., 1] / depth * camera.fy + camera.cy
    low, high = (np.where(usable, value, bad) for value, bad in ((x, np.inf), (x, -np.inf)))
    top, bottom = (np.where(usable, value, bad) for value, bad in ((y, np.inf), (y, -np.inf)))
    box = np.stack([low.min(1), top.min(1), high.max(1), bottom.max(1)], axis=1)
    seen = usable.any(1) & (box[:, 0] < camera.width) & (box[:, 2] > -1)
    seen &= (box[:, 1] < camera.height) & (box[:, 3] > -1)
    return box, seen, np.linalg.norm(corners, axis=2).min(1)


def cast_grid(scene: View, supersampling: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Depth and face of every sample of the image.

    Returns:
        depth (H s, W s) float32 metres (inf where nothing is hit), face (H s, W s) int32 (-1 where nothing is hit).
    """
    x, y = ray_axes(scene.camera, supersampling)
    depth = np.full((len(y), len(x)), np.inf, np.float32)
    face = np.full(depth.shape, -1, np.int32)
    bounds = np.empty((len(scene.c), 4), np.int64)
    limits = np.array([len(x), len(y), len(x), len(y)])
    pixels = np.nan_to_num(scene.box, posinf=1e6, neginf=-1e6)
    samples = (np.clip(pixels, -1e6, 1e6) + 0.5) * supersampling - 0.5
    bounds[:, :2] = np.floor(samples[:, :2])
    bounds[:, 2:] = np.ceil(samples[:, 2:]) + 1
    bounds = np.clip(bounds, 0, limits)
    for q in scene.visible:
        x0, y0, x1, y1 = bounds[q]
        if x0 >= x1 or y0 >= y1:
            continue
        _cast_face(scene, q, x[x0:x1], y[y0:y1], depth[y0:y1, x0:x1], face[y0:y1, x0:x1])
    return depth, face


def _cast_face(scene: View, q: int, x: np.ndarray, y: np.ndarray, depth: np.ndarray, face: np.ndarray) -> None:
    """Draw one face into the depth and face buffers (views, changed in place)."""
    inverse = _plane(scene.n[q], x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(np.float32(1.0), inverse, out=inverse)
        z = inverse * np.float32(scene.c[q])
        hit = (z > NEAR) & (z < depth)
        for row, extent in ((scene.a[q], scene.size[q, 0]), (scene.b[q], scene.size[q, 1])):
            half = 0.5 * extent
            # |u - extent/2| <= extent/2 is one comparison instead of two.
            position = _plane(row - half * scene.n[q], x, y)
            position *= inverse
            hit &= np.abs(position, out=position) <= np.float32(half + _SEAM * (1 + half))
    np.copyto(depth, z, where=hit)
    np.copyto(face, np.int32(q), where=hit)


def _plane(row: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot product of `row` with (x, y, 1) on the grid of x and y, float32."""
    return (row[0] * x)[None, :].astype(np.float32) + (row[1] * y + row[2])[:, None].astype(np.float32)


def ray_axes(camera: Camera, supersampling: int) -> tuple[np.ndarray, np.ndarray]:
    """The x (W s,) and y (H s,) of the rays (x, y, 1) through the samples, float64."""
    x = (np.arange(camera.width * supersampling) + 0.5) / supersampling - 0.5
    y = (np.arange(camera.height * supersampling) + 0.5) / supersampling - 0.5
    return (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy


def hidden(scene: View, points: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Which points the camera does not see: behind it, outside the image, or behind another face.

    Args:
        points: (N, 3) in the frame of the camera, metres.
        face: (N,) the face each point lies on (it does not hide itself).

    Returns:
        (N,) bool.
    """
    z = points[:, 2]
    safe = np.where(z > NEAR, z, 1.0)
    x, y = points[:, 0] / safe, points[:, 1] / safe
    camera = scene.camera
    px, py = x * camera.fx + camera.cx, y * camera.fy + camera.cy
    result = (z <= NEAR) | (px < -0.5) | (py < -0.5) | (px > camera.width - 0.5) | (py > camera.height - 0.5)
    # A face seen from its back hides nothing and is not seen either: the point has turned away.
    turned = np.ones(len(scene.c), bool)
    turned[scene.c < 0] = False
    result |= turned[face]
    for q in scene.visible:
        x0, y0, x1, y1 = scene.box[q]
        near = np.flatnonzero((px >= x0) & (px <= x1) & (py >= y0) & (py <= y1))
        if len(near) == 0:
            continue
        result[near] |= _covers(scene, q, x[near], y[near], z[near]) & (face[near] != q)
    return result


def _covers(scene: View, q: int, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    rays = np.stack([x, y, np.ones_like(x)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / (rays @ scene.n[q])
        depth = scene.c[q] * inverse
        u, v = rays @ scene.a[q] * inverse, rays @ scene.b[q] * inverse
        width, height = scene.size[q]
        inside = (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
        return inside & (depth > NEAR) & (depth < z * (1 - _TOLERANCE) - 1e-4)
