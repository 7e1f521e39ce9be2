"""The Python halves of `baton bench`: clients of the product, and the peers it is measured against."""
