"""Config files, versions of dependencies, errors, atomic writes."""
