"""The closed vocabulary: one token per known word, pieces for others, never an end-of-text in mid-prompt."""

import random

import pytest

from hyperdreambooth.base.tokenizer import build_tokenizer

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
