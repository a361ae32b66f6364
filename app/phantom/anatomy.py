"""The healthy chest of the phantom: where the lungs are, and the density of everything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.phantom.space import Field, Mask, Point, Space

AnyField = npt.NDArray[np.floating]
AIR, FAT, MUSCLE, BLOOD, LIVER = -1000.0, -100.0, 50.0, 42.0, 58.0
_MARROW, _CORTEX, _CARTILAGE = 180.0, 520.0, 110.0
_RIB_PITCH, _RIB_DROP = 27.0, 75.0
HILA: tuple[Point, Point] = ((46.0, 18.0, 166.0), (-44.0, 18.0, 166.0))
"""Where bronchi and vessels enter the left and the right lung."""


@dataclass(frozen=True, slots=True, eq=False)
class Chest:
    """Shapes that the rest is built around.

    Parameters
    ----------
    wall : ndarray, shape (z, y, x)
        Distance outward from the inner surface of the rib cage, in mm; negative inside.
    above_diaphragm : ndarray, shape (z, y, x)
        Height above the diaphragm in mm.
    heart, airway : ndarray of bool, shape (z, y, x)
        Heart; lumen of trachea and main bronchi.
    left, right : ndarray of bool, shape (z, y, x)
        The lungs, with their vessels and small airways.
    """

    wall: Field
    above_diaphragm: Field
    heart: Mask
    airway: Mask
    left: Mask
    right: Mask


def _ellipse(u: AnyField, v: AnyField, a: AnyField | float, b: AnyField | float) -> Field:
    """Return about the distance outward from an axial ellipse, in mm."""
    return np.asarray((np.hypot(u / a, v / b) - 1.0) * np.minimum(a, b), dtype=np.float32)


def _rise(values: Field, start: float, end: float) -> Field:
    """Return 0 below start, 1 above end, smooth between."""
    t = np.clip((values - start) / (end - start), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def _spine_y(z: Field) -> Field:
    """Return y of the middle of the vertebral bodies: the thoracic spine is bent."""
    return np.asarray(62.0 - 16.0 * ((z - 130.0) / 150.0) ** 2)


def _cage(space: Space) -> Field:
    """Return the distance outward from the inner surface of the rib cage."""
    narrowing = np.clip((space.z - 90.0) / 192.0, 0.0, 0.97)
    size = np.sqrt(1.0 - narrowing**2.5)
    u, v = np.abs(space.x) / (126.0 * size), np.abs(space.y - 4.0 - 16.0 * (1.0 - size)) / (88.0 * size)
    return np.asarray(((u**2.3 + v**2.3) ** (1.0 / 2.3) - 1.0) * 88.0 * size, dtype=np.float32)


def _diaphragm(space: Space) -> Field:
    """Return the height of the diaphragm, shape (rows, columns): a right and a lower left dome."""
    right = 58.0 * np.exp(-(((space.x + 60.0) / 62.0) ** 2) - ((space.y + 12.0) / 62.0) ** 2)
    left = 46.0 * np.exp(-(((space.x - 58.0) / 60.0) ** 2) - ((space.y + 8.0) / 62.0) ** 2)
    return np.asarray(28.0 - 0.2 * space.y + np.maximum(right, left), dtype=np.float32)


def build_chest(space: Space, rng: np.random.Generator) -> Chest:
    """Return the lungs and what shapes them; the heart differs from person to person."""
    wall = _cage(space)
    above = np.asarray(space.z - _diaphragm(space), dtype=np.float32)
    size = rng.uniform(0.92, 1.06)
    heart = space.ellipsoid((24.0, -20.0, 100.0), (60.0 * size, 42.0 * size, 50.0 * size), turn=rng.uniform(22, 38))
    airway = space.tube([(0, -2, 320), (0, 4, 250), (1, 14, 194)], 8.5)
    for hilum in HILA:
        side = np.sign(hilum[0])
        airway |= space.tube([(1, 14, 194), (side * 21, 17, 177), hilum], 6.3)
    inside = (wall < -1.0) & (above > 0.0) & ~_mediastinum(space, heart)
    lungs = space.blur(inside, 3.0) > 0.5  # half of the neighbourhood: rounds the edges
    lungs &= (above > 0.0) & (wall < 0.0) & ~airway
    left_side = np.broadcast_to(space.x > 0.0, space.shape)
    return Chest(wall, above, heart, airway, lungs & left_side, lungs & ~left_side)


def _mediastinum(space: Space, heart: Mask) -> Mask:
    """Return what the lungs leave free within the rib cage."""
    x, y, z = space.x, space.y, space.z
    spine = _spine_y(z)
    half_width = 9.0 + 21.0 * np.exp(-(((y - 12.0) / 34.0) ** 2)) + 9.0 * _rise(z, 215.0, 270.0)
    taken = np.abs(x) < half_width
    taken = taken | (_ellipse(x, y - spine - 6.0, 25.0, 25.0) < 0.0)
    taken |= _ellipse(x - 24.0, y - spine + 20.0, 14.5, 14.5) < np.where(z < 205.0, 0.0, -20.0)
    taken |= heart
    upper = np.clip((z - 140.0) / 130.0, 0.0, None)
    for hilum in HILA:
        taken |= space.ellipsoid((0.75 * hilum[0], hilum[1] - 2.0, hilum[2]), (23.0, 14.0, 20.0))
    apex = ((np.abs(x) - 57.0) / 66.0) ** 2 + ((y - 10.0) / 90.0) ** 2 + upper**2
    return np.asarray(taken | (apex > 1.0))


def body_hu(space: Space, chest: Chest, rng: np.random.Generator) -> Field:
    """Return the density of the body without the content of the lungs, shape (z, y, x), in HU."""
    hu = np.full(space.shape, AIR, dtype=np.float32)
    waist = 1.0 - 0.12 * _rise(space.z, 225.0, 310.0)
    skin = _ellipse(space.x, space.y - 4.0, 166.0 * waist, 117.0 * waist)
    hu[skin < 0.0] = 30.0
    hu[skin < -2.0] = FAT  # 2 mm of skin
    _paint_wall(hu, space, chest.wall, skin < -6.0)  # the wall stays below skin and some fat
    hu[chest.wall < 0.0] = MUSCLE
    _paint_abdomen(hu, space, chest)
    _paint_mediastinum(hu, space, chest, rng)
    _paint_ribs(hu, space, chest.wall)
    _paint_spine(hu, space)
    _paint_sternum(hu, space)
    _paint_table(hu, space)
    return hu


def _paint_wall(hu: Field, space: Space, wall: Field, below_skin: Mask) -> None:
    """Paint intercostal, chest and back muscles, and the shoulder blades."""
    x, y, z = space.x, space.y, space.z
    hu[(wall < 13.0) & below_skin] = MUSCLE
    layer = (wall > 15.0) & below_skin
    chest = (y < -15.0) & (np.abs(x) > 14.0) & (np.abs(x) < 118.0) & (wall < 15.0 + 14.0 * _rise(z, 120.0, 180.0))
    back = (y > 5.0) & (np.abs(x) > 28.0) & (wall < 17.0 + 20.0 * _rise(z, 90.0, 180.0))
    hu[layer & (chest | back)] = MUSCLE
    erector = _ellipse(np.abs(x) - 30.0, y - _spine_y(z) - 34.0, 26.0, 15.0) < 0.0
    hu[np.broadcast_to(erector, hu.shape) & below_skin] = MUSCLE
    angle = np.arctan2(np.abs(x), y - 8.0)
    blade = (np.abs(wall - 24.0) < 3.5) & (angle > 0.62) & (angle < 1.45) & (z > 150.0) & (z < 262.0) & below_skin
    hu[blade] = 380.0


def _paint_abdomen(hu: Field, space: Space, chest: Chest) -> None:
    """Paint diaphragm, liver, stomach with its gas, and spleen."""
    below = (chest.wall < 0.0) & (chest.above_diaphragm < 0.0)
    inner = below & (chest.above_diaphragm < -3.0) & (chest.wall < -2.0)  # 3 mm of diaphragm
    hu[below] = MUSCLE
    hu[inner] = FAT
    hu[inner & np.broadcast_to(space.x < 22.0 - 0.35 * space.y, hu.shape)] = LIVER
    stomach = inner & space.ellipsoid((58.0, -20.0, 26.0), (36.0, 40.0, 40.0))
    hu[stomach] = 15.0
    hu[stomach & (space.y < -36.0) & space.ellipsoid((58.0, -20.0, 26.0), (33.0, 37.0, 36.0))] = AIR
    hu[inner & space.ellipsoid((84.0, 36.0, 20.0), (30.0, 34.0, 42.0))] = 52.0


def _paint_mediastinum(hu: Field, space: Space, chest: Chest, rng: np.random.Generator) -> None:
    """Paint heart, great vessels, oesophagus and central airways in mediastinal fat."""
    above = chest.above_diaphragm >= 0.0
    inside = (chest.wall < 0.0) & above & ~chest.left & ~chest.right
    room = inside & (np.abs(space.x) < 46.0 + 30.0 * (space.z < 150.0))
    hu[room] = FAT + 15.0
    for hilum in HILA:
        hu[inside & space.ellipsoid(hilum, (16.0, 17.0, 22.0))] = 25.0
    hu[inside & chest.heart & (space.blur(chest.heart, 2.5) > 0.75)] = BLOOD  # a rim of fat remains
    spine = {z: float(_spine_y(np.array(z, dtype=np.float32))) for z in (-10, 60, 120, 150, 190, 310)}
    lift = rng.uniform(-5.0, 5.0)
    tubes: list[tuple[list[Point], float]] = [
        ([(6, -18, 120), (-10, -24, 155), (-9, -22, 190), (3, -8, 207 + lift), (17, 11, 209 + lift)], 13.5),
        ([(17, 11, 209 + lift), (24, spine[190] - 22, 194), (24, spine[150] - 20, 150)], 12.5),
        ([(24, spine[150] - 20, 150), (24, spine[120] - 20, 120), (20, spine[60] - 20, 60)], 11.5),
        ([(20, spine[60] - 20, 60), (10, spine[-10] - 20, -10)], 11.0),
        ([(-25, -10, 135), (-24, -12, 212), (-26, -16, 240), (-30, -6, 310)], 8.5),
        ([(-22, -14, 225), (14, -26, 232), (34, -14, 260), (36, -8, 310)], 6.0),
        ([(-2, -14, 208 + lift), (-14, -6, 240), (-18, 0, 310)], 6.0),
        ([(8, -4, 210 + lift), (15, 0, 250), (17, 4, 310)], 4.5),
        ([(17, 10, 210 + lift), (27, 12, 245), (38, 10, 290)], 5.0),
        ([(22, -32, 135), (20, -18, 160), (16, -8, 170)], 13.0),
        ([(16, -8, 168), (-12, 0, 166), (-42, 10, 162)], 9.5),
        ([(18, -10, 172), (34, 8, 178), (46, 16, 172)], 9.5),
        ([(4, 30, -10), (-2, spine[60] - 26, 60), (-2, spine[150] - 26, 150), (4, spine[190] - 24, 190)], 6.5),
        ([(4, spine[190] - 24, 190), (6, 24, 310)], 6.0),
    ]
    for line, radius in tubes:
        hu[space.tube(line, radius) & (inside | (chest.wall >= 0.0))] = BLOOD
    hu[(space.blur(chest.airway, 1.5) > 0.12) & inside] = 30.0  # a wall of about 1.5 mm
    hu[chest.airway] = AIR


def _paint_ribs(hu: Field, space: Space, wall: Field) -> None:
    """Paint the ribs: rings on the cage that fall from the spine to the front, where they turn to cartilage."""
    angle = np.arctan2(np.abs(space.x), space.y - 8.0)
    level = space.z + _RIB_DROP * (1.0 - np.cos(angle)) / 2.0
    up = (np.mod(level, _RIB_PITCH) - _RIB_PITCH / 2.0) * 0.88
    radius = np.hypot(up / 6.5, (wall - 7.5) / 3.8)
    rib = (radius < 1.0) & (np.abs(space.x) > 22.0) & (level < 292.0)
    hu[rib] = _CORTEX
    hu[rib & (radius < 0.7)] = _MARROW
    hu[rib & (angle > 2.35)] = _CARTILAGE


def _paint_spine(hu: Field, space: Space) -> None:
    """Paint vertebrae, discs, canal and processes."""
    x, y, z = space.x, space.y - _spine_y(space.z), space.z
    body = np.broadcast_to(_ellipse(x, y, 18.0, 14.5), hu.shape)
    place = np.mod(z, _RIB_PITCH)
    hu[body < 0.0] = _CORTEX
    hu[body < -2.5] = _MARROW
    hu[(body < 0.0) & (place < 5.0)] = 85.0  # disc
    arch = np.broadcast_to(_ellipse(x, y - 23.0, 14.0, 13.0), hu.shape)
    hu[(arch < 0.0) & (place > 6.0)] = 420.0
    transverse = (np.abs(x) > 10.0) & (np.abs(x) < 32.0) & (np.abs(y - 22.0 - 0.25 * np.abs(x)) < 4.5)
    hu[transverse & (np.abs(place - 15.0) < 6.0)] = 330.0
    spinous = (np.abs(x) < 3.5) & (y > 32.0) & (y < 48.0)
    hu[spinous & (np.abs(place - 12.0) < 8.0)] = 350.0
    hu[np.broadcast_to(_ellipse(x, y - 23.0, 9.0, 8.0) < 0.0, hu.shape)] = 15.0
    hu[np.broadcast_to(_ellipse(x, y - 23.0, 4.5, 4.0) < 0.0, hu.shape)] = 38.0


def _paint_sternum(hu: Field, space: Space) -> None:
    """Paint the breastbone, which leans forward downwards."""
    front = -86.0 + 30.0 * _rise(space.z, 120.0, 290.0)
    width = 15.0 + 9.0 * _rise(space.z, 185.0, 215.0)
    bone = np.broadcast_to(_ellipse(space.x, space.y - front, width, 6.5), hu.shape)
    there = (space.z > 95.0) & (space.z < 236.0)
    hu[there & (bone < 0.0)] = 400.0
    hu[there & (bone < -2.0)] = _MARROW - 60.0


def _paint_table(hu: Field, space: Space) -> None:
    """Paint the shell of the table under the patient, and its foam."""
    depth = space.y - 127.0 + (space.x / 62.0) ** 2 * 2.4
    wide = np.abs(space.x) < 176.0
    free = hu < AIR + 1.0
    hu[free & (depth > 0.0) & (depth < 22.0) & wide] = -960.0
    hu[free & (np.abs(depth) < 1.6) & wide] = -250.0
    hu[free & (np.abs(depth - 22.0) < 1.6) & wide] = -350.0
