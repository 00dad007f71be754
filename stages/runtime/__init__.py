"""How models and data are had and run."""
