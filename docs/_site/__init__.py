"""What the site does beyond Sphinx's own extensions."""
