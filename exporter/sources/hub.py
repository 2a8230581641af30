"""``hf:org/name`` or ``hf:org/name@revision``: a model of the Hugging Face Hub, by its library and cache.

Only configuration, tokenizer and safetensors files are fetched; no pickle and no code. With HF_HUB_OFFLINE
set, the cache answers alone.
"""

from __future__ import annotations

import dataclasses
import errno

from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.sources import hf_directory

PREFIX = "hf:"

PATTERNS = ("config.json", *hf_directory.FILES, "model*.safetensors", hf_directory.INDEX)


def claims(uri: str) -> bool:
    return uri.startswith(PREFIX)


def load(uri: str) -> Checkpoint:
    """Fetch what is not in the cache, then open it as a directory.

    Raises:
        OnnxGptError: ``hub-name`` for what cannot name a model; ``hub-missing``, ``hub-gated``; ``network``
            (exit 9); and whatever `hf_directory.load` says of the files.
    """
    name, _, revision = uri.removeprefix(PREFIX).partition("@")
    return dataclasses.replace(hf_directory.load(_fetch(name, revision or None)), uri=uri)


def _fetch(name: str, revision: str | None) -> str:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library it uses

    try:
        return str(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
    except errors.HFValidationError as error:
        raise rejected(
            "hub-name", f"{name!r} is not a name of a model: {_line(error)}", "write hf:org/name"
        ) from error
    except errors.GatedRepoError as error:
        raise rejected(
            "hub-gated",
            f"{name!r} is given only to those who accepted its terms",
            f"accept them at huggingface.co/{name}, then run hf auth login",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = f"{name!r}" if revision is None else f"{name!r} at {revision!r}"
        raise rejected(
            "hub-missing",
            f"the Hub has no model {what}, or does not show it to you",
            "check the name, or run hf auth login where it is private",
        ) from error
    except (OSError, HTTPError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        raise OnnxGptError(
            "network",
            f"{name!r} could not be fetched from the Hub: {_line(error)}",
            "check the connection; offline, only models that are in the cache already can be opened",
            exit=Exit.NETWORK,
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
