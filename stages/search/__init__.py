"""What tries many configurations of a model: candidates, their evaluation, its journal, and the strategies that ask."""
