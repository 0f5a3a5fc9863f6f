"""What matters (criteria over collected statistics) and how many (budgets); when is the callbacks' business."""
