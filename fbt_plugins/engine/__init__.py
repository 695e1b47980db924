"""One run: an mmengine Runner, its loops, its check, and what a run depends on."""
