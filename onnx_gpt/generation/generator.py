"""Text from a bundle, on plain onnxruntime.

    generator = Generator("smollm2")
    print(generator.generate("Once upon a time", max_new_tokens=50).text)

Greedy unless a temperature is given: the sampling settings in a model's generation_config.json are not
applied unasked. Batch 1; one thread and one text at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Generating
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exporter.errors import Exit, OnnxGptError, rejected
from onnx_gpt.bundle.reading import read_bundle
from onnx_gpt.generation.decoder_session import Array, DecoderSession
from onnx_gpt.generation.huge_pages import on_huge_pages
from onnx_gpt.generation.prompt import Prompt, encode, require_fitting, require_known, tokenizer_missing
from onnx_gpt.generation.sampling import Sampling, choose
from onnx_gpt.generation.streaming import TextStream

FinishReason = Literal["eos", "stop", "length"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes:
        text: without the prompt, special tokens and the stop string. Empty where the bundle has no tokenizer.
        tokens: all generated, the end-of-text token too.
        prompt_tokens: length of the prompt, in tokens.
        finish_reason: ``eos``, ``stop`` (a stop string), or ``length`` (max_new_tokens or the context).
        prefill_seconds: to the first token.
        decode_seconds: from there to the last one, the caller's own time left out.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


class Generator:
    """A bundle, loaded.

    A conversation goes on where it stopped: where a prompt begins with the whole one before it, what is known
    of it (the answer too) is not run again. Any other prompt starts afresh: a call repeated gives the same.

    Args:
        bundle: folder of a bundle, ours or of onnxruntime-genai's builder.
        threads: the physical cores by default.
        max_length: tokens of prompt and text together; the model's context by default, and at most.

    Raises:
        OnnxGptError: the bundle is missing, incomplete, or not a decoder.
    """

    def __init__(
        self, bundle: str | Path, *, threads: int | None = None, max_length: int | None = None
    ) -> None:
        folder = read_bundle(Path(bundle))
        with on_huge_pages():
            self.session = DecoderSession(folder.model, threads=threads, head_dim=folder.head_dim)
        self.tokenizer, self.chat, self.eos = folder.tokenizer, folder.chat, folder.eos
        limits = [limit for limit in (folder.context_length, max_length) if limit is not None]
        self.max_length = min(limits) if limits else None
        self._prompt = 0  # length of the last prompt, while a conversation can go on from it
        self._texts = 0  # begun so far; a text that is no longer the last one cannot go on
        require_fitting(self.tokenizer, self.session.vocab_size)

    # Text ------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: Prompt, *, on_text: Callable[[str], object] | None = None, **settings: Any
    ) -> Generation:
        """Generate to the end.

        Args:
            on_text: called with each piece of text as it comes.
            settings: those of `stream`.
        """
        pieces = self.stream(prompt, **settings)
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                result: Generation = end.value
                return result
            if on_text is not None:
                on_text(piece)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Generating[str, None, Generation]:
        """Pieces of text as they come; the generator's return value is the `Generation`.

        Args:
            prompt: text, token ids, or messages for the chat template.
            max_new_tokens: fewer where the context ends before.
            temperature, top_k, top_p, repetition_penalty: see `onnx_gpt.generation.sampling.Sampling`.
            seed: the same seed gives the same tokens; None for a new one each time.
            stop: the text ends before any of these.

        Raises:
            OnnxGptError: ``prompt-empty``, ``prompt-too-long``, ``token-out-of-range``,
                ``tokenizer-missing``, ``chat-template-missing``, ``chat-template-refused``,
                ``sampling-invalid``; while it runs ``stream-overtaken``, ``model-run-failed``,
                ``logits-not-finite``.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        _require_settings(max_new_tokens, seed, stops)
        tokens = self.encode(prompt)
        count = max_new_tokens
        if self.max_length is not None:
            count = min(count, self.max_length - len(tokens))
        if count < 1:
            raise self._too_long(len(tokens) + 1)
        if stops and self.tokenizer is None:
            raise tokenizer_missing()
        chosen = self._tokens(tokens, count, sampling, np.random.default_rng(seed))
        return self._generate(tokens, chosen, stops)

    def _generate(
        self, prompt: list[int], tokens: Iterator[int], stops: tuple[str, ...]
    ) -> Generating[str, None, Generation]:
        stream = TextStream(self.tokenizer, prompt, stops)
        done: list[int] = []
        text: list[str] = []
        seconds: list[float] = []
        reason: FinishReason = "length"
        start = time.perf_counter()
        for token in tokens:
            done.append(token)
            piece = "" if token in self.eos else stream.push(token)
            seconds.append(time.perf_counter() - start)
            if piece:
                text.append(piece)
                yield piece
            if token in self.eos or stream.stopped:
                reason = "stop" if stream.stopped else "eos"
                break
            start = time.perf_counter()
        if held := stream.finish():
            text.append(held)
            yield held
        return Generation(
            text="".join(text),
            tokens=tuple(done),
            prompt_tokens=len(prompt),
            finish_reason=reason,
            prefill_seconds=seconds[0],
            decode_seconds=sum(seconds[1:]),
        )

    def _tokens(
        self, prompt: list[int], count: int, sampling: Sampling, random: np.random.Generator
    ) -> Iterator[int]:
        self._texts += 1
        number = self._texts
        history = np.array(prompt + [0] * count, np.int64)
        logits = self._start(prompt, count)
        for end in range(len(prompt), len(history)):
            history[end] = choose(logits, history[:end], sampling, random)
            yield int(history[end])
            if number != self._texts:
                raise OnnxGptError(
                    "stream-overtaken",
                    "another text was begun with this Generator while this one was being generated",
                    "finish one text before the next, or load a Generator for each",
                    exit=Exit.USAGE,
                )
            if end + 1 < len(history):
                logits = self.session.append(history[end : end + 1])

    def _start(self, prompt: list[int], count: int) -> Array:
        """Logits after the prompt, of which what goes on from the last one is not run again."""
        seen = self.session.tokens
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(seen, prompt, strict=False))
        common = min(sum(1 for _ in same), len(prompt) - 1)  # the last token is run for its logits
        continues = 0 < self._prompt <= common
        self._prompt = 0  # until this prompt has been run, nothing can go on from it
        self.session.truncate(common if continues else 0)
        self.session.reserve(len(prompt) + count)
        logits = self.session.append(prompt[len(self.session.tokens) :])
        self._prompt = len(prompt)
        return logits

    # Tokens ----------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked; errors as `stream` has them."""
        tokens = encode(prompt, self.tokenizer, self.chat)
        require_known(tokens, self.session.vocab_size)
        return tokens

    def _too_long(self, length: int) -> OnnxGptError:
        return rejected(
            "prompt-too-long",
            f"prompt and text would have {length} tokens, and {self.max_length} fit",
            "shorten the prompt, or leave fewer tokens of the conversation in it",
        )

    def reset(self) -> None:
        """Forget everything that was run."""
        self._texts += 1
        self._prompt = 0
        self.session.truncate(0)

    def prefill(self, tokens: Sequence[int], *, every: bool = False) -> Array:
        """Run tokens after those already run (`reset` first for a new sequence).

        Returns:
            float32 logits of the last token ``[V]``, or with ``every`` of all of them ``[S, V]``.
        """
        require_known(tokens, self.session.vocab_size)
        length = len(self.session.tokens) + len(tokens)
        if self.max_length is not None and length > self.max_length:
            raise self._too_long(length)
        self._texts += 1
        self._prompt = 0
        return self.session.append(tokens, every=every)

    def step(self, token: int) -> Array:
        """Logits ``[V]`` after one more token."""
        return self.prefill([token])


def _require_settings(max_new_tokens: int, seed: int | None, stops: tuple[str, ...]) -> None:
    wrong = {
        f"max_new_tokens is {max_new_tokens}: give a number above 0": max_new_tokens < 1,
        f"the seed is {seed}: give 0 or more": seed is not None and seed < 0,
        "a stop string is empty: give one with text": "" in stops,
    }
    for told in (told for told, found in wrong.items() if found):
        cause, _, remedy = told.partition(": ")
        raise OnnxGptError("sampling-invalid", cause, remedy, exit=Exit.USAGE)
