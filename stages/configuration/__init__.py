"""The configuration: its schema, how it is composed, completed and checked, and the users' classes that it names."""
