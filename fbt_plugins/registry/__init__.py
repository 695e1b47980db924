"""A config's name becomes an object: the registries, and the plugins that fill them."""
