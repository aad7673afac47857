"""Photo to face: read any picture, find the face, frame it as the training pictures are, mask it softly."""

from hyperdreambooth.faces.finding import FaceBox, FaceCrop, crop_face, find_face
from hyperdreambooth.faces.mask import face_masks, soft_face_mask
from hyperdreambooth.faces.reading import read_picture, to_picture

__all__ = [
    "FaceBox",
    "FaceCrop",
    "crop_face",
    "face_masks",
    "find_face",
    "read_picture",
    "soft_face_mask",
    "to_picture",
]
