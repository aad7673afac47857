"""People to and from other programs: LoRA files, whole models, the hub."""
