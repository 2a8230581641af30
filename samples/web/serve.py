"""Serves the demo page, a bundle and transformers.js from this machine, with the headers that WASM threads need.

    python samples/web/serve.py BUNDLE --modules node_modules        then open http://127.0.0.1:8000

Nothing else is fetched: the page works without a network. BUNDLE is what `onnx-gpt optimize … --target web` made;
node_modules holds @huggingface/transformers (`npm install` in this folder puts it there).
"""

from __future__ import annotations

import argparse
import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Handler(SimpleHTTPRequestHandler):
    """Files of three folders: the page at /, the bundle at /bundle/, packages at /modules/."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *arguments: object, folders: dict[str, Path], quiet: bool, **options: object) -> None:
        self.folders, self.quiet = folders, quiet
        super().__init__(*arguments, directory=str(HERE), **options)  # type: ignore[arg-type, misc]

    def translate_path(self, path: str) -> str:
        for prefix, folder in self.folders.items():
            if path.startswith(f"/{prefix}/"):
                self.directory = str(folder)
                return super().translate_path(path.removeprefix(f"/{prefix}"))
        self.directory = str(HERE)
        return super().translate_path(path)

    def end_headers(self) -> None:
        # Together they isolate the page, without which a browser gives it no SharedArrayBuffer, and WASM no threads.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        if not self.quiet:
            super().log_message(format, *arguments)


def server(folders: dict[str, Path], port: int = 0, *, quiet: bool = True) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one (``server_address``)."""
    handler = functools.partial(
        Handler, folders={name: path.resolve() for name, path in folders.items()}, quiet=quiet
    )
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("bundle", type=Path)
    options.add_argument("--modules", type=Path, default=HERE / "node_modules")
    options.add_argument("--port", type=int, default=8000)
    chosen = options.parse_args()
    serving = server({"bundle": chosen.bundle, "modules": chosen.modules}, chosen.port, quiet=False)
    print(f"http://127.0.0.1:{serving.server_address[1]}")
    serving.serve_forever()


if __name__ == "__main__":
    main()
