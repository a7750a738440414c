"""Plugins for other tools, each importing its tool only when that tool loads it."""
