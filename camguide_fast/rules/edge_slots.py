"""How long the lists of a graph of superpixels may become."""


def edge_slots(height: int, width: int, num_segments: int) -> int:
    """Directed edges that labels [height, width] can have at most: every pair, or every border between pixels."""
    return min(num_segments * (num_segments - 1), 2 * (height * (width - 1) + (height - 1) * width))
