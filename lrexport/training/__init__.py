"""Training: the engine (devices, precision), the loop of one stage, schedules, BatchNorm re-estimation, scoring."""
