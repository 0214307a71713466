"""The nano model's text side: a tokenizer of its own, a small CLIP text encoder, and the prompts it is
trained on."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers
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
    """The tokenizer in `folder`; if there is none, a new one: byte pairs in CLIP's layout (lower case, `</w>`
    at the end of a word), learnt from the words above, the same ones each time."""
    if not (folder / "vocab.json").exists():
        phrases = [*SUBJECTS, *MIXTURES, *FRAMES]
        phrases += [phrase for synonyms in SYNONYMS.values() for phrase in synonyms]
        phrases += [style.prompt("") for style in STYLES.values() if not style.has_weights]
        words = re.sub(r"\{\w+\}", " ", " ".join(phrases).lower())
        merges = byte_pairs(re.findall(r"[a-z]+|[0-9]", words))
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*alphabet, *[f"{letter}</w>" for letter in alphabet], *map("".join, merges)]
        numbered = {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False))
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def byte_pairs(words: list[str]) -> list[tuple[str, str]]:
    """The pairs that byte-pair encoding merges, in order, until each word is one token. The `tokenizers`
    package breaks ties at random: what a model has learnt would not be understood after the next start."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    counts, merges = Counter(words), []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for pieces in spelled.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i : i + 2] = ["".join(best)]
                i += 1


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
