"""What is in a run's checkpoints, and how a run goes on from one; the hook that saves them is among the hooks."""
