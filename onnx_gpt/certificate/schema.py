"""What a certificate says. Schema ``onnx-gpt/certificate/1``; docs/certificate.md explains each field.

A certificate comes with a bundle, and anybody may have written it: every field is checked for type and range before
anything is done by it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import pydantic

from exporter.errors import OnnxGptError, rejected
from exporter.sources._files import parse_json_object
from onnx_gpt.certificate import canonical

SCHEMA: Literal["onnx-gpt/certificate/1"] = "onnx-gpt/certificate/1"
CERTIFICATE = "certificate.json"
LIMIT = 64 << 20
"""Bytes of a certificate that are read. A tensor takes 150, so that this is one of 400 000 tensors."""

LARGEST_FILE = 1 << 50
MOST_TOKENS = 1 << 16
_PARTS = re.compile(r"[^\\/:\x00-\x1f\x7f]{1,255}")


def _file_name(name: str) -> str:
    path = PurePosixPath(name)
    whole = str(path) == name and not path.is_absolute() and len(name) <= 1024
    if not whole or not all(_PARTS.fullmatch(part) and part not in (".", "..") for part in path.parts):
        raise ValueError(f"{name[:80]!r} is not the name of a file inside a bundle")
    return name


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


FileName = Annotated[str, pydantic.AfterValidator(_file_name)]
Digest = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, pydantic.AfterValidator(_finite)]
Token = Annotated[int, pydantic.Field(ge=0, lt=1 << 31)]
Index = Annotated[int, pydantic.Field(ge=0, lt=MOST_TOKENS)]
Tensor = Annotated[
    str, pydantic.StringConstraints(pattern=r"^[a-z0-9_]{1,32}\[[0-9,]{0,256}\] [0-9a-f]{64}$")
]


class Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class FileFacts(Frozen):
    """One file of the bundle."""

    bytes: Annotated[int, pydantic.Field(ge=0, le=LARGEST_FILE)]
    sha256: Digest


class GraphFacts(Frozen):
    """One ``.onnx`` file of the bundle.

    Attributes:
        digest: of the graph without its weights (`onnx_gpt.certificate.graph_digest`).
        bound: of the graph with each weight in its place.
        root: Merkle root over ``tensors``.
        tensors: ``type[dims] sha256`` of every initializer, by name.
        cliffs: codes of lint's errors that the target takes on purpose.
    """

    digest: Digest
    bound: Digest
    root: Digest
    tensors: dict[str, Tensor]
    cliffs: tuple[str, ...] = ()


class TraceFacts(Frozen):
    """How the weights were traced to the source: roles by what was found (`onnx_gpt.certificate.tracing`)."""

    exact: int
    rounded: int
    untraced: tuple[str, ...] = ()


class Case(Frozen):
    """Tokens, and the likeliest next tokens after some of them. P positions, k tokens of each.

    Attributes:
        tokens: one sequence, without padding.
        positions: after which of the tokens, rising.
        top: ids ``[P][k]``, the reference's likeliest first.
        reference: natural logarithms of the reference's probabilities of those ``[P][k]``.
    """

    tokens: Annotated[tuple[Token, ...], pydantic.Field(min_length=1, max_length=MOST_TOKENS)]
    positions: Annotated[tuple[Index, ...], pydantic.Field(min_length=1)]
    top: tuple[tuple[Token, ...], ...]
    reference: tuple[tuple[Number, ...], ...]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Case:
        shapes = {tuple(map(len, rows)) for rows in (self.top, self.reference)}
        rising = all(a < b for a, b in zip(self.positions, self.positions[1:], strict=False))
        if len(shapes) != 1 or len(self.top) != len(self.positions) or not rising or not self.top[0]:
            raise ValueError("rows of a probe do not fit its positions")
        if self.positions[-1] >= len(self.tokens):
            raise ValueError("a position of a probe lies beyond its tokens")
        if any(value > 1e-3 for row in self.reference for value in row):
            raise ValueError("a probability of a probe is above 1")
        return self


class ProbedModel(Frozen):
    """What one model gave on the cases when it was made, and how far it may be from that, in nats a position.

    Attributes:
        built: natural logarithms of its own probabilities, for each case ``[P][k]``.
        measured: mean KL of the reference's likeliest tokens, all others taken as one, when it was made.
        max_kl: largest such KL that `verify` accepts.
        max_drift: largest KL of the same kind between the model as it was made and as it is.
    """

    built: tuple[tuple[tuple[Number, ...], ...], ...]
    measured: Number
    max_kl: Annotated[Number, pydantic.Field(ge=0)]
    max_drift: Annotated[Number, pydantic.Field(ge=0)]


class Probes(Frozen):
    """Cases that `verify` runs again.

    Attributes:
        reference: whose probabilities the cases hold.
        independent: whether that is another implementation than the bundle itself.
        models: by the path of the file that is opened.
    """

    reference: str
    independent: bool
    cases: Annotated[tuple[Case, ...], pydantic.Field(min_length=1, max_length=256)]
    models: dict[FileName, ProbedModel]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Probes:
        wanted = [[len(row) for row in case.top] for case in self.cases]
        for name, model in self.models.items():
            if [[len(row) for row in rows] for rows in model.built] != wanted:
                raise ValueError(f"what {name} gave does not fit the cases")
        return self


class SourceFacts(Frozen):
    """What the bundle was made from; ``digest`` is that of ``parts`` as canonical JSON."""

    uri: str
    family: str
    parameters: int
    parts: dict[str, Digest]
    digest: Digest


class Certificate(Frozen):
    """The whole document."""

    schema_: Literal["onnx-gpt/certificate/1"] = pydantic.Field(alias="schema", serialization_alias="schema")
    target: str
    versions: dict[str, str]
    source: SourceFacts
    recipe: dict[str, Any]
    pipelines: dict[str, str]
    calibration: dict[str, Any]
    graphs: dict[FileName, GraphFacts]
    trace: dict[str, TraceFacts | Literal["not run"]]
    parity: dict[str, Any]
    not_run: tuple[str, ...]
    probes: Probes | Literal["none"]
    files: dict[FileName, FileFacts]
    report: Digest
    seal: Digest

    def document(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return self.model_dump(mode="json", by_alias=True)


def seal_holds(data: bytes) -> bool:
    """Whether a certificate that `parse` took has been left as it was written."""
    document = json.loads(data)
    return bool(seal_of(document) == document["seal"])


def is_as_issued(data: bytes) -> bool:
    """Whether a certificate that `parse` took is laid out as we lay one out: not a space was changed since."""
    return data == text_of(json.loads(data)).encode("utf-8")


def text_of(document: dict[str, Any]) -> str:
    """The file's contents."""
    return canonical.laid_out(document, depth=4) + "\n"


def seal_of(document: dict[str, Any]) -> str:
    """The digest of a certificate's own fields, all but the seal."""
    return canonical.digest({key: value for key, value in document.items() if key != "seal"})


def parse(data: bytes) -> Certificate:
    """A certificate out of a file's bytes. That its seal holds is for the caller to check.

    Raises:
        OnnxGptError: ``certificate-invalid``, naming at most ten fields that are wrong.
    """
    document = parse_json_object(data, CERTIFICATE, "certificate-invalid")
    try:
        return Certificate.model_validate_json(data)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        where = [f"{'.'.join(map(str, entry['loc']))[:120]}: {entry['msg']}" for entry in found[:10]]
        known = document.get("schema")
        raise _invalid(
            f"it is no certificate of schema {SCHEMA}"
            + (f" but {known!r:.80}" if known != SCHEMA else f" ({len(found)} fields are wrong)"),
            tuple(where),
        ) from error


def _invalid(cause: str, details: tuple[str, ...]) -> OnnxGptError:
    return rejected(
        "certificate-invalid",
        f"{CERTIFICATE}: {cause}",
        "restore the file, or build the bundle again",
        details,
    )
