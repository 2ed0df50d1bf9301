"""The agent: the first process of every pod. It starts the workers, obeys the operator and tells
how the run goes. It never imports torch, so that it answers while its workers are busy.
"""
