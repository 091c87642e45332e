"""What stands around a recurrence, in one pass each: norms, gates, shifts, rotations, packed and grouped products."""
