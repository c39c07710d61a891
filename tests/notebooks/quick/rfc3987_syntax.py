"""jsonschema uses this package, if there is one, to check addresses, and it takes a second to import. Not in tests."""

raise ImportError
