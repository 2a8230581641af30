"""The GGUF container and llama.cpp's vocabulary, turned into Hugging Face terms. `exporter.sources.gguf_file` uses it.

- `reader`: the header, checked against the file before anything is allocated.
- `blocks`: quantized tensors, as float rows or as the file's own codes.
- `names`: metadata keys and tensor names of each architecture.
- `tokenizer`: tokenizer.json, tokenizer_config.json and generation_config.json from the metadata.
"""
