"""Synthetic people in every style, without any network: what the embedded base learns from.

python examples/styles.py sheet.png
"""

import sys

from hyperdreambooth.portraits.person import Person
from hyperdreambooth.portraits.renderer import render
from hyperdreambooth.portraits.styles import STYLES, stylize
from hyperdreambooth.portraits.view import View
from hyperdreambooth.sheet import contact_sheet, save_png, to_image

seeds = [15_000, 15_001, 15_002]
portraits = render([Person(seed) for seed in seeds], [View()] * len(seeds), size=128)  # (N, 3, 128, 128)
styled = [stylize(portraits, style) for style in STYLES]
rows = {f"seed {seed}": [to_image(pictures[row]) for pictures in styled] for row, seed in enumerate(seeds)}
save_png(sys.argv[1], contact_sheet(STYLES, rows, title="Three people who do not exist"))
