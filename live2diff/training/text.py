"""The nano model's tokenizer, small CLIP text encoder and training prompts."""

import json
import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..loading import NANO
from ..styles import STYLES

PHRASES = tomllib.loads((Path(__file__).parent / "phrases.toml").read_text())
SYNONYMS: dict[str, list[str]] = PHRASES["styles"]
ONE_STYLE: list[str] = PHRASES["prompts"]["one_style"]
TWO_STYLES: list[str] = PHRASES["prompts"]["two_styles"]
SUBJECTS: list[str] = PHRASES["prompts"]["subjects"].split()


def sample_subject(random: np.random.Generator) -> str:
    """Sample some content words; most do not describe the image, and must have no effect."""
    return " ".join(random.choice(SUBJECTS, random.integers(1, 7)))


def sample_prompt(random: np.random.Generator, style: str) -> str:
    """Sample a prompt for `style`: half of the time its preset's wording, if there is a preset."""
    subject = sample_subject(random)
    if style in STYLES and random.random() < 0.5:
        return STYLES[style].prompt(subject if random.random() < 0.6 else "")
    return str(random.choice(ONE_STYLE)).format(style=random.choice(SYNONYMS[style]), subject=subject)


def sample_mixture(random: np.random.Generator, first: str, second: str) -> str:
    """Sample a prompt for equal parts of two styles."""
    one, other = (random.choice(SYNONYMS[style]) for style in (first, second))
    subject = sample_subject(random) if random.random() < 0.5 else ""
    return str(random.choice(TWO_STYLES)).format(one=one, other=other, subject=subject).strip(" ,")


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer in `folder`, or train one on the phrases, deterministically.

    Byte pairs in CLIP's layout: lower case, `</w>` at the end of a word.
    """
    if not (folder / "vocab.json").exists():
        phrases = [*SUBJECTS, *TWO_STYLES, *ONE_STYLE]
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
    """Return the pairs that byte-pair encoding merges, in order, until each word is one token.

    The `tokenizers` package breaks ties at random: another run would give a model tokens that it was not
    trained on.
    """
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
    """Return an untrained text encoder of the shipped model's shape for `tokenizer`."""
    marks: dict[str, Any] = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    marks |= dict(pad_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer), dtype=torch.float32)
    return CLIPTextModel(CLIPTextConfig.from_pretrained(NANO / "text_encoder", **marks))
