"""The loop: steps, optimisers, logs, and states to go on from."""
