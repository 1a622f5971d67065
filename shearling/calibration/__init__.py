"""A model on calibration text: windows of tokens, hidden states layer by layer, Gram matrices, and how far two models'
predictions are apart.
"""
