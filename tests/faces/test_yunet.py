"""YuNet's points become the box that the cascades would give; its file is not here, so that its answers are made up."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from hyperdreambooth.errors import BadFile
from hyperdreambooth.faces import yunet
from hyperdreambooth.faces.boxes import FFHQ_CENTRE, FFHQ_EYES, FFHQ_SIDE
from hyperdreambooth.faces.yunet import YuNet


class Stub:
    """Sees one face, framed as FFHQ's in a frame of 200 pixels whose corner is (100, 50); the picture is halved."""

    def detect(self, pixels: np.ndarray) -> tuple[int, np.ndarray]:
        assert pixels.shape == (320, 640, 3) and pixels.dtype == np.uint8
        assert pixels[0, 0].tolist() == [255, 0, 0]  # blue comes first
        eyes = [(100 + 200 * x, 50 + 200 * y) for x, y in FFHQ_EYES]
        mouth_below = (0.5 - FFHQ_EYES[0][1]) / 0.1 * 200  # so that FFHQ's middle, a tenth towards it, is the frame's
        mouth = [(x, eyes[0][1] + mouth_below) for x in (180.0, 220.0)]
        points = [*eyes, (200.0, 170.0), *mouth]
        return 1, np.array([[0, 0, 1, 1, *np.ravel(points), 0.9]], dtype=np.float32)


def test_points_become_ffhqs_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "yunet.onnx"
    file.write_bytes(b"a network")
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_: Stub())
    picture = torch.zeros(3, 640, 1280)
    picture[2] = 1.0  # blue
    (box,) = YuNet(file)(picture)
    assert box.side == pytest.approx(2 * FFHQ_SIDE * 200, rel=0.01)
    assert box.centre == pytest.approx((2 * (100 + FFHQ_CENTRE[0] * 200), 2 * (50 + FFHQ_CENTRE[1] * 200)), abs=2)
    assert box.eyes is not None and box.eyes.tilt == pytest.approx(0)


def test_it_may_be_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[object, ...]]()
    monkeypatch.setattr(yunet, "download", lambda *given: asked.append(given) or tmp_path)
    with pytest.raises(BadFile, match=r"org/faces, which holds no face_detection_yunet\*\.onnx"):
        YuNet("org/faces")
    for name in ("face_detection_yunet_2023mar_int8.onnx", "face_detection_yunet_2023mar.onnx"):
        (tmp_path / name).write_bytes(b"a network")
    opened = list[str]()
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda file, *_: opened.append(file) or Stub())
    YuNet("org/faces@main")
    assert opened == [str(tmp_path / "face_detection_yunet_2023mar.onnx")]
    assert asked == [(name, ["face_detection_yunet*.onnx"], BadFile) for name in ("org/faces", "org/faces@main")]
    with pytest.raises(BadFile, match="no file"):
        YuNet("models/yunet.onnx")  # a path that is not there


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "yunet.onnx"
    with pytest.raises(BadFile, match="no file"):
        YuNet(file)
    file.write_bytes(b"hello")
    with pytest.raises(BadFile, match="cannot open"):
        YuNet(file)
