"""The text that calibration reads: files to documents, documents to windows of tokens."""
