"""LightningModules of teacher and student; what they minimize is in `training/objective.py`."""
