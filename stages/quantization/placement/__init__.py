"""Where quantizers go, and the plan that says so."""
