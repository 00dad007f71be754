"""The search with TPE for the fastest configuration within an accuracy budget."""
