"""LightningModules of teacher and student, the objective that a student minimises, and the optimizer."""
