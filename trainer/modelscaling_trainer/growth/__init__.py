"""Growing the tensors of a run: filling them, and training what has grown."""
