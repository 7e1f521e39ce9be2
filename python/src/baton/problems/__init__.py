"""Problems and prompts, from files to tokens. Importing this package loads nothing heavy."""
