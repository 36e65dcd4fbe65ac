"""Training: the engine (devices, processes, precision), the loop of one stage, optimisers, checkpoints, loggers."""
