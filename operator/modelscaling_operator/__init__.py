"""The operator: decides who trains together, owns the run's pods, and tells their agents."""
