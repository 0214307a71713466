"""Measure how good the output is: `python -m live2diff.evaluation CLIP ...`."""
