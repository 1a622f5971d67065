"""int4 that has seen data: the integers and scales of every linear layer, chosen on calibration text, once for all
formats.
"""
