"""The closed vocabulary: one token per known word, pieces for others, no end-of-text in mid-prompt; and CLIP's own."""

import random

import pytest

from hyperdreambooth.base.tokenizer import build_tokenizer, clip_tokenizer

# "be" is merged first, yet "obey" and "cab" have to come out whole; "hat" begins "hats"; "é" is two bytes.
WORDS = ["beach", "beat", "obey", "hat", "hats", "that", "cab", "a", "banana", "aaa", "café", "sks"]


@pytest.mark.parametrize("order", range(5))
def test_every_known_word_is_one_token(order: int) -> None:
    words = random.Random(order).sample(WORDS, len(WORDS))
    tokenizer = build_tokenizer(words, max_length=16)
    for word in words:
        ids = tokenizer(word).input_ids
        assert len(ids) == 3 and ids[0] == tokenizer.bos_token_id and ids[2] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == word


def test_vocabulary_does_not_depend_on_the_order_of_words() -> None:
    assert build_tokenizer(WORDS, 16).get_vocab() == build_tokenizer([*reversed(WORDS), "hat"], 16).get_vocab()


@pytest.mark.parametrize("text", ["xyzzy", "hat, that!", "日本 naïve 42", "beaches", "🙂", "<w> \\ ' \""])
def test_unknown_text_falls_into_pieces_that_spell_it(text: str) -> None:
    tokenizer = build_tokenizer(WORDS, max_length=64)
    ids = tokenizer(text).input_ids[1:-1]
    assert tokenizer.eos_token_id not in ids and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_prompts_are_padded_and_cut_to_the_length() -> None:
    tokenizer = build_tokenizer(WORDS, max_length=8)
    batch = tokenizer(["hat", "hat " * 20], padding="max_length", max_length=8, truncation=True).input_ids
    assert [len(ids) for ids in batch] == [8, 8]
    assert batch[0][2:] == [tokenizer.eos_token_id] * 6 and batch[1][-1] == tokenizer.eos_token_id


def test_punctuation_splits_given_words_as_it_splits_prompts() -> None:
    tokenizer = build_tokenizer(["half-shaded", "pop art"], max_length=16)
    assert tokenizer.tokenize("half-shaded pop art") == ["half</w>", "-</w>", "shaded</w>", "pop</w>", "art</w>"]


def test_clips_own_tokenizer_needs_no_hub() -> None:
    """Numbers that CLIP's papers and documentation print, and those that DreamBooth is known by."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49_408 and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49_406, 49_407)
    assert tokenizer("a photo of a cat").input_ids == [49_406, 320, 1125, 539, 320, 2368, 49_407]
    assert tokenizer("sks dog").input_ids[1:-1] == [48_136, 1929]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id and clip_tokenizer("!").pad_token_id == 0
    assert tokenizer.model_max_length == 77
    text = "größe 😀 naïve"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == "größe😀naïve"
