"""Many runs as one Optuna study, shared by processes and machines."""
