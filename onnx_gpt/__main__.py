"""``python -m onnx_gpt``."""

from onnx_gpt.cli import main

if __name__ == "__main__":
    main()
