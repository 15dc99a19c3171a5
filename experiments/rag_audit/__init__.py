"""Question sets about invented facts, whose sources are known by construction, and how well an
audit finds them."""
