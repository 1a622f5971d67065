"""Pruning a pretrained transformer: criteria that choose weights, patterns that say where zeros may stand."""
