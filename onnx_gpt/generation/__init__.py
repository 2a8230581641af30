"""Text from a bundle: prompt, chat template, decoder session, sampling, streaming, and how fast they are together."""
