"""One HTML file that tells a stranger what quantization did to a model: `contents` says it, `page` writes it down."""
