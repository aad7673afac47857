"""Everything that learns: one loop (steps), fits of people on pictures (fit), many people (preoptimize), one (finetune)."""
