"""Answers to problems, and whether they are right. Importing this package loads nothing heavy."""
