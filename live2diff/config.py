"""The constants of the method, each once (paper, section 4; sizes as in the published checkpoint)."""

WARMUP_FRAMES = 8  # frames that open a stream and stay visible to every later one
RECENT_FRAMES = 8  # a later frame sees this many of the latest frames, itself included
WINDOW = WARMUP_FRAMES + RECENT_FRAMES
POSITIONS = 24  # length of the positional table, of which the window uses the first 16
TEMPORAL_HEADS = 8
MAX_DENOISING_STEPS = 4
