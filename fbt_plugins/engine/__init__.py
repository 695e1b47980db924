"""The engine: an mmengine Runner and its hooks, configs and their check, precision, metrics, files of a run."""
