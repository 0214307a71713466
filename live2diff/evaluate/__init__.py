"""How good is the output? `python -m live2diff.evaluate CLIP ...`; `figures.py` says what is measured."""
