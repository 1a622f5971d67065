"""The vocabulary that every stage of Shearling shares.

`train`, `search`, `export` and `serve` import from here and never from each other; this package imports from none of
them. Importing it has no side effects and does not load torch.
"""

__version__ = "0.1.0"
