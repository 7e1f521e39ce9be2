"""The wire between the controller and its clients: messages, frames, arrays.

Engine workers import this package, so it needs msgspec, numpy and the standard library, and nothing else.
"""
