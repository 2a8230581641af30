"""How text is cut before byte-level BPE, by the name in ``tokenizer.ggml.pre``.

A vocabulary does not say where words end; merges are right only with the cuts that they were learned with.
llama.cpp names each way after the first model that had it, and lists them in ``llama-vocab.cpp``; where the
original model's ``tokenizer.json`` says more (Unicode normalization), it is followed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}").replace(r"\s\p{L}\p{N}]+[\r\n]*", r"\s\p{L}\p{N}\r\n]+")
JAIS2 = LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + "|".join(
    [*(rf"\s{{{run}}}(?!\S)" for run in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")), r"\s{1}"]
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",  # ideographs, hiragana, katakana
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A way to cut.

    Attributes:
        pattern: what a piece matches; None for GPT-2's pattern, which the tokenizers library has built in.
        first: what is cut off before, one pattern after the other.
        digits: cut every digit off first.
        punctuation: cut runs of punctuation off first.
        triples: cut digits off last, by threes, among the stand-ins of bytes.
        normalize: NFC before all else.
        whole: a piece that is a token as it stands is not merged up from bytes.
        add_bos: whether a text begins with bos where the file does not say.
    """

    pattern: str | None = None
    first: tuple[str, ...] = ()
    digits: bool = False
    punctuation: bool = False
    triples: bool = False
    normalize: bool = False
    whole: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """As ``tokenizer.json`` writes it."""
        steps: list[dict[str, Any]] = []
        if self.punctuation:
            steps.append({"type": "Punctuation", "behavior": "Contiguous"})
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        steps += [_split(pattern) for pattern in self.first]
        if self.pattern is not None:
            steps.append(_split(self.pattern))
        steps.append(byte_level(use_regex=self.pattern is None))
        if self.triples:
            steps += [{"type": "Digits", "individual_digits": False}, _split("[0-9][0-9][0-9]")]
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool = True) -> dict[str, Any]:
    """The step between bytes and their printable stand-ins, which also cuts by GPT-2's pattern if asked."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(),
    "exaone4": Cut(),
    "phi-2": Cut(),
    "olmo": Cut(normalize=True),  # GPT-NeoX's vocabulary, which Pythia has too
    "mpt": Cut(normalize=True),
    "smollm": Cut(digits=True),
    "starcoder": Cut(digits=True),
    "exaone": Cut(digits=True),  # EXAONE 3 and 3.5
    "refact": Cut(digits=True),  # StarCoder's vocabulary, which Granite has too
    "command-r": Cut(digits=True, normalize=True),
    "falcon": Cut(punctuation=True, triples=True),
    "bloom": Cut(BLOOM),
    "dbrx": Cut(LLAMA3),  # OLMo 2 and 3
    "glm4": Cut(LLAMA3),
    "chatglm-bpe": Cut(LLAMA3),
    "smaug-bpe": Cut(LLAMA3, whole=True),  # SmolLM 3
    "llama-bpe": Cut(LLAMA3, whole=True, add_bos=True),
    "llama3": Cut(LLAMA3, whole=True, add_bos=True),
    "llama-v3": Cut(LLAMA3, whole=True, add_bos=True),
    "tekken": Cut(TEKKEN, whole=True, add_bos=True),
    "seed-coder": Cut(SEED),
    "jais-2": Cut(JAIS2),
    "qwen2": Cut(QWEN2, normalize=True),
    "hunyuan": Cut(QWEN2, normalize=True),
    "hunyuan-dense": Cut(DEEPSEEK3[-1], first=DEEPSEEK3[:-1]),
}

UNNAMED: Mapping[str, str] = {
    "bloom": "bloom",
    "falcon": "falcon",
    "gpt2": "gpt-2",
    "gptneox": "olmo",
    "mpt": "mpt",
    "phi2": "phi-2",
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "starcoder": "starcoder",
}
"""The cut of an architecture's files that name none, or ``default``: models of it have no other."""
