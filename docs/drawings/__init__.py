"""Drawings of the deep dive: one module for each SVG file of this folder, ``python docs/draw.py`` writes them."""
