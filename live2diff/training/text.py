"""The nano model's text side: a tokenizer of its own, a small CLIP text encoder, and the prompts it is
trained on."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..styles import STYLES

# Everyday words for each style; every phrase is trained in every position of a prompt.
SYNONYMS = {
    "pencil": [
        "pencil",
        "pencil drawing",
        "pencil sketch",
        "graphite sketch",
        "sketch",
        "hand drawn in pencil",
    ],
    "ink": ["ink", "ink wash", "ink wash painting", "sumi ink", "chinese ink painting", "brush and ink"],
    "watercolour": ["watercolour", "watercolour painting", "watercolor", "watercolor painting", "aquarelle"],
    "comic": ["comic", "comic book", "comic book picture", "cartoon", "graphic novel", "pop art"],
    "neon": ["neon", "neon lights", "glowing neon lights", "neon glow", "cyberpunk neon", "glowing lines"],
    "oil": ["oil", "oil painting", "oil paint", "oil on canvas", "impasto", "van gogh"],
    "pixel": ["pixel", "pixel art", "8 bit pixel art", "retro game", "video game", "8 bit"],
    "woodcut": ["woodcut", "woodcut print", "wood engraving", "engraving", "linocut", "block print"],
    "blueprint": [
        "blueprint",
        "white on blue blueprint",
        "technical drawing",
        "cyanotype plan",
        "construction plan",
    ],
}
MIXTURES = [
    "half {one}, half {other}, {subject}",
    "half {one} half {other} {subject}",
    "{subject}, {one} and {other}",
    "a mix of {one} and {other}, {subject}",
    "{one} mixed with {other}, {subject}",
]
SUBJECTS = """man woman person girl boy child face portrait astronaut dog cat bird horse tree flower garden
forest mountain lake sea beach street city house room kitchen desk chair table window car bus train bicycle
motorcycle boat rocket cup of coffee book phone computer guitar hat glasses hair beard smile hands temple
tower bridge sky clouds night sunset rain snow friends family dancer musician chef teacher old young happy sad
walking sitting talking dancing waving red green blue yellow black white bright dark colourful beautiful
detailed masterpiece best quality in the at a an on with and of mix mixed half""".split()
FRAMES = [
    "{style}, {subject}",
    "a {style} of {subject}",
    "{subject}, {style}",
    "{subject} as {style}",
    "{style}",
]


def sample_subject(random: np.random.Generator) -> str:
    """A few content words in random order; most of them say nothing about the picture, and must do no
    harm."""
    return " ".join(random.choice(SUBJECTS, random.integers(1, 7)))


def sample_prompt(random: np.random.Generator, style: str) -> str:
    """A prompt that asks for `style`: half of the time the preset's own wording, if it has a preset yet, free
    wording otherwise."""
    subject = sample_subject(random)
    if style in STYLES and random.random() < 0.5:
        return STYLES[style].prompt(subject if random.random() < 0.6 else "")
    frame = FRAMES[random.integers(len(FRAMES))]
    phrase = SYNONYMS[style][random.integers(len(SYNONYMS[style]))]
    return frame.format(style=phrase, subject=subject)


def sample_mixture(random: np.random.Generator, first: str, second: str) -> str:
    """A prompt that asks for equal parts of two styles."""
    one, other = (SYNONYMS[style][random.integers(len(SYNONYMS[style]))] for style in (first, second))
    subject = sample_subject(random) if random.random() < 0.5 else ""
    return MIXTURES[random.integers(len(MIXTURES))].format(one=one, other=other, subject=subject).strip(" ,")


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a byte-level BPE in CLIP's layout (lower case, `</w>` at the end of a word) on the words
    above."""
    words = " ".join([*SUBJECTS, *[phrase for phrases in SYNONYMS.values() for phrase in phrases]])
    texts = [words] * 10 + [style.prompt(words) for style in STYLES.values() if not style.has_weights]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict.fromkeys([*sorted(alphabet), *[f"{letter}</w>" for letter in sorted(alphabet)]])
    vocabulary.update(dict.fromkeys(sorted(state["vocab"], key=state["vocab"].get)))
    vocabulary.update(dict.fromkeys(["<|startoftext|>", "<|endoftext|>"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in state["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder for `tokenizer`: width 64, three layers, of which `clip_skip` 1 leaves out
    the last."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)
