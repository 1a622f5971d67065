"""Weights on a grid of integers: one matrix rounded on what enters it, and all matrices of a model, layer by layer.

For the export, which rounds a finished model, and for the training, which stays on the grid.
"""
