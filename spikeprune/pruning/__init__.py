"""Statistics, criteria, schedules, mask search, time steps and the budget: which units are removed, as functions of a
student and its batches. No Lightning here: the epochs of decisions belong to `training/callbacks`."""
