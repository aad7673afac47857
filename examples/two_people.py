"""Two people fitted in one batch, drawn in one batch, and a third between them, on one sheet.

python examples/two_people.py alice.jpg bob.jpg sheet.png
"""

import sys

from hyperdreambooth import HyperDreamBooth, PersonalizeConfig, mix
from hyperdreambooth.sheet import contact_sheet, save_png

first, second, output = sys.argv[1:]

booth = HyperDreamBooth.load("embedded")
work = booth.personalizing([first, second], PersonalizeConfig(steps=40, noises=2))
for report in work:
    print(f"{report.phase}: {report.done} of {report.total}")
alice, bob = work.identities
people = {"alice": alice, "between": mix(alice, bob, 0.5, booth.space), "bob": bob}

# As many people as prompts are pairs: one batch through the U-Net, each row of it wearing a person of its own.
prompts = ["a [V] face", "a watercolor of a [V] face", "a [V] face in the snow"]
pairs = [(person, prompt) for person in people.values() for prompt in prompts]
pictures = booth.generate([person for person, _ in pairs], [prompt for _, prompt in pairs])
rows = {name: pictures[3 * row : 3 * row + 3] for row, name in enumerate(people)}
save_png(output, contact_sheet(prompts, rows))
