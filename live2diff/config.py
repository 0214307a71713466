"""Constants of the method (paper, section 4); sizes are those of the published checkpoint."""

WARMUP_FRAMES = 8  # the first frames of a stream, visible to every later frame
RECENT_FRAMES = 8  # latest frames that a later frame attends to, itself included
WINDOW = WARMUP_FRAMES + RECENT_FRAMES
POSITIONS = 24  # rows of the positional table; the window uses the first 16
TEMPORAL_HEADS = 8
MAX_DENOISING_STEPS = 4
