"""A zoo of real models out of registry wheels, each brought as a user would bring it, and compared with NNCF."""
