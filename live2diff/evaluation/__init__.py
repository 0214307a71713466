"""How good is the output? `python -m live2diff.evaluation CLIP ...`; `figures.py` says what is measured."""
