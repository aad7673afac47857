"""Which synthetic people train, tune and report, by their seeds; from 1,000,000 up they are for others to judge by."""

TRAINING = range(15_000)
TUNING = range(15_000, 15_900)
REPORTING = range(15_900, 16_000)
