"""The trainer: an agent and its worker processes. Importing it imports no torch."""
