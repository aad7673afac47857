"""Photo to face: read any picture, find the face, frame it as the training pictures are, mask it softly."""

from hyperdreambooth.faces.boxes import Eyes, FaceBox
from hyperdreambooth.faces.eyes import find_eyes
from hyperdreambooth.faces.finding import Detector, find_face, find_faces
from hyperdreambooth.faces.framing import FaceCrop, LocatedFace, crop_face, locate_face
from hyperdreambooth.faces.many import CutFaces, cut_people, enough_for, in_order
from hyperdreambooth.faces.mask import face_masks, soft_face_mask
from hyperdreambooth.faces.numbering import number_faces
from hyperdreambooth.faces.reading import picture_size, read_encoded, read_picture, to_picture

__all__ = [
    "CutFaces",
    "Detector",
    "Eyes",
    "FaceBox",
    "FaceCrop",
    "LocatedFace",
    "crop_face",
    "cut_people",
    "enough_for",
    "face_masks",
    "find_eyes",
    "find_face",
    "find_faces",
    "in_order",
    "locate_face",
    "number_faces",
    "picture_size",
    "read_encoded",
    "read_picture",
    "soft_face_mask",
    "to_picture",
]
