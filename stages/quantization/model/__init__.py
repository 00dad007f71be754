"""The model as quantization sees it: its graph, its patterns and blocks, its weights."""
