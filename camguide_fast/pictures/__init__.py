"""Pictures for people: overlays, curves, contact sheets, superpixels."""
