"""A teacher behind a URL: asked with retries, probed first, its rows bounded where unknown."""
