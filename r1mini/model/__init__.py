"""The decoder transformer."""
