"""Growing a trained decoder (vertical scaling), as data: which entry of which larger tensor comes
from where, what is exact about it, and what becomes of the optimizer's state.
"""
