"""A parametric face drawn from facial action units with OpenCV.

Coordinates: "face units", the origin between eyes and nose, x to the right of the image, y down, the half-width of the
head is 1. Points lie on an ellipsoid that turns with the head, then go to pixels by a similarity transform.
Every part is drawn at twice the output's size and averaged down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

SUPERSAMPLING = 2
_SUBPIXEL = 3  # fractional bits of polygon corners
_NEUTRAL_SHADE = 128  # value of the shading map that leaves a colour as it is

Colour = tuple[float, ...]  # red, green, blue in 0..255


@dataclass(frozen=True)
class Identity:
    """What is a person's own: geometry in face units, colours as RGB in 0..255.

    Attributes:
        height: half-height of the head.
        jaw: width of the jaw against the cheekbones.
        eye_distance: half the distance of the eyes' centres.
        eye_width: half-width of an eye.
        eye_height: opening of a relaxed eye.
        brow_height: height of the brows over the eyes' centres.
        brow_weight: thickness of the brows.
        brow_tilt: how far the outer ends stand above the inner ones.
        nose_length: from the eyes to the nose tip.
        nose_width: half-width of the nose.
        mouth_y: height of the mouth under the origin.
        mouth_width: half-width of the relaxed mouth.
        lips: fullness of the lips.
        lip_slant: how far the relaxed lip corners lie below the lips' middle.
        skin: colour.
        hair: colour.
        iris: colour.
        clothes: colour.
        lip: colour.
        hair_length: 0 (short) to 1 (over the shoulders).
        fringe: how far hair covers the forehead.
        beard: darkness of the beard, 0 to 1.
        glasses: whether glasses are worn.
        resting: action units that this face shows at rest, by FACS number.
        expressivity: factor on the strength of every expression.
    """

    height: float
    jaw: float
    eye_distance: float
    eye_width: float
    eye_height: float
    brow_height: float
    brow_weight: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lips: float
    lip_slant: float
    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    lip: Colour
    hair_length: float
    fringe: float
    beard: float
    glasses: bool
    resting: dict[int, float]
    expressivity: float


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = np.clip(rgb, 0, 255).tolist()
    return red, green, blue


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draws a person."""
    # From light to dark along a line that real skin follows closely in RGB.
    depth = rng.uniform(0, 1)
    skin = (1 - depth) * np.array([236, 196, 172]) + depth * np.array([138, 92, 66])
    skin = skin + rng.normal(0, 4) + rng.normal(0, 2.5, 3)
    hairs = np.array(
        [[38, 28, 24], [72, 46, 30], [112, 76, 44], [176, 138, 88], [130, 128, 126], [120, 56, 32]]
    )
    dark_only = depth > 0.55
    hair = hairs[rng.integers(0, 2 if dark_only else len(hairs))] + rng.normal(0, 6, 3)
    irises = np.array([[70, 44, 28], [92, 64, 36], [84, 104, 84], [84, 116, 140]])
    iris = irises[rng.integers(0, 2 if dark_only else len(irises))]
    lip = skin * np.array([0.86, 0.60, 0.60]) + np.array([6, 2, 6]) * rng.uniform(0, 1)
    bearded = rng.random() < 0.2
    resting = {2: 0.15, 4: 0.12, 7: 0.15, 12: 0.1, 15: 0.12, 23: 0.15}
    return Identity(
        height=rng.uniform(1.22, 1.38),
        jaw=rng.uniform(0.66, 0.86),
        eye_distance=rng.uniform(0.39, 0.45),
        eye_width=rng.uniform(0.185, 0.22),
        eye_height=rng.uniform(0.125, 0.165),
        brow_height=rng.uniform(0.25, 0.31),
        brow_weight=rng.uniform(0.045, 0.085),
        brow_tilt=rng.uniform(-0.02, 0.06),
        nose_length=rng.uniform(0.46, 0.56),
        nose_width=rng.uniform(0.15, 0.21),
        mouth_y=rng.uniform(0.66, 0.74),
        mouth_width=rng.uniform(0.30, 0.38),
        lips=rng.uniform(0.7, 1.3),
        lip_slant=rng.normal(0.0, 0.015),
        skin=_colour(skin),
        hair=_colour(np.maximum(hair, 8)),
        iris=_colour(iris),
        clothes=_colour(rng.uniform(40, 180) + rng.normal(0, 30, 3)),
        lip=_colour(lip),
        hair_length=0.0 if bearded else float(rng.choice([0.0, 0.4, 1.0])),
        fringe=rng.uniform(0.0, 0.22),
        beard=rng.uniform(0.3, 0.8) if bearded else 0.0,
        glasses=bool(rng.random() < 0.12),
        resting={unit: float(rng.exponential(0.5) * size) for unit, size in resting.items()},
        expressivity=rng.uniform(0.9, 1.2),
    )


@dataclass(frozen=True)
class Scene:
    """What surrounds a face in one clip.

    Attributes:
        centre: position of the face's origin as a fraction (x, y) of the frame's size.
        scale: half-width of the head as a fraction of the frame's width.
        light: direction of the light, unit vector (x right, y down, z to the viewer).
        contrast: depth of the light's shading, 0 (flat) to 1.
        exposure: gain on all colours.
        warmth: gain on red against blue.
        backdrop: seed of the background.
    """

    centre: tuple[float, float]
    scale: float
    light: tuple[float, float, float]
    contrast: float
    exposure: float
    warmth: float
    backdrop: int


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws where the face is and how it is lit."""
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.9, -0.2), 1.0])
    return Scene(
        centre=(rng.uniform(0.46, 0.54), rng.uniform(0.45, 0.50)),
        scale=rng.uniform(0.25, 0.29),
        light=tuple(light / np.linalg.norm(light)),
        contrast=rng.uniform(0.25, 0.6),
        exposure=rng.uniform(0.85, 1.1),
        warmth=rng.uniform(0.94, 1.06),
        backdrop=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class Pose:
    """Head pose: yaw, pitch, roll in radians (positive: to the image's right, up, clockwise), shift in face units."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Speech:
    """Mouth of the moment: jaw opening and lip rounding in [0, 1]; gaze, the eyes' direction in [-1, 1] (x, y)."""

    jaw: float = 0.0
    rounding: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)


@cache
def _spline(points: int, steps: int) -> np.ndarray:
    """Weights of a Catmull-Rom spline through `points` points: float64 ((points - 1) * steps + 1, points)."""
    p = np.eye(points)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = (np.arange(steps) / steps)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, points), p[-2:-1]])


def _curve(points: Sequence[tuple[float, float]], steps: int = 6) -> np.ndarray:
    """Smooth curve through `points`: float64 (n, 2)."""
    return _spline(len(points), steps) @ np.array(points, float)


def _ellipse(x: float, y: float, width: float, height: float, corners: int = 14) -> np.ndarray:
    """Ellipse around (x, y) with half-axes `width` and `height`: float64 (corners, 2)."""
    return _circle(corners) * (width, height) + (x, y)


@cache
def _circle(corners: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


class _View:
    """The map from face units to pixels for one pose.

    Args:
        height: half-height of the head, face units.
        scene: where the face is.
        pose: of the head.
        pixels: width of the square image, pixels.
    """

    def __init__(self, height: float, scene: Scene, pose: Pose, pixels: int) -> None:
        self.unit = scene.scale * pixels  # pixels per face unit
        self._flatten = np.array([1.0, height**-2])
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        roll = np.array([[cos, -sin], [sin, cos]])
        turn = np.array(
            [
                [math.cos(pose.yaw), 0, math.sin(pose.yaw)],
                [0, math.cos(pose.pitch), -math.sin(pose.pitch)],
            ]
        )
        self._matrix = (self.unit * roll @ turn).T  # (3, 2)
        self._origin = np.array(scene.centre) * pixels + np.array(pose.shift) * self.unit

    def project(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Pixels float64 (n, 2) of `points` (n, 2) on the head; `lift` raises them off it towards the viewer."""
        depth = 0.85 * np.sqrt(np.maximum(0.0, 1 - (points * points) @ self._flatten)) + lift
        return points @ self._matrix[:2] + depth[:, None] * self._matrix[2] + self._origin

    def corners(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """`project` in OpenCV's fixed point: int32 (n, 2)."""
        return np.rint(self.project(points, lift) * (1 << _SUBPIXEL)).astype(np.int32)

    def fill(
        self, image: np.ndarray, points: np.ndarray, colour: Colour | float, lift: float = 0.0
    ) -> None:
        """Fills a polygon."""
        import cv2

        cv2.fillPoly(image, [self.corners(points, lift)], colour, cv2.LINE_AA, _SUBPIXEL)

    def stroke(
        self,
        image: np.ndarray,
        points: np.ndarray,
        colour: Colour | float,
        width: float,
        lift: float = 0.0,
    ) -> None:
        """Draws a line `width` face units wide."""
        import cv2

        thickness = max(1, round(width * self.unit))
        cv2.polylines(
            image, [self.corners(points, lift)], False, colour, thickness, cv2.LINE_AA, _SUBPIXEL
        )


@dataclass(frozen=True)
class Shape:
    """The moving parts in face units, from an identity, action units and speech.

    Attributes:
        brows: inner, middle and outer point of the right half's brow (the left one mirrors it), float64 (3, 2).
        upper_lid: height of the upper lid over the eye's centre.
        lower_lid: depth of the lower lid under the eye's centre.
        corner: the right lip corner (x, y).
        upper_lip: top of the upper lip at the middle, y.
        lower_lip: bottom of the lower lip at the middle, y.
        gap_top: upper edge of the mouth's opening at the middle, y.
        gap_bottom: lower edge of the mouth's opening at the middle, y.
        chin: y of the chin.
    """

    brows: np.ndarray
    upper_lid: float
    lower_lid: float
    corner: tuple[float, float]
    upper_lip: float
    lower_lip: float
    gap_top: float
    gap_bottom: float
    chin: float


def deform(identity: Identity, units: dict[int, float], speech: Speech = Speech()) -> Shape:
    """Moves the parts of a face.

    Args:
        identity: whose face.
        units: strength of action units in [0, 1] by FACS number; resting ones of the identity are added.
        speech: the articulation of the moment.
    """
    au = {
        n: min(1.3, units.get(n, 0.0) + identity.resting.get(n, 0.0))
        for n in units | identity.resting
    }

    def a(unit: int) -> float:
        return au.get(unit, 0.0)

    i = identity
    base = -0.12 - i.brow_height
    brows = np.array(
        [
            (
                i.eye_distance - 0.22 - 0.07 * a(4),
                base + i.brow_tilt / 2 - 0.15 * a(1) + 0.11 * a(4) + 0.04 * a(9) - 0.02 * a(2),
            ),
            (
                i.eye_distance + 0.02,
                base - 0.05 - 0.06 * a(1) - 0.12 * a(2) + 0.09 * a(4) + 0.02 * a(9),
            ),
            (i.eye_distance + 0.27, base + 0.05 - i.brow_tilt / 2 - 0.13 * a(2) + 0.03 * a(4)),
        ]
    )
    opening = i.eye_height * (
        1 + 0.55 * a(5) - 0.35 * a(7) - 0.12 * a(4) - 0.15 * a(9) - 0.1 * a(6)
    )
    lower = 0.45 * i.eye_height * (1 - 0.4 * a(7) - 0.6 * a(6) - 0.4 * a(9))
    shut = np.clip(a(45), 0, 1)
    upper = 0.58 * opening * (1 - shut) + shut * (0.02 - lower)

    jaw = 0.24 * a(26) + 0.17 * speech.jaw
    corner = (
        i.mouth_width
        * (
            1
            + 0.32 * a(12)
            + 0.30 * a(20)
            - 0.16 * a(23)
            - 0.06 * a(15)
            - 0.35 * speech.rounding
            - 0.1 * a(26)
        ),
        i.mouth_y
        + i.lip_slant
        - 0.15 * a(12)
        + 0.13 * a(15)
        + 0.03 * a(20)
        + 0.35 * jaw
        - 0.02 * a(17),
    )
    full = i.lips * (1 - 0.55 * a(23) + 0.2 * speech.rounding - 0.2 * a(12))
    gap_top = i.mouth_y - 0.08 * a(10) - 0.03 * a(25) - 0.03 * a(9) - 0.02 * a(17)
    gap_bottom = max(
        gap_top, i.mouth_y + 0.06 * a(25) + 0.07 * a(16) + jaw - 0.05 * a(17) - 0.02 * a(23)
    )
    return Shape(
        brows=brows,
        upper_lid=float(upper),
        lower_lid=float(lower),
        corner=corner,
        upper_lip=gap_top - 0.075 * full - 0.01 * a(10),
        lower_lip=gap_bottom + 0.105 * full - 0.02 * a(17),
        gap_top=gap_top,
        gap_bottom=gap_bottom,
        chin=i.height + 0.75 * jaw - 0.05 * a(17),
    )


class FaceRenderer:
    """Draws the frames of one clip.

    Args:
        identity: whose face.
        scene: surroundings and light.
        size: width and height of a frame, pixels.
    """

    def __init__(self, identity: Identity, scene: Scene, size: int) -> None:
        self.identity = identity
        self.scene = scene
        self.size = size
        self._canvas = size * SUPERSAMPLING

    def landmarks(
        self, units: dict[int, float], pose: Pose = Pose(), speech: Speech = Speech()
    ) -> dict[str, np.ndarray]:
        """Positions in the frame, pixels, float64 (n, 2): brows, eyes, lip_corners, lips (top, bottom), chin."""
        s, i = deform(self.identity, units, speech), self.identity
        points = {
            "brows": np.concatenate([s.brows, s.brows * (-1, 1)]),
            "eyes": np.array([(i.eye_distance, -0.12), (-i.eye_distance, -0.12)]),
            "lip_corners": np.array([s.corner, (-s.corner[0], s.corner[1])]),
            "lips": np.array([(0, s.upper_lip), (0, s.lower_lip)]),
            "chin": np.array([(0, s.chin)]),
        }
        view = self._view(pose, self.size)
        return {name: view.project(p) for name, p in points.items()}

    def render(
        self, units: dict[int, float], pose: Pose = Pose(), speech: Speech = Speech()
    ) -> np.ndarray:
        """Draws one frame.

        Args:
            units: strength of action units in [0, 1] by FACS number.
            pose: of the head.
            speech: articulation and gaze.

        Returns:
            uint8 (size, size, 3), RGB.
        """
        import cv2

        shape = deform(self.identity, units, speech)
        canvas = self._backdrop.copy()
        view = self._view(pose, self._canvas)
        torso = self._view(Pose(shift=(0.6 * pose.shift[0], 0.6 * pose.shift[1])), self._canvas)
        self._draw_head(canvas, shape, view, torso)
        shade = self._shading(shape, units, pose)
        canvas = cv2.multiply(
            canvas, cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB), scale=1 / _NEUTRAL_SHADE
        )
        for side in (-1, 1):
            self._draw_eye(canvas, shape, speech, view, side)
            self._draw_brow(canvas, shape, view, side)
        self._draw_nose(canvas, units, view)
        self._draw_mouth(canvas, shape, view)
        self._draw_hair(canvas, view)
        frame = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return cv2.LUT(frame, self._exposure)

    def empty(self) -> np.ndarray:
        """The scene without the face: uint8 (size, size, 3), RGB."""
        import cv2

        frame = cv2.resize(self._backdrop, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return cv2.LUT(frame, self._exposure)

    def _view(self, pose: Pose, pixels: int) -> _View:
        return _View(self.identity.height, self.scene, pose, pixels)

    def _outline(self, shape: Shape) -> np.ndarray:
        """The head's outline: an ellipse that narrows to the jaw; float64 (n, 2)."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        x, y = np.cos(angle), np.sin(angle)
        below = np.maximum(y, 0)
        x = x * (1 - (1 - self.identity.jaw) * below**2 * 0.9 * (1 - 0.3 * below))
        return np.stack([x, np.where(y > 0, y * shape.chin, y * self.identity.height)], axis=1)

    # What stays the same for a clip

    @cached_property
    def _exposure(self) -> np.ndarray:
        """Lookup table of light and colour balance: uint8 (256, 1, 3)."""
        gain = self.scene.exposure * np.array([self.scene.warmth, 1.0, 1 / self.scene.warmth])
        table = np.clip(np.arange(256)[:, None] * gain, 0, 255)
        return np.round(table).astype(np.uint8)[:, None, :]

    @cached_property
    def _backdrop(self) -> np.ndarray:
        """A blurred room: gradient, soft shapes, fine grain; uint8 (canvas, canvas, 3)."""
        import cv2

        rng = np.random.default_rng(self.scene.backdrop)
        n = self._canvas
        hue = rng.normal(0, 14, (2, 3))
        top, bottom = np.clip(rng.uniform(70, 210, (2, 1)) + hue, 20, 235)
        ramp = np.linspace(0, 1, n)[:, None, None]
        room = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (n, n, 3)).astype(np.uint8).copy()
        for _ in range(rng.integers(2, 6)):
            x, y = rng.integers(0, n, 2)
            w, h = rng.integers(n // 10, n // 3, 2)
            colour = _colour(rng.uniform(50, 210) + rng.normal(0, 20, 3))
            cv2.rectangle(room, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
        return cv2.GaussianBlur(room, (0, 0), n / 40)

    @cached_property
    def _light(self) -> np.ndarray:
        """Lambert shading of the head's ellipsoid around _NEUTRAL_SHADE: uint8 (96, 96) over [-1.2, 1.2] head sizes."""
        grid = np.linspace(-1.2, 1.2, 96)
        x, y = np.meshgrid(grid, grid)
        r = np.sqrt(x**2 + y**2)
        scale = np.where(r > 0.98, 0.98 / np.maximum(r, 1e-6), 1.0)
        normal = np.stack([x * scale, y * scale, np.sqrt(1 - np.minimum(r, 0.98) ** 2)])
        lambert = np.tensordot(np.asarray(self.scene.light), normal, 1)
        shade = 1 + self.scene.contrast * (np.clip(lambert, 0, 1) - 0.8)
        shade = 1 + (shade - 1) * np.clip((1.12 - r) / 0.12, 0, 1)  # fades out behind the head
        return np.clip(_NEUTRAL_SHADE * shade, 0, 255).astype(np.uint8)

    @cached_property
    def _eye_patch(self) -> np.ndarray:
        """An eyeball seen from the front, the iris in the middle, over [-1, 1] eye widths: uint8 (64, 64, 3)."""
        import cv2

        patch = np.full((64, 64, 3), (232, 228, 224), np.uint8)
        dark = tuple(0.55 * c for c in self.identity.iris)
        cv2.circle(patch, (32, 32), 18, dark, -1, cv2.LINE_AA)
        cv2.circle(patch, (32, 32), 15, self.identity.iris, -1, cv2.LINE_AA)
        cv2.circle(patch, (32, 32), 8, (14, 12, 12), -1, cv2.LINE_AA)
        cv2.circle(patch, (37, 26), 3, (250, 250, 250), -1, cv2.LINE_AA)
        return patch

    # Parts

    def _draw_head(self, canvas: np.ndarray, shape: Shape, view: _View, torso: _View) -> None:
        """Shoulders, neck, hair behind the head, ears and the head itself."""
        i = self.identity
        neck = np.array([(-0.5, 0.7), (0.5, 0.7), (0.52, 1.75), (-0.52, 1.75)])
        shoulders = _curve(
            [
                (-2.2, 3.0),
                (-1.7, 1.95),
                (-0.55, 1.55),
                (0, 1.75),
                (0.55, 1.55),
                (1.7, 1.95),
                (2.2, 3.0),
            ]
        )
        if i.hair_length > 0:
            length = 0.5 + 1.3 * i.hair_length
            back = _curve(
                [
                    (-0.95, length),
                    (-1.22, 0.2),
                    (-0.9, -1.05),
                    (0, -i.height - 0.2),
                    (0.9, -1.05),
                    (1.22, 0.2),
                    (0.95, length),
                ]
            )
            view.fill(canvas, back, tuple(0.7 * c for c in i.hair))
        torso.fill(canvas, neck, tuple(0.72 * c for c in i.skin))
        torso.fill(canvas, shoulders, i.clothes)
        for side in (-1, 1):
            ear = _ellipse(side * 1.0, 0.12, 0.13, 0.26)
            view.fill(canvas, ear, tuple(0.85 * c for c in i.skin))
        view.fill(canvas, self._outline(shape), i.skin)

    def _shading(self, shape: Shape, units: dict[int, float], pose: Pose) -> np.ndarray:
        """Soft light and shade of the skin, _NEUTRAL_SHADE leaves it alone: uint8 (canvas, canvas)."""
        import cv2

        i = self.identity
        coarse = self._canvas // 4  # it is soft, so a quarter of the resolution is enough
        view, flat = (
            self._view(pose, coarse),
            self._view(Pose(roll=pose.roll, shift=pose.shift), coarse),
        )
        corners = np.array(
            [(-1.2, -1.2 * i.height), (1.2, -1.2 * i.height), (-1.2, 1.2 * i.height)]
        )
        target = flat.project(corners).astype(np.float32)
        matrix = cv2.getAffineTransform(np.array([(0, 0), (95, 0), (0, 95)], np.float32), target)
        light = cv2.warpAffine(self._light, matrix, (coarse, coarse), borderValue=_NEUTRAL_SHADE)
        soft = np.full((coarse, coarse), _NEUTRAL_SHADE, np.uint8)

        def at(unit: int) -> float:
            return min(1.0, units.get(unit, 0.0) + i.resting.get(unit, 0.0))

        if i.beard:
            beard = _curve(
                [
                    (-0.86, 0.35),
                    (-0.45, 0.5),
                    (0, 0.5),
                    (0.45, 0.5),
                    (0.86, 0.35),
                    (0.62, 1.0),
                    (0, shape.chin - 0.02),
                    (-0.62, 1.0),
                    (-0.86, 0.35),
                ]
            )
            view.fill(soft, beard, _NEUTRAL_SHADE * (1 - 0.6 * i.beard))
        # Forehead: raised brows fold it.
        for row in range(3):
            fold = 0.5 * (at(1) + at(2))
            if fold > 0.15:
                y = -0.62 - 0.1 * row
                view.stroke(
                    soft,
                    _curve([(-0.5, y + 0.03), (0, y), (0.5, y + 0.03)]),
                    _NEUTRAL_SHADE * (1 - 0.35 * fold),
                    0.03,
                )
        for side in (-1, 1):
            eye = _ellipse(side * i.eye_distance, -0.15, 0.27, 0.17)
            view.fill(soft, eye, 88)
            cheek = _ellipse(side * 0.5, 0.3 - 0.08 * at(6), 0.24, 0.17)
            view.fill(soft, cheek, 138 + 16 * max(at(6), 0.6 * at(12)))
            fold = max(at(12), at(9), 0.8 * at(10), 0.5 * at(6))
            x, y = shape.corner
            line = [
                (i.nose_width + 0.05, i.nose_length - 0.2),
                (max(x, 0.3) + 0.02, 0.5 * (i.nose_length + y) - 0.05),
                (x + 0.1, y),
            ]
            view.stroke(soft, _curve([(side * px, py) for px, py in line]), 118 - 44 * fold, 0.05)
            if at(15) > 0.1:  # pouch under the drawn-down corner
                view.stroke(
                    soft,
                    np.array([(side * (x + 0.03), y), (side * (x + 0.07), y + 0.12)]),
                    120 - 40 * at(15),
                    0.06,
                )
            if at(4) > 0.1:  # vertical furrow between the brows
                view.stroke(
                    soft,
                    np.array([(side * 0.07, -0.5), (side * 0.06, -0.3)]),
                    124 - 46 * at(4),
                    0.03,
                )
            if at(9) > 0.1:
                for y in (-0.12, -0.02):
                    view.stroke(
                        soft,
                        np.array([(side * 0.02, y - 0.05), (side * 0.13, y)]),
                        124 - 56 * at(9),
                        0.03,
                        0.15,
                    )
            # Side of the nose away from the middle.
            view.stroke(
                soft,
                np.array([(side * 0.1, -0.15), (side * 0.14, i.nose_length - 0.25)]),
                112,
                0.06,
                0.1,
            )
        ridge = np.array([(0, -0.25), (0, i.nose_length - 0.22)])
        view.stroke(soft, ridge, 150, 0.09, 0.15)
        view.fill(soft, _ellipse(0, shape.lower_lip + 0.06, 0.22, 0.035), 108)
        if at(17) > 0.1:
            view.fill(soft, _ellipse(0, shape.chin - 0.22, 0.2, 0.09), 128 - 34 * at(17))
        blurred = cv2.GaussianBlur(soft, (0, 0), 0.08 * view.unit)
        shade = cv2.multiply(light, blurred, scale=1 / _NEUTRAL_SHADE)
        return cv2.resize(shade, (self._canvas, self._canvas), interpolation=cv2.INTER_LINEAR)

    def _draw_eye(
        self, canvas: np.ndarray, shape: Shape, speech: Speech, view: _View, side: int
    ) -> None:
        import cv2

        i = self.identity
        cx, cy, w = side * i.eye_distance, -0.12, i.eye_width
        inner, outer = (cx - side * w, cy + 0.02), (cx + side * w, cy - 0.01)
        top = _curve(
            [
                inner,
                (cx - side * 0.45 * w, cy - 0.85 * shape.upper_lid),
                (cx + side * 0.25 * w, cy - shape.upper_lid),
                outer,
            ],
            5,
        )
        bottom = _curve(
            [
                outer,
                (cx + side * 0.3 * w, cy + shape.lower_lid),
                (cx - side * 0.4 * w, cy + 0.85 * shape.lower_lid),
                inner,
            ],
            5,
        )
        if shape.upper_lid + shape.lower_lid > 0.015:
            opening = view.corners(np.concatenate([top, bottom]))
            x, y, width, height = cv2.boundingRect(opening >> _SUBPIXEL)
            x, y = max(0, x - 1), max(0, y - 1)
            region = canvas[y : y + height + 3, x : x + width + 3]
            if region.size:
                corners = np.array([(cx - w, cy - w), (cx + w, cy - w), (cx - w, cy + w)])
                corners = corners + 0.25 * w * np.asarray(speech.gaze)
                target = (view.project(corners) - (x, y)).astype(np.float32)
                matrix = cv2.getAffineTransform(
                    np.array([(0, 0), (63, 0), (0, 63)], np.float32), target
                )
                ball = cv2.warpAffine(
                    self._eye_patch,
                    matrix,
                    region.shape[1::-1],
                    flags=cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                mask = np.zeros(region.shape[:2], np.uint8)
                cv2.fillPoly(
                    mask,
                    [opening - np.array([x, y], np.int32) * (1 << _SUBPIXEL)],
                    255,
                    cv2.LINE_8,
                    _SUBPIXEL,
                )
                cv2.copyTo(ball, mask, region)
        lash = tuple(0.25 * c for c in i.skin)
        view.stroke(canvas, top, lash, 0.045)
        view.stroke(canvas, bottom, tuple(0.62 * c for c in i.skin), 0.02)
        crease = top * (1.0, 1.0) - (0, 0.06)
        view.stroke(canvas, crease, tuple(0.66 * c for c in i.skin), 0.018)
        if i.glasses:
            rim = _ellipse(cx, cy + 0.03, 0.31, 0.24, 20)
            view.stroke(canvas, np.concatenate([rim, rim[:1]]), (40, 36, 36), 0.025, 0.1)
            view.stroke(
                canvas, np.array([(side * 0.12, cy), (0, cy - 0.02)]), (40, 36, 36), 0.025, 0.2
            )

    def _draw_brow(self, canvas: np.ndarray, shape: Shape, view: _View, side: int) -> None:
        i = self.identity
        line = _curve([tuple(p) for p in shape.brows * (side, 1)], 5)
        weight = i.brow_weight * np.interp(
            np.linspace(0, 1, len(line)), [0, 0.3, 1], [0.8, 1.0, 0.25]
        )
        brow = np.concatenate(
            [
                line - np.stack([0 * weight, weight / 2], 1),
                (line + np.stack([0 * weight, weight / 2], 1))[::-1],
            ]
        )
        colour = tuple(0.75 * h + 0.1 * s for h, s in zip(i.hair, i.skin, strict=True))
        view.fill(canvas, brow, colour)

    def _draw_nose(self, canvas: np.ndarray, units: dict[int, float], view: _View) -> None:
        i = self.identity
        up = 0.04 * units.get(9, 0.0) + 0.015 * units.get(10, 0.0)
        y, w = i.nose_length - 0.14 - up, i.nose_width * (1 + 0.12 * units.get(9, 0.0))
        dark = tuple(0.42 * c for c in i.skin)
        shadow = tuple(0.68 * c for c in i.skin)
        base = _curve(
            [
                (-w, y - 0.06),
                (-0.7 * w, y + 0.05),
                (0, y + 0.07),
                (0.7 * w, y + 0.05),
                (w, y - 0.06),
            ]
        )
        view.stroke(canvas, base, shadow, 0.025, 0.12)
        for side in (-1, 1):
            nostril = _ellipse(side * 0.5 * w, y + 0.025, 0.05, 0.025)
            view.fill(canvas, nostril, dark, 0.12)

    def _draw_mouth(self, canvas: np.ndarray, shape: Shape, view: _View) -> None:
        i = self.identity
        (x, y), s = shape.corner, shape
        right, left = (x, y), (-x, y)

        def between(height: float, share: float) -> float:
            return y + share * (height - y)

        outer_top = [
            left,
            (-0.5 * x, between(s.upper_lip, 0.78)),
            (-0.16 * x, s.upper_lip - 0.012),
            (0, s.upper_lip + 0.012),
            (0.16 * x, s.upper_lip - 0.012),
            (0.5 * x, between(s.upper_lip, 0.78)),
            right,
        ]
        outer_bottom = [
            right,
            (0.5 * x, between(s.lower_lip, 0.8)),
            (0, s.lower_lip),
            (-0.5 * x, between(s.lower_lip, 0.8)),
            left,
        ]
        inner_top = _curve(
            [
                left,
                (-0.5 * x, between(s.gap_top, 0.8)),
                (0, s.gap_top),
                (0.5 * x, between(s.gap_top, 0.8)),
                right,
            ]
        )
        inner_bottom = _curve(
            [
                right,
                (0.5 * x, between(s.gap_bottom, 0.8)),
                (0, s.gap_bottom),
                (-0.5 * x, between(s.gap_bottom, 0.8)),
                left,
            ]
        )
        top, bottom = _curve(outer_top, 4), _curve(outer_bottom, 5)
        view.fill(canvas, np.concatenate([top, inner_top[::-1]]), tuple(0.9 * c for c in i.lip))
        view.fill(canvas, np.concatenate([inner_bottom, bottom[::-1]]), i.lip)
        gap = s.gap_bottom - s.gap_top
        if gap > 0.015:
            view.fill(canvas, np.concatenate([inner_top, inner_bottom]), (58, 22, 24))
            # Upper teeth show in the opening's upper part.
            edge = inner_top.copy()
            edge[:, 1] += np.minimum(0.075, 0.6 * gap) * (1 - (edge[:, 0] / x) ** 2)
            inside = np.abs(inner_top[:, 0]) < 0.85 * x
            teeth = np.concatenate([inner_top[inside], edge[inside][::-1]])
            view.fill(canvas, teeth, (226, 220, 210))
        else:
            view.stroke(canvas, inner_top, tuple(0.45 * c for c in i.lip), 0.02)

    def _draw_hair(self, canvas: np.ndarray, view: _View) -> None:
        """Hair on top of the head, over the forehead's upper edge."""
        i = self.identity
        top, line = -i.height - 0.14, -0.98 * i.height + 0.24 + i.fringe
        hair = _curve(
            [
                (-1.05, 0.0),
                (-1.12, -0.6),
                (-0.7, top + 0.2),
                (0, top),
                (0.7, top + 0.2),
                (1.12, -0.6),
                (1.05, 0.0),
                (0.93, -0.35),
                (0.7, line + 0.06),
                (0.15, line),
                (-0.4, line + 0.04),
                (-0.88, -0.42),
                (-1.05, 0.0),
            ]
        )
        view.fill(canvas, hair, i.hair)
        sheen = tuple(min(255.0, 1.3 * c + 12) for c in i.hair)
        for x in (-0.55, -0.25, 0.1, 0.4):
            strand = _curve(
                [(x, top + 0.16), (x - 0.08, 0.5 * (top + line)), (x - 0.02, line - 0.06)]
            )
            view.stroke(canvas, strand, sheen, 0.015)
