"""Which learner learns most from the same executions, and are its budgets kept? Stored answers, replayed."""
