"""Talk to a bundle: text as it is generated.

python samples/stream_text.py BUNDLE "Why is the sky blue?"
"""

import sys

import onnx_gpt

bundle, question = sys.argv[1:]
generator = onnx_gpt.Generator(bundle)
prompt = [{"role": "user", "content": question}] if generator.chat else question
for piece in generator.stream(prompt, max_new_tokens=48, temperature=0.7, seed=0):
    print(piece, end="", flush=True)
print()
