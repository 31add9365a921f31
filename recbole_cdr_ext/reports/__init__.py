"""``recbole-cdr report``: finished runs as one page and as tables for a paper."""
