"""Tokenizers in CLIP's byte-pair format: CLIP's own, and one of a small closed vocabulary."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_MERGES = Path(__file__).parent / "vocabulary" / "clip-merges.txt.xz"
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves, in CLIP's order


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer of 49,408 tokens, without a hub: what Stable Diffusion's checkpoints were all trained with.

    pad_token: the end token; "!" for the OpenCLIP text encoders of Stable Diffusion 2 and SDXL.
    """
    lines = lzma.decompress(_MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in map(str.split, lines)]
    others = sorted(set(range(256)) - set(_PRINTABLE))
    letters = [chr(byte) for byte in _PRINTABLE] + [chr(256 + n) for n in range(len(others))]
    tokens = letters + [letter + _WORD_END for letter in letters]
    tokens += [left + right for left, right in merges] + [START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)


def build_tokenizer(words: Iterable[str], max_length: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` for which each of `words` (lower case, letters only count) is the one token `word</w>`.

    The whole byte alphabet, with and without the mark of a word's end, is in the vocabulary as well: a word that is not
    known falls into pieces and never becomes an end-of-text in mid-prompt. Prompts hold `max_length` tokens, start and
    end included; the end token also pads, as in Stable Diffusion.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [letter + _WORD_END for letter in alphabet]
    known = sorted({word for text in words for word in re.findall(r"[^\W\d_]+", text.lower())})
    merges = _merges(_letters(word) for word in known)
    tokens += [left + right for left, right in merges] + [START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _letters(word: str) -> list[str]:
    """A word as the byte symbols that merging starts from; the last one carries the mark of the end."""
    ((symbols, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    return [*symbols[:-1], symbols[-1] + _WORD_END]


def _merges(spelled: Iterable[list[str]]) -> list[tuple[str, str]]:
    """Merge rules, in order of priority, under which every spelled word ends as one symbol.

    Each word is run through the rules so far and new rules join what is left. Later rules rank lower, so they cannot
    stop a word before them: until it is whole, that word always has a rule of its own that ranks higher.
    """
    ranks: dict[tuple[str, str], int] = {}
    for symbols in spelled:
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            ranks.setdefault(best, len(ranks))
            symbols = _join(symbols, best)
    return list(ranks)


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """`symbols` with every occurrence of `pair`, from the left, made one symbol."""
    joined: list[str] = []
    for symbol in symbols:
        # The left half of a fresh pair never equals `pair[0]` again, so a look back at the last symbol is enough.
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined
