"""One repair a file: ``CODES`` of findings that it answers, and ``repair(draft) → draft``, called where one was found.

Those of graphs (``OF = "graph"``) come first, in the order of their names, then those of documents
(``OF = "document"``), which are told how many files of weights there will be.
"""
