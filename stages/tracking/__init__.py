"""MLflow: where results are stored, what is logged of them, and links to it."""
