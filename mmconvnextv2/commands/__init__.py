"""One module per tool: arguments in, one call out."""
