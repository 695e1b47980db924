"""Many runs as one Optuna study."""
