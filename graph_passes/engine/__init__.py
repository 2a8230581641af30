"""Rules that are equations, and what is made of them.

| file | does |
|---|---|
| `terms` | the operators, on values with named dims, that both sides of a rule are written in |
| `rule` | reads a rule: its spellings, its variables, the ops at which it begins |
| `matcher` | finds a spelling in a graph, or says where it stopped |
| `emit` | makes the nodes of the other side |
| `rewriting` | applies rules until none fits, and keeps what nearly did |
| `trial` | builds every spelling as a graph, and runs it before and after |

docs/writing-a-rule.md shows them at work.
"""
