"""Optuna-driven search over image tokenizers, scheduled by Ray Tune."""
