"""Tileable textures of the rendered streets, and their anisotropic pyramid.

A texture is a sum of noise over all wavelengths with an amplitude that grows with the wavelength, plus the drawing of
what it stands for (windows, lane markings, wheels). The long wavelengths dominate, at any distance: photometric
learning needs a correlation length of several pixels. The pyramid is halved independently along both axes (a
"rip-map"), so that a road seen at a grazing angle is neither aliased nor blurred across.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TEXELS_PER_METRE = 40.0
GROUND_SIZE = 1024
GROUND_TEXELS_PER_METRE = 50.0
_LEVELS = 10


@dataclass(frozen=True)
class Atlas:
    """All textures of a scene with their pyramids in one flat array.

    Attributes:
        texels: (N,) uint32, RGBx packed bytes.
        offsets: (T, L, L) int64, start of level (i, j): width / 2^i, height / 2^j.
        widths, heights: (T,) int64, texels at level 0, powers of two.
    """

    texels: np.ndarray
    offsets: np.ndarray
    widths: np.ndarray
    heights: np.ndarray

    def sample(
        self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, footprint_u: np.ndarray, footprint_v: np.ndarray
    ) -> np.ndarray:
        """Bilinear colour from the level that fits the footprint.

        Args:
            texture: (N,) index of the texture.
            u, v: (N,) float32 texels of level 0; texel centres at integer + 0.5; both wrap around.
            footprint_u, footprint_v: (N,) float32 texels covered by one sample.

        Returns:
            (N, 3) float32 in [0, 255].
        """
        widths, heights = self.widths[texture], self.heights[texture]
        level_u, width = _level(footprint_u, widths)
        level_v, height = _level(footprint_v, heights)
        start = self.offsets[texture, level_u, level_v]
        x0, x1, fx = _neighbours(u, level_u, width)
        y0, y1, fy = _neighbours(v, level_v, height)
        row0, row1 = start + y0 * width, start + y1 * width
        top = _mix(self._fetch(row0 + x0), self._fetch(row0 + x1), fx)
        bottom = _mix(self._fetch(row1 + x0), self._fetch(row1 + x1), fx)
        return _mix(top, bottom, fy)

    def _fetch(self, index: np.ndarray) -> np.ndarray:
        return self.texels[index].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)


def _level(footprint: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest level for a footprint in texels, and the size of the texture there."""
    wanted = np.rint(np.log2(np.maximum(footprint, 1.0))).astype(np.int64)
    largest = np.rint(np.log2(size)).astype(np.int64)
    level = np.minimum(np.minimum(wanted, largest), _LEVELS - 1)
    return level, size >> level


def _neighbours(coordinate: np.ndarray, level: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, ...]:
    position = np.ldexp(coordinate, -level) - np.float32(0.5)
    floor = np.floor(position)
    first = floor.astype(np.int64) & (size - 1)
    return first, (first + 1) & (size - 1), (position - floor).astype(np.float32)[:, None]


def _mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    b -= a
    b *= weight
    b += a
    return b


def build_atlas(images: Sequence[np.ndarray]) -> Atlas:
    """Pack the textures and their pyramids. Each is (H, W, 3) float32 in [0, 255], sides powers of two."""
    chunks: list[np.ndarray] = []
    offsets = np.zeros((len(images), _LEVELS, _LEVELS), np.int64)
    total = 0
    for index, image in enumerate(images):
        columns = image.astype(np.float32)
        for i in range(_LEVELS):
            cell = columns
            for j in range(_LEVELS):
                offsets[index, i, j] = total
                chunks.append(_pack(cell))
                total += cell.shape[0] * cell.shape[1]
                if cell.shape[0] == 1:
                    break
                cell = 0.5 * (cell[0::2] + cell[1::2])
            if columns.shape[1] == 1:
                break
            columns = 0.5 * (columns[:, 0::2] + columns[:, 1::2])
    widths = np.array([image.shape[1] for image in images], np.int64)
    heights = np.array([image.shape[0] for image in images], np.int64)
    return Atlas(np.concatenate(chunks), offsets, widths, heights)


def _pack(image: np.ndarray) -> np.ndarray:
    packed = np.zeros((*image.shape[:2], 4), np.uint8)
    packed[..., :3] = np.clip(np.rint(image), 0, 255)
    return packed.view(np.uint32).ravel()


def noise(rng: np.random.Generator, height: int, width: int, exponent: float = 1.2, cutoff: float = 3.0) -> np.ndarray:
    """Tileable noise (height, width) float32, zero mean, unit variance, amplitude ~ wavelength^exponent.

    Args:
        cutoff: wavelength in texels below which the noise fades away.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    # Wavelengths beyond 1/4 of the texture are held level: they would only shift the mean brightness of a face.
    floor = 4.0 / max(height, width)
    spectrum *= np.maximum(frequency, floor) ** -exponent * np.exp(-((frequency * cutoff) ** 2))
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)
    return field / field.std()


def random_colour(rng: np.random.Generator, value: tuple[float, float], saturation: float) -> np.ndarray:
    """A random RGB colour (3,) float32 in [0, 255] of bounded brightness and saturation."""
    tint = rng.uniform(-1.0, 1.0, 3)
    colour = rng.uniform(*value) * (1.0 + saturation * (tint - tint.mean()))
    return np.clip(colour, 5, 250).astype(np.float32)


def mottled(rng: np.random.Generator, height: int, width: int, colour: np.ndarray, contrast: float) -> np.ndarray:
    """A surface of one colour with noise of brightness and, weaker, of hue: (H, W, 3) float32."""
    brightness = noise(rng, height, width, rng.uniform(0.9, 1.3))
    tint = noise(rng, height, width, 1.4)
    direction = rng.uniform(-1, 1, 3).astype(np.float32)
    grey = contrast * brightness[..., None]
    return colour + grey + 0.35 * contrast * tint[..., None] * direction


def facade(rng: np.random.Generator) -> np.ndarray:
    """A house front with rows of windows, (512, 512, 3), 12.8 m a side."""
    size = 512
    wall = mottled(rng, size, size, random_colour(rng, (75, 185), 0.22), rng.uniform(16, 30))
    columns, rows = int(rng.integers(2, 6)), int(rng.integers(3, 6))
    glass = mottled(rng, size, size, random_colour(rng, (30, 80), 0.3), 22.0)
    share_x, share_y = rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.65)
    frame = random_colour(rng, (60, 220), 0.2)
    for row in range(rows):
        for column in range(columns):
            pitch_x, pitch_y = size / columns, size / rows
            x0 = int((column + 0.5 - 0.5 * share_x) * pitch_x + rng.uniform(-4, 4))
            y0 = int((row + 0.5 - 0.5 * share_y) * pitch_y + rng.uniform(-3, 3))
            x1, y1 = int(x0 + share_x * pitch_x), int(y0 + share_y * pitch_y)
            wall[y0 - 4 : y1 + 4, x0 - 4 : x1 + 4] = frame + rng.uniform(-15, 15)
            wall[y0:y1, x0:x1] = glass[y0:y1, x0:x1] + rng.uniform(-20, 60)
    if rng.random() < 0.5:
        ledge = int(rng.integers(2, 6))
        for row in range(rows):
            y = int(row * size / rows)
            wall[y : y + ledge] *= 0.7
    return wall


def street(rng: np.random.Generator, road_half: float, lane: float) -> np.ndarray:
    """The ground across the street: x = lateral offset -10.24..10.24 m, y = along, 20.48 m."""
    size = GROUND_SIZE
    lateral = (np.arange(size) + 0.5) / GROUND_TEXELS_PER_METRE - 10.24
    asphalt = mottled(rng, size, size, random_colour(rng, (65, 115), 0.06), rng.uniform(11, 18))
    pavement = mottled(rng, size, size, random_colour(rng, (95, 165), 0.12), rng.uniform(14, 22))
    slab = int(rng.choice([32, 64, 128]))
    for start in range(0, size, slab):
        pavement[start : start + 2] *= 0.75
        pavement[:, start : start + 2] *= 0.75
    image = np.where((np.abs(lateral) > road_half)[None, :, None], pavement, asphalt)
    for _ in range(int(rng.integers(3, 12))):
        y, x = rng.integers(0, size - 60), rng.integers(size // 2 - 170, size // 2 + 150)
        h, w = rng.integers(20, 200), rng.integers(15, 60)
        image[y : y + h, x : x + w] += rng.uniform(-24, 16)
    paint = rng.uniform(170, 225) + 10 * noise(rng, size, size)[..., None]
    along = np.arange(size)
    dashes = (along % 512) < rng.choice([150, 256, 512])
    centre = (np.abs(lateral) < 0.07)[None, :] & dashes[:, None]
    image = np.where(centre[..., None], paint, image)
    if rng.random() < 0.6:
        edge = (np.abs(np.abs(lateral) - lane) < 0.06)[None, :] & np.ones((size, 1), bool)
        image = np.where(edge[..., None], paint, image)
    kerb = (np.abs(np.abs(lateral) - road_half) < 0.1)[None, :]
    stone = image * 0.3 + rng.uniform(80, 150)
    return np.where(kerb[..., None], stone, image)


def sky(rng: np.random.Generator) -> np.ndarray:
    """Clouds, (512, 512, 3)."""
    clouds = noise(rng, 512, 512, 1.6, 6.0)[..., None]
    base = np.array([rng.uniform(140, 190), rng.uniform(165, 200), rng.uniform(185, 225)], np.float32)
    return base + clouds * np.array([26, 20, 14], np.float32)


def skyline(rng: np.random.Generator) -> np.ndarray:
    """The far end of the view: hedges, hills or houses, (512, 512, 3), the ground at the last row."""
    image = mottled(rng, 512, 512, random_colour(rng, (75, 150), 0.25), 26.0)
    for _ in range(int(rng.integers(5, 22))):
        x, w, h = rng.integers(0, 480), rng.integers(15, 90), rng.integers(60, 460)
        image[512 - h :, x : x + w] = image[512 - h :, x : x + w] * 0.5 + random_colour(rng, (30, 110), 0.3)
    return image


def foliage(rng: np.random.Generator) -> np.ndarray:
    """Leaves, (256, 256, 3)."""
    green = np.array([rng.uniform(40, 110), rng.uniform(70, 130), rng.uniform(25, 70)], np.float32)
    return mottled(rng, 256, 256, green, rng.uniform(22, 34))


def plain(rng: np.random.Generator) -> np.ndarray:
    """Bark, concrete, clothes, containers: (256, 256, 3)."""
    return mottled(rng, 256, 256, random_colour(rng, (45, 190), 0.35), rng.uniform(16, 30))


def car_side(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """The flank of a car body with its wheels, (256, 256, 3), the ground at the last row."""
    image = mottled(rng, 256, 256, colour, rng.uniform(14, 26))
    yy, xx = np.mgrid[0:256, 0:256]
    image[215:] *= 0.45
    for centre in (52, 204):
        radius = np.hypot((xx - centre) / 24.0, (yy - 206) / 62.0)
        image[radius < 1.0] = 28 + 8 * image[radius < 1.0] / 255
        image[radius < 0.55] = rng.uniform(90, 160)
    for x in (100, 150):
        image[20:190, x : x + 3] *= 0.5
    return image


def car_end(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """The front or rear of a car body with lights and number plate, (256, 256, 3)."""
    image = mottled(rng, 256, 256, colour, rng.uniform(14, 26))
    lamp = np.array([rng.uniform(150, 230), rng.uniform(30, 210), rng.uniform(30, 200)], np.float32)
    image[50:100, 15:70] = lamp
    image[50:100, 186:241] = lamp
    image[130:170, 85:171] = rng.uniform(160, 230)
    image[205:] *= 0.4
    return image


def car_glass(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """The cabin: windows between pillars, (256, 256, 3)."""
    image = mottled(rng, 256, 256, colour, 14.0)
    glass = mottled(rng, 256, 256, random_colour(rng, (30, 75), 0.2), 20.0)
    for x0, x1 in ((18, 118), (138, 238)):
        image[45:225, x0:x1] = glass[45:225, x0:x1]
    return image


def make_many(
    rng: np.random.Generator, count: int, make: Callable[[np.random.Generator], np.ndarray]
) -> list[np.ndarray]:
    """`count` textures of one kind."""
    return [make(rng) for _ in range(count)]
