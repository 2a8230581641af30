"""The GGUF container and llama.cpp's words, turned into Hugging Face terms for `exporter.sources.gguf_file`.

- `reader`: the header, checked against the file before anything is allocated.
- `blocks`: quantized tensors, as float rows or as the file's own codes.
- `architectures`, `configurations`, `gpt_configurations`, `dims`, `keys`, `rotary`, `undoing`, `names`: configuration,
  tensor names and values, one entry an architecture.
- `vocabulary`, `pretokenizers`, `sentencepiece`, `tokenizer`: the tokenizer's files from the metadata.
"""
