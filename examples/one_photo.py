"""One photograph to an identity file and pictures in three styles.

python examples/one_photo.py selfie.jpg pictures/
"""

import sys
from pathlib import Path

from hyperdreambooth import HyperDreamBooth

photo, folder = Path(sys.argv[1]), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)

booth = HyperDreamBooth.load("embedded")
person = booth.personalize(photo, progress=lambda now: print(f"{now.phase}: {now.done} of {now.total}"))
size = person.save(folder / f"{photo.stem}.safetensors", dtype="int8")
print(f"{person.numbers:,} numbers in {size:,} bytes")

for style in ("pencil sketch", "watercolor", "bronze statue"):
    for number, picture in enumerate(booth.generate(person, f"a {style} of a [V] face", count=2, seed=0)):
        picture.save(folder / f"{photo.stem}-{style.replace(' ', '-')}-{number}.png")
