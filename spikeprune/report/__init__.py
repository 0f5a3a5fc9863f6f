"""Tables and figures of results, made from plain records such as `summary.json`; nothing here computes a result."""
