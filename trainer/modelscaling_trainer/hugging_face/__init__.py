"""Directories as Hugging Face's transformers reads and writes them: a model's configuration, its
weights as safetensors, its tokenizer. Nothing here imports transformers.
"""
