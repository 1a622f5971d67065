"""Recipes: what a run is made of, a module for each section."""
