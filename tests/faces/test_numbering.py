"""Numbered faces: boxes where the faces are, on the picture as it is."""

import torch

from hyperdreambooth.faces import FaceBox, number_faces, to_picture


def test_boxes_are_drawn_where_the_faces_are() -> None:
    picture = torch.full((3, 200, 300), 0.5)
    drawn = to_picture(number_faces(picture, [FaceBox(20, 40, 100), FaceBox(200, 60, 80)]))
    changed = (drawn - picture).abs().amax(dim=0) > 0.1
    assert drawn.shape == picture.shape
    assert changed[40, 25:115].all() and changed[60, 205:275].all()
    assert not changed[:38].any() and not changed[150:].any() and not changed[:, 130:195].any()
