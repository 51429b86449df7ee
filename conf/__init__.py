"""Hydra configuration: models, tasks, methods and the defaults of a run."""
