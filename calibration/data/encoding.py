"""Text to token ids by a tokenizer that somebody else wrote, whatever its library raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.errors import rejected

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def ids_of(tokenizer: Tokenizer, text: str, *, special: bool = False, what: str, remedy: str) -> list[int]:
    """Token ids of a text.

    The library runs a tokenizer's regular expressions with backtracking. One that runs away panics after ten million
    steps at one place, a tenth of a second, and so ends here. What stays below that everywhere is not bounded but by
    the length of the text: the library cannot be stopped from outside.

    Args:
        special: with the tokens that the tokenizer puts around a text.
        what: the text, for the error.
        remedy: of the error.

    Raises:
        OnnxGptError: ``tokenizer-invalid`` for a word without a token, or a regular expression that runs away.
        TypeError: for half of a surrogate pair, which is no character.
    """
    try:
        return list(tokenizer.encode(text, add_special_tokens=special).ids)
    except TypeError:
        raise
    except BaseException as error:  # bare Exception, or a panic of Rust, which is none
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise rejected("tokenizer-invalid", f"the tokenizer cannot read {what}: {error}", remedy) from error
