"""``onnx-gpt run``: generate text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.commands._flags import Switch, Threads
from onnx_gpt.commands._show import print_json, stderr
from onnx_gpt.generation.generator import Generator
from onnx_gpt.generation.prompt import Prompt

ANY_TEXT = Parameter(allow_leading_hyphen=True)
"""A text may be "-5 + 3", or - alone."""


def run(
    bundle: Path,
    /,
    *,
    prompt: Annotated[str, ANY_TEXT],
    chat: Switch = False,
    system: Annotated[str | None, ANY_TEXT] = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Annotated[list[str] | None, ANY_TEXT] = None,
    threads: Threads = None,
    json: Switch = False,
) -> int:
    """Generate text from a bundle on plain onnxruntime, streamed to stdout. Greedy unless a temperature is given.

    Parameters
    ----------
    bundle
        Folder that optimize made, or another decoder with the same graph contract.
    prompt
        What to continue, or to answer with --chat; - reads it from stdin. Token ids with spaces between where the
        bundle has no tokenizer.
    chat
        Put the prompt through the model's chat template.
    system
        System message of the chat.
    max_new_tokens
        Tokens to generate, at most.
    temperature
        0 is greedy; 1 samples from the model as it is.
    top_k
        Sample among the k most likely tokens; 0 for all.
    top_p
        Sample among the most likely tokens that hold this share of probability.
    repetition_penalty
        Above 1 makes tokens that occurred less likely.
    seed
        The same seed gives the same text.
    stop
        End before this text. May be given several times.
    json
        Print text, tokens and speed as JSON instead of streaming.
    """
    if system and not chat:
        raise OnnxGptError(
            "chat-usage", "a system message is given, and no chat", "add --chat", exit=Exit.USAGE
        )
    generator = Generator(bundle, threads=threads)
    result = generator.generate(
        _prompt(generator, prompt, system, chat),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        on_text=None if json else _print_piece,
    )
    if json:
        print_json(
            {
                "text": result.text,
                "tokens": list(result.tokens),
                "prompt_tokens": result.prompt_tokens,
                "finish_reason": result.finish_reason,
                "prefill_seconds": result.prefill_seconds,
                "decode_seconds": result.decode_seconds,
            }
        )
        return 0
    # Text has been streamed, but for its last newline.
    print(*(result.tokens if generator.tokenizer is None else ()))
    speed = (len(result.tokens) - 1) / result.decode_seconds if result.decode_seconds else 0.0
    stderr.print(
        f"{result.prompt_tokens} tokens in {result.prefill_seconds:.2f} s, then "
        f"{len(result.tokens)} tokens at {speed:.0f} tok/s ({result.finish_reason})"
    )
    return 0


def _prompt(generator: Generator, prompt: str, system: str | None, chat: bool) -> Prompt:
    """What the flags ask for: messages, text, or tokens where the bundle knows nothing else."""
    if prompt == "-":
        # Bytes that are no UTF-8 are refused as those of an argument are, and the newline at the end is a shell's.
        prompt = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
    if chat:
        told = [{"role": "system", "content": system}] if system else []
        return [*told, {"role": "user", "content": prompt}]
    if generator.tokenizer is None and all(word.isdecimal() for word in prompt.split()):
        return [int(word) for word in prompt.split()]
    return prompt


def _print_piece(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
