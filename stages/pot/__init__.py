"""POT's own configuration files: read, and translated into this project's parameters."""
