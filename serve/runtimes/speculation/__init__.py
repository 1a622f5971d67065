"""Several tokens for one reading of the weights: something cheap guesses what comes next, and the model reads all
guesses at once and keeps them as far as it agrees.

A packed product of four rows costs little more than one of a single row, so every guess that is right is nearly free.
"""
