"""The answer as it comes, of tokens that are bytes."""

from types import SimpleNamespace

import pytest
import torch

from chronostat.serving.text import AnswerText

END = 256


class Bytes:
    """A tokenizer whose tokens are bytes, and one that ends an answer."""

    def decode(self, ids, *, skip_special_tokens):
        assert skip_special_tokens
        return bytes(i for i in ids if i != END).decode(errors="replace")


def answer(text, *, stop=(), gone=lambda: False):
    """What was told of an answer, up to where it ended, and the text."""
    pieces, ended = [], False
    reading = AnswerText(SimpleNamespace(tokenizer=Bytes()), stop, pieces.append, gone)
    ids = [1, 2, 3]
    for token in (*text.encode(), END):
        ids.append(token)
        if ended := bool(reading(torch.tensor([ids]), None)[0]):
            break
    reading.end()
    assert reading.text == "".join(piece.text for piece in pieces)
    return reading, pieces, ended


def test_each_token_is_told_as_it_comes_with_the_tokens_so_far():
    reading, pieces, ended = answer("Hi!")
    assert [tuple(piece) for piece in pieces] == [("H", 3, 1), ("i", 3, 2), ("!", 3, 3)]
    assert (reading.text, reading.stopped, ended) == ("Hi!", False, False)


def test_a_character_of_several_tokens_is_told_once_it_is_whole():
    _, pieces, _ = answer("aé€b")
    assert [piece.text for piece in pieces] == ["a", "é", "€", "b"]
    assert [piece.new_tokens for piece in pieces] == [1, 3, 6, 7]


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("one. two", (". ",), "one"),
        ("one. two", ("two", "e."), "on"),
        ("aaab", ("aab",), "a"),
        ("stop", ("stop",), ""),
        ("no such", ("stop", "halt"), "no such"),
        ("nearly sto", ("stop",), "nearly sto"),
    ],
)
def test_a_stop_text_ends_the_answer_and_no_part_of_it_is_told(text, stop, said):
    reading, pieces, ended = answer(text, stop=stop)
    assert reading.text == said
    assert reading.stopped == ended == (said != text)
    assert all(piece.text for piece in pieces)


def test_what_cannot_become_a_stop_text_is_not_held_back_longer_than_that():
    _, pieces, _ = answer("abcdef", stop=("xyz",))
    assert [(piece.text, piece.new_tokens) for piece in pieces] == [("a", 3), ("b", 4), ("c", 5), ("d", 6), ("ef", 7)]


def test_an_answer_that_nobody_waits_for_ends_at_the_next_token():
    reading, _, ended = answer("Hello", gone=iter([False, True]).__next__)
    assert (reading.text, ended) == ("He", True)


def test_half_a_character_at_the_end_is_told_as_what_it_is():
    pieces = []
    reading = AnswerText(SimpleNamespace(tokenizer=Bytes()), (), pieces.append, lambda: False)
    for token in (*b"a", *"é".encode()[:1]):
        reading.add(token)
    reading.end()
    assert reading.text == "a\N{REPLACEMENT CHARACTER}"


def test_a_stop_text_in_what_was_held_back_at_the_end_is_not_told():
    pieces = []
    stop = ("\N{REPLACEMENT CHARACTER}",)
    reading = AnswerText(SimpleNamespace(tokenizer=Bytes()), stop, pieces.append, lambda: False)
    for token in (*b"a", *"é".encode()[:1]):
        reading.add(token)
    reading.end()
    assert (reading.text, reading.stopped) == ("a", True)
