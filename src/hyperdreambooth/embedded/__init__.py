"""What ships with the package: base, hypernetwork, judges, face verifier, a picture to try; see the model cards."""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
HYPERNETWORK = FOLDER / "hypernetwork" / "hypernetwork.safetensors"
INDEPENDENT_NETWORK = FOLDER / "independent" / "independent.safetensors"  # of an ablation; it need not be there
E4T_NETWORK = FOLDER / "e4t" / "e4t.safetensors"
JUDGES = FOLDER / "judges"
FACE_VERIFIER = FOLDER / "faces" / "verifier.safetensors"
DEMO_PHOTO = FOLDER / "demo" / "reference.png"
