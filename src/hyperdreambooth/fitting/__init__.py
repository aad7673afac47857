"""Everything that learns: one loop (steps); fits to pictures (fit), of many people (preoptimize), of one (finetune)."""
