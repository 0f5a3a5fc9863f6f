"""A finished run's student as files that other programs load: each with a record of its origin."""
