"""Faces by YuNet, a small network that OpenCV runs; its file is not part of OpenCV's wheel, nor of this package."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from hyperdreambooth.errors import BadFile
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_SIDE, Eyes, FaceBox, by_choice
from hyperdreambooth.hub import download, is_hub_id

LONGEST = 640
"""Longer side, in pixels, of the copy that the network looks at."""

SURE = 0.7
"""Score, 0 to 1, from which a face is one."""

_EXPECTED = "expected a YuNet model, as face_detection_yunet_2023mar.onnx of OpenCV's model zoo"
_PATTERN = "face_detection_yunet*.onnx"  # in a repository of the hub; the plain one has the shortest name


class YuNet:
    """A detector for `locate_face`; one may be sent to other processes.

    Args:
        file: the network, an ONNX file, or an id of the hub, such as OpenCV's own "opencv/face_detection_yunet".

    Raises:
        BadFile: there is none, or it is not YuNet. DiskFull, WorkError: while fetching.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = _found(str(file))
        self._network(64, 64)

    def __call__(self, picture: Tensor) -> list[FaceBox]:
        """The faces of a picture (3, H, W) in [0, 1] with their eyes, the largest and most central first."""
        height, width = picture.shape[1:]
        pixels = (picture.permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).round().byte().cpu().numpy()[:, :, ::-1]  # BGR
        scale = min(1.0, LONGEST / max(height, width))
        if scale < 1.0:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        _, rows = self._network(pixels.shape[1], pixels.shape[0]).detect(np.ascontiguousarray(pixels))
        boxes = [] if rows is None else [_box(row / scale) for row in rows]
        return by_choice(boxes, width, height)

    @property
    def digest(self) -> str:
        """Of the file: faces that another network finds are cut otherwise."""
        with self._file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _network(self, width: int, height: int) -> cv2.FaceDetectorYN:
        """Opened anew each time, in some milliseconds: an instance may not be shared by threads."""
        try:
            return cv2.FaceDetectorYN.create(str(self._file), "", (width, height), SURE)
        except cv2.error as error:
            raise BadFile(f"got {self._file}, which OpenCV cannot open, {_EXPECTED}: download it anew") from error


def _found(name: str) -> Path:
    """The file of a path, or of an id of the hub."""
    if Path(name).is_file():
        return Path(name)
    if not is_hub_id(name):
        raise BadFile(f"got {name}, where there is no file, {_EXPECTED}: check the path")
    files = sorted(download(name, [_PATTERN], BadFile).glob(_PATTERN), key=lambda path: len(path.name))
    if not files:
        raise BadFile(f"got {name}, which holds no {_PATTERN}, {_EXPECTED}: check the name")
    return files[0]


def _box(row: np.ndarray) -> FaceBox:
    """The box that the cascades would give, of YuNet's row: 4 numbers of its box, then 5 points (x, y), the score.

    FFHQ's alignment makes a frame of eyes and mouth; the cascades' box has a known place in that frame.
    """
    points = row[4:14].reshape(5, 2).astype(float)  # eyes, the picture's left one first, nose, mouth's corners
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    across, down = points[1] - points[0], mouth - eyes
    upright = across + np.array([down[1], -down[0]])  # FFHQ: across, and down turned by a quarter
    upright /= max(float(np.hypot(*upright)), 1e-6)
    frame = 2 * max(2.0 * math.hypot(*across), 1.8 * math.hypot(*down))  # side of FFHQ's square
    right, below = upright, np.array([-upright[1], upright[0]])
    from_middle = [(share - 0.5) * frame for share in FFHQ_CENTRE]
    x, y = eyes + 0.1 * down + from_middle[0] * right + from_middle[1] * below
    side = FFHQ_SIDE * frame
    left_eye, right_eye = ((float(a), float(b)) for a, b in points[:2])
    return FaceBox(float(x) - side / 2, float(y) - side / 2, side, Eyes(left_eye, right_eye))
