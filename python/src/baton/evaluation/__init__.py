"""How often a model answers right. Importing this package loads nothing heavy."""
