"""Streamed text is the decoded text, whole characters at a time, and ends before a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoders import SPECIAL, byte_tokenizer
from tokenizers import Tokenizer, decoders, models

from onnx_gpt.generation.streaming import TextStream

BYTES = byte_tokenizer()


def stream(tokenizer, tokens, context=(), stop=()):
    """Pieces up to the end or a stop string, and whether there was one."""
    text = TextStream(tokenizer, context, stop)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            break
    return [*pieces, text.finish()], text.stopped


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=60)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_pieces_make_up_the_text_and_no_character_is_split(text, context):
    pieces, stopped = stream(BYTES, BYTES.encode(text).ids, BYTES.encode(context).ids)
    assert "".join(pieces) == text
    assert not stopped
    assert all("\ufffd" not in piece for piece in pieces)


@settings(deadline=None)
@given(
    st.text("abc🦆", max_size=40), st.lists(st.text("abc🦆", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_stop_strings_end_the_text_wherever_pieces_meet(text, stop):
    pieces, stopped = stream(BYTES, BYTES.encode(text).ids, stop=stop)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert stopped == bool(ends)
    # The first stop string that is complete ends the text; the text ends where it, or one around it, begins.
    seen = text[: min(ends)] if ends else text
    expected = seen[: min(seen.find(s) for s in stop if s in seen)] if ends else text
    assert "".join(pieces) == expected


@given(st.lists(st.integers(0, 255), max_size=80))
def test_bytes_that_are_no_text_do_not_hold_up_what_follows(tokens):
    end = BYTES.encode("done").ids
    pieces, _ = stream(BYTES, tokens + end)
    assert "".join(pieces).endswith("done")
    text = TextStream(BYTES)
    for token in tokens:
        text.push(token)
        assert len(text._window) <= 16  # a window that grew would make long texts slow


def test_a_character_cut_off_by_the_end_is_left_out():
    tokens = BYTES.encode("duck 🦆").ids
    assert "".join(stream(BYTES, tokens[:-1])[0]) == "duck "


def test_a_character_that_the_prompt_began_is_finished():
    tokens = BYTES.encode("a🦆b").ids
    assert "".join(stream(BYTES, tokens[3:], context=tokens[:3])[0]) == "🦆b"


def test_special_tokens_give_no_text():
    tokens = [*BYTES.encode("a").ids, BYTES.token_to_id(SPECIAL[1]), *BYTES.encode("b").ids]
    assert "".join(stream(BYTES, tokens)[0]) == "ab"


def test_a_leading_space_that_depends_on_the_token_before_is_kept():
    """SentencePiece decoders drop the space of a first token, so the prompt's end has to be decoded too."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁sea": 1, "▁is": 2, "<0xF0>": 3}, unk_token="▁the"))
    tokenizer.decoder = decoders.Metaspace()
    assert "".join(stream(tokenizer, [1, 2] * 12, context=[0])[0]) == " sea is" * 12
    assert "".join(stream(tokenizer, [0, 1, 2])[0]) == "the sea is"


def test_without_a_tokenizer_there_is_no_text():
    assert stream(None, [1, 2, 3])[0] == ["", "", "", ""]
