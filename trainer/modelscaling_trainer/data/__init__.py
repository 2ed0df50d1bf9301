"""From text files to the tokens that a step is computed on."""
