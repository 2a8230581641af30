"""The first level: the folder holds the certified files, all of them, byte for byte, and nothing else."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exporter.errors import OnnxGptError
from exporter.sources._files import parse_json_object
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.certificate.files import CHECKSUMS, READERS, names_below, parse_checksums, sha256_of
from onnx_gpt.certificate.issuing import report_digest
from onnx_gpt.certificate.schema import CERTIFICATE, LIMIT, Certificate, is_as_issued, parse, seal_holds
from onnx_gpt.certificate.violations import Violation, violation

REPORT_LIMIT = 64 << 20


def read_certificate(folder: Path) -> tuple[Certificate | None, str, list[Violation]]:
    """The certificate of a bundle, the digest of its file, and what is wrong with it itself."""
    try:
        data = _read(folder / CERTIFICATE, LIMIT)
    except FileNotFoundError:
        below = sorted(path.parent.name for path in folder.glob(f"*/{CERTIFICATE}"))
        hint = f": verify its bundles one by one, {', '.join(below)}" if below else ""
        cause = f"{folder} has no {CERTIFICATE}{hint}"
        return None, "", [violation("certificate-missing", CERTIFICATE, cause)]
    except OSError as error:
        return None, "", [violation("certificate-invalid", CERTIFICATE, str(error))]
    digest = hashlib.sha256(data).hexdigest()
    try:
        certificate = parse(data)
    except OnnxGptError as error:
        cause = "; ".join([error.cause, *error.details])
        return None, digest, [violation("certificate-invalid", CERTIFICATE, cause)]
    if seal_holds(data):
        return certificate, digest, []
    cause = "its fields are not those that it was sealed with: somebody has edited it"
    return certificate, digest, [violation("certificate-seal", CERTIFICATE, cause)]


def violations(folder: Path, certificate: Certificate, digest: str) -> Iterator[Violation]:
    """Whatever is not as certified, in the order of file names; links are not followed.

    Args:
        digest: of the certificate's file.
    """
    present = dict.fromkeys(names_below(folder))
    regular = [name for name in present if _is_regular(folder / name)]
    yield from (found for name in present for found in _kind(folder, name))
    actual = _digests(folder, regular, certificate)
    unreadable = [name for name in regular if actual[name] is None]
    yield from (violation("file-irregular", name, "it cannot be read") for name in unreadable)
    expected = {name: facts.sha256 for name, facts in certificate.files.items()}
    listed = {*expected, REPORT, CERTIFICATE, CHECKSUMS}
    missing = sorted(listed - present.keys())
    extra = sorted(present.keys() - listed)
    yield from _names(missing, extra, expected, actual)
    for name, facts in sorted(certificate.files.items()):
        found = actual.get(name)
        if name not in regular or found is None:
            continue
        size = (folder / name).stat(follow_symlinks=False).st_size
        if size != facts.bytes:
            yield violation("file-size", name, f"{size} bytes, {facts.bytes} were certified")
        elif found != facts.sha256:
            yield violation("file-digest", name, f"SHA-256 is {found}, {facts.sha256} was certified")
    yield from _checksums(folder, regular, expected, actual, digest)
    if REPORT in regular:
        yield from _report(folder, certificate)


def _digests(folder: Path, names: list[str], certificate: Certificate) -> dict[str, str | None]:
    """SHA-256 by name, None of what cannot be read. A file of another size than certified is not read: it differs."""

    def one(name: str) -> str | None:
        path = folder / name
        facts = certificate.files.get(name)
        try:
            if facts is not None and path.stat(follow_symlinks=False).st_size != facts.bytes:
                return ""
            return sha256_of(path)
        except OSError:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _kind(folder: Path, name: str) -> Iterator[Violation]:
    try:
        status = (folder / name).lstat()
    except OSError as error:
        yield violation("file-irregular", name, str(error.strerror))
        return
    if stat.S_ISLNK(status.st_mode):
        yield violation(
            "file-link", name, f"it is a symbolic link to {str((folder / name).readlink())!r:.200}"
        )
    elif not stat.S_ISREG(status.st_mode):
        yield violation("file-irregular", name, "it is neither a file nor a folder")
    elif status.st_nlink > 1:
        yield violation("file-hard-link", name, f"the same file has {status.st_nlink} names")


def _names(
    missing: list[str], extra: list[str], expected: Mapping[str, str], actual: Mapping[str, str | None]
) -> Iterator[Violation]:
    """Missing and extra names; one of each with the same bytes is a file that was renamed."""
    moved = {actual[name]: name for name in extra if actual.get(name)}
    for name in missing:
        now = moved.pop(expected.get(name, "-"), None)
        if now is not None:
            extra.remove(now)
            yield violation("file-renamed", name, f"it is called {now!r} now")
        else:
            yield violation("file-missing", name, "it is not there")
    yield from (violation("file-extra", name, "nobody certified it") for name in extra)


def _checksums(
    folder: Path,
    regular: list[str],
    expected: Mapping[str, str],
    actual: Mapping[str, str | None],
    digest: str,
) -> Iterator[Violation]:
    """SHA256SUMS against the certificate, and report.json against it."""
    if CHECKSUMS not in regular:
        return  # missing, or a link: said already
    try:
        listed = parse_checksums(_read(folder / CHECKSUMS, LIMIT))
    except OSError as error:
        yield violation("checksums", CHECKSUMS, str(error))
        return
    if listed is None:
        yield violation("checksums", CHECKSUMS, "it is not what sha256sum writes")
        return
    as_issued = is_as_issued((folder / CERTIFICATE).read_bytes())
    at_fault = CHECKSUMS if as_issued else CERTIFICATE
    wanted = {**expected, CERTIFICATE: digest, REPORT: actual.get(REPORT) or listed.get(REPORT, "")}
    for name in sorted(wanted.keys() | listed.keys()):
        if listed.get(name) == wanted.get(name):
            continue
        if name == REPORT:
            cause = f"its bytes are not those of {CHECKSUMS}: one of the two has changed"
            yield violation("file-digest", f"{REPORT} or {CHECKSUMS}", cause)
        elif name == CERTIFICATE:
            cause = f"SHA-256 is {digest}, {CHECKSUMS} has {listed.get(name)}"
            yield violation("checksums" if as_issued else "file-digest", at_fault, cause)
        else:
            cause = f"it says {listed.get(name)} of {name}, the certificate {wanted.get(name)}"
            yield violation("checksums", CHECKSUMS, cause)


def _report(folder: Path, certificate: Certificate) -> Iterator[Violation]:
    """What the report says, times aside, is certified."""
    try:
        report = parse_json_object(_read(folder / REPORT, REPORT_LIMIT), REPORT, "report-invalid")
        same = report_digest(report) == certificate.report
    except (OnnxGptError, OSError, ValueError, RecursionError) as error:
        yield violation("report-differs", REPORT, f"it is no report: {error!s:.200}".splitlines()[0])
        return
    if not same:
        yield violation("report-differs", REPORT, _difference(report, certificate))


def _difference(report: Mapping[str, Any], certificate: Certificate) -> str:
    """Which of the fields that the certificate repeats are others."""
    if report.get("recipe") != certificate.recipe:
        return "its recipe is not the certified one"
    parity = next(iter(certificate.parity.values()), None)
    if report.get("parity") != parity:
        return "its parity (metrics, thresholds or verdict) is not the certified one"
    return "it says something else than what was certified"


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _read(path: Path, limit: int) -> bytes:
    """A regular file, at most ``limit`` bytes; a link is not followed."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path.name} is not a regular file")
    if status.st_size > limit:
        raise OSError(f"{path.name} has {status.st_size} bytes, more than {limit >> 20} MiB")
    return path.read_bytes()
