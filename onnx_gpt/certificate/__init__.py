"""The certificate of a bundle: what it is made of, by digests, and what was proven of it (docs/certificate.md)."""
