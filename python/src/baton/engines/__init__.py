"""Inference engines behind one interface (`baton.engines.adapter`). Importing this package loads nothing heavy."""
