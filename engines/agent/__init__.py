"""The replica agent: the process that stands beside an engine and answers for it."""
