"""What `verify` finds: a code that stays the same, what it is about, and what is wrong."""

from __future__ import annotations

from onnx_gpt.report import Frozen

CODES = {
    "certificate-missing": "there is no certificate.json",
    "certificate-invalid": "certificate.json is no certificate of a known schema",
    "certificate-seal": "a field of the certificate has been edited",
    "certificate-digest": "it is not the certificate whose digest was given",
    "checksums": "SHA256SUMS is missing, malformed, or says something else than the certificate",
    "file-missing": "a certified file is not there",
    "file-extra": "there is a file that nobody certified",
    "file-renamed": "a certified file lies under another name",
    "file-size": "a file has another size",
    "file-digest": "a file has other bytes",
    "file-link": "a file is a symbolic link",
    "file-hard-link": "a file has a second name somewhere (a hard link), by which it can be changed",
    "file-irregular": "something is neither a file nor a folder, or cannot be read",
    "report-differs": "report.json says something else than what was certified",
    "graph-unreadable": "an .onnx file cannot be read as a graph",
    "graph-digest": "a graph computes something else than the certified one",
    "weights-missing": "a certified tensor is not in the graph",
    "weights-extra": "the graph has a tensor that nobody certified",
    "weights-differ": "a tensor has other contents",
    "weights-swapped": "a tensor has the contents of another",
    "weights-root": "the certificate's own list of tensors does not have the root that it states",
    "weights-bound": "the right tensors are in the wrong places",
    "contract": "a graph does not take and give what the contract says",
    "cliff": "a graph holds what its runtime runs many times slower, and did not when it was certified",
    "config": "config.json, genai_config.json or tokenizer.json do not fit the graph or each other",
    "probes-missing": "there is nothing to run again: the bundle was made without probes",
    "probe-failed": "a model does not load or run",
    "probe-reference": "a model is further from the reference than its limit",
    "probe-drift": "a model gives something else than when it was certified",
    "probe-steps": "single steps through the cache give something else than one pass",
}
"""Every code, and what it means."""


class Violation(Frozen):
    """One thing that is wrong.

    Attributes:
        code: a key of `CODES`.
        subject: file, tensor, field or model.
        cause: what is there and what was certified.
    """

    code: str
    subject: str
    cause: str


def violation(code: str, subject: str, cause: str) -> Violation:
    """A violation whose words can be printed, whatever bytes a file's name is made of."""
    assert code in CODES, code
    return Violation(code=code, subject=_printable(subject), cause=_printable(cause))


def _printable(text: str) -> str:
    escaped = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in escaped)
